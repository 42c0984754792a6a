"""Words for the largest stable learning rate."""

from __future__ import annotations

import pytest

from wsb_engine.presentation.scaling import name, sentence
from wsb_engine.report import CertifiedInterval, Interval, OptimizerSettings, StableSteps

SETTINGS = OptimizerSettings(
    momentum=0.0,
    dampening=0.0,
    nesterov=False,
    weight_decay=0.0,
    betas=[0.9, 0.999],
    eps=1e-8,
    amsgrad=False,
    momentum_decay=4e-3,
)


def steps(ratio: Interval | None = None, rate: Interval | None = None, **settings: object) -> StableSteps:
    curvature = CertifiedInterval(
        lower=37.9, upper=38.1, relative_gap=5e-3, kind="probabilistic", failure_probability=1e-6
    )
    return StableSteps(
        kind="adam",
        settings=SETTINGS.model_copy(update=settings),
        learning_rate=None if ratio is None else 0.5,
        limit=38.0,
        lambda_max=curvature,
        largest_stable_learning_rate=rate,
        ratio=ratio,
    )


RATE = Interval(lower=0.99735, upper=1.0027)


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (Interval(lower=0.49, upper=0.5013), "Adam with learning rate 0.5 is stable: that is at most 50.2 % of"),
        (Interval(lower=1.2499, upper=1.3), "Adam with learning rate 0.5 is unstable: that is at least 124 % of"),
        (Interval(lower=0.9, upper=1.1), "Whether Adam with learning rate 0.5 is stable is not certain"),
        (Interval(lower=0.0, upper=1.7e308), "Whether Adam with learning rate 0.5 is stable is not certain"),
        (None, "Adam is stable up to a learning rate of 0.9973."),
    ],
)
def test_the_sentence_says_no_more_than_the_interval(ratio: Interval | None, expected: str) -> None:
    assert expected in sentence(steps(ratio, RATE))


def test_curvature_that_is_not_positive_limits_nothing() -> None:
    assert "no learning rate of Adam is too large" in sentence(steps())


def test_an_optimizer_is_called_by_what_sets_it_apart() -> None:
    assert name(steps(amsgrad=True)) == "Adam (AMSGrad)"
    descent = steps(momentum=0.9).model_copy(update={"kind": "sgd"})
    assert name(descent) == "gradient descent with momentum 0.9"
    nesterov = steps(momentum=0.9, nesterov=True).model_copy(update={"kind": "sgd"})
    assert name(nesterov) == "gradient descent with Nesterov's momentum 0.9"
