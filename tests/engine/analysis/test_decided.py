"""Stopping when all is decided, and what is certified on the way there, against dense Hessians by double backward."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from support.eager import eager_hessian
from support.forms import crossed, thinned
from torch import Tensor, nn

import wsb_engine as wsb
from wsb_engine.analysis.monitor import Monitor
from wsb_engine.analysis.problem import pose
from wsb_engine.progress import InterimEnclosure, Progress
from wsb_engine.report import Enclosure

CASES = Path(__file__).parents[2] / "cases"
SAMPLES = 60
FACTORS = [0.5, 0.9, 1.1, 2.0]


def perceptron(*, steps: int = 0) -> nn.Module:
    return fitted(nn.Sequential(nn.Linear(64, 3), nn.Tanh(), nn.Linear(3, 10)), steps)


def convolutional() -> nn.Module:
    return nn.Sequential(
        *(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 2, 3, stride=2), nn.GELU(), nn.Flatten(), nn.Linear(18, 10)),
    )


class Attention(nn.Module):
    """One layer over the half rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.TransformerEncoderLayer(4, 2, 4, activation="gelu", batch_first=True, dropout=0.0)
        self.out = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.out(self.body(x.reshape(-1, 16, 4)).mean(dim=1))
        return z


def digits() -> tuple[Tensor, Tensor]:
    x, y = load_digits(return_X_y=True)
    return torch.from_numpy(x[:SAMPLES] / 16), torch.from_numpy(y[:SAMPLES])


def fitted(module: nn.Module, steps: int) -> nn.Module:
    (x, y), optimizer = digits(), torch.optim.Adam(module.parameters(), 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x.float()), y).backward()
        optimizer.step()
    return module


NETS: dict[str, Callable[[], nn.Module]] = {
    "perceptron": perceptron,
    "trained perceptron": lambda: perceptron(steps=150),
    "attention": Attention,
    "convolutional": convolutional,
}


@cache
def net(name: str) -> tuple[nn.Module, wsb.Batch, np.ndarray]:
    """A network, its batch, and all eigenvalues of its Hessian in ascending order."""
    torch.manual_seed(0)
    module, (x, y) = NETS[name]().eval(), digits()
    H = eager_hessian(module.double(), x, y)
    return module, wsb.Batch(x, y), np.linalg.eigvalsh(H.numpy())


def analysed(name: str, decided: Callable[[InterimEnclosure], bool] | None = None, **options: object) -> wsb.Report:
    module, batch, _ = net(name)
    wanted = wsb.Options.model_validate({"stop": "gap" if decided is None else "decided", "moments": "none", **options})
    return wsb.analyze(wsb.from_module(module), batch, wanted, decided=decided)


def below(limit: float, seen: list[InterimEnclosure] | None = None) -> Callable[[InterimEnclosure], bool]:
    """Decided once it is certain on which side of the limit λ_max lies."""

    def decided(found: InterimEnclosure) -> bool:
        if seen is not None:
            seen.append(found)
        return found.lambda_max.upper <= limit or found.lambda_max.lower > limit

    return decided


def holds(found: InterimEnclosure | Enclosure, values: np.ndarray) -> bool:
    """Whether both ends are where they should be, apart from the dense solver's rounding."""
    rounding = 1e-12 * np.abs(values).max()
    pairs = (found.lambda_max, values[-1]), (found.lambda_min, values[0])
    return all(end.lower - rounding <= value <= end.upper + rounding for end, value in pairs)


@pytest.mark.parametrize("name", thinned(NETS, 2))
def test_a_limit_is_decided_rightly_and_sooner_than_the_gap_is_reached(name: str) -> None:
    _, _, values = net(name)
    whole = analysed(name).enclosure
    assert whole is not None
    needed = []
    for factor in FACTORS:
        limit = factor * values[-1]
        found = analysed(name, below(limit)).enclosure
        assert found is not None
        assert found.stopped_by == "decided"
        assert holds(found, values)
        # The report itself decides it, and as the dense spectrum does.
        assert (found.lambda_max.upper <= limit, found.lambda_max.lower > limit) == (factor > 1, factor < 1)
        needed.append(found.hessian_vector_products)
    print(name, whole.hessian_vector_products, needed)
    assert max(needed) < whole.hessian_vector_products
    assert max(needed[:2]) <= whole.hessian_vector_products / 2


@pytest.mark.slow
@pytest.mark.parametrize("moments", ["auto", "probes"])
def test_bounds_from_moments_may_decide_it_too(moments: str) -> None:
    _, _, values = net("trained perceptron")
    found = analysed("trained perceptron", below(1.1 * values[-1]), moments=moments).enclosure
    assert found is not None
    assert found.stopped_by == "decided"
    assert found.lambda_max.upper <= 1.1 * values[-1]


def test_a_limit_within_the_gap_stays_undecided_and_the_run_is_the_whole_one() -> None:
    _, _, values = net("perceptron")
    found = analysed("perceptron", below(values[-1]), max_products=25).enclosure
    whole = analysed("perceptron", max_products=25).enclosure
    assert found is not None
    assert found == whole
    assert found.stopped_by == "products"


def test_what_is_shown_holds_the_eigenvalues_and_later_enclosures_at_every_step() -> None:
    _, _, values = net("attention")
    seen: list[InterimEnclosure] = []
    report = analysed("attention", below(values[-1], seen))
    assert len(seen) > 15
    for found in seen:
        assert holds(found, values)
    assert report.enclosure is not None
    assert seen[-1].lambda_max.relative_gap == pytest.approx(report.enclosure.lambda_max.relative_gap, rel=1e-3)


def test_nothing_is_decided_that_confirmation_takes_back() -> None:
    """If confirmed ends no longer decide, the run goes on to the gap."""
    _, _, values = net("perceptron")
    answers = iter([True, False])
    found = analysed("perceptron", lambda _: next(answers, False), relative_gap=1e-3).enclosure
    assert found is not None
    assert found.stopped_by == "gap"
    assert found.lambda_max.relative_gap is not None
    assert found.lambda_max.relative_gap <= 1e-3
    assert holds(found, values)


def test_it_takes_somebody_who_decides() -> None:
    with pytest.raises(wsb.OptionsError) as caught:
        analysed("perceptron", stop="decided")
    assert caught.value.code == "policy_missing"


def test_who_decides_is_not_asked_unless_the_options_say_so() -> None:
    def decided(_: InterimEnclosure) -> bool:
        raise AssertionError

    assert analysed("perceptron", decided, stop="gap", max_products=3).enclosure is not None


@pytest.mark.parametrize(("name", "dtype"), crossed(["trained perceptron", "convolutional"], ["float64", "float32"]))
def test_progress_tells_what_is_certified_and_only_ever_narrows_it(name: str, dtype: str) -> None:
    module, batch, values = net(name)
    seen: list[Progress] = []
    options = wsb.Options(dtype=dtype, spectrum="top", top=2, failure_probability=1e-3, relative_gap=1e-4)
    report = wsb.analyze(wsb.from_module(module), batch, options, progress=seen.append)
    assert report.enclosure is not None
    told = [each.enclosure for each in seen if each.enclosure is not None]
    assert len(told) > 3
    assert {each.phase for each in seen if each.enclosure is None} >= {"setup", "loss", "rounding"}
    assert seen[-1].enclosure is not None  # later phases still tell it
    for found in told:
        assert holds(found, values)
    for earlier, later in itertools.pairwise(told):
        for name_ in ("lambda_max", "lambda_min"):
            wide, narrow = getattr(earlier, name_), getattr(later, name_)
            assert wide.lower <= narrow.lower <= narrow.upper <= wide.upper
    assert told[-1].lambda_max.lower >= report.enclosure.lambda_max.lower
    assert told[-1].lambda_max.upper <= report.enclosure.lambda_max.upper


@pytest.mark.parametrize("case", ["saturated_mlp_1e-9", "saturated_general_1e-9"])
def test_it_is_told_in_the_units_of_the_loss_whatever_the_analysis_computes_in(case: str) -> None:
    classifier, batch = wsb.load_model(CASES / case / "model.onnx"), wsb.load_batch(CASES / case / "batch.npz")
    expected = json.loads((CASES / case / "case.json").read_text())["expect"]
    options = wsb.Options(moments="none")
    assert pose(classifier, batch, options, Monitor(options, None, 0.0)).objective.scale > 1e6
    seen: list[Progress] = []
    wsb.analyze(classifier, batch, options, progress=seen.append)
    told = [each.enclosure for each in seen if each.enclosure is not None]
    assert told
    for found in told:
        assert holds(found, np.array([expected["lambda_min"], expected["lambda_max"]]))
    assert told[-1].lambda_max.upper == pytest.approx(expected["lambda_max"], rel=1e-3)


def interim(lower: float, upper: float, chance: float | None = 1e-6) -> InterimEnclosure:
    end = {
        "lower": lower,
        "upper": upper,
        "relative_gap": None if upper == lower else upper - lower,
        "kind": "deterministic" if chance is None else "probabilistic",
        "failure_probability": chance,
    }
    return InterimEnclosure.model_validate({"lambda_max": end, "lambda_min": end, "hessian_vector_products": 1})


def test_an_intersection_fails_if_either_interval_may() -> None:
    both = interim(0.0, 2.0, None).within(interim(1.0, 3.0)).lambda_max
    assert (both.lower, both.upper, both.relative_gap) == (1.0, 2.0, 1.0)
    assert (both.kind, both.failure_probability) == ("probabilistic", 1e-6)
    alone = interim(1.0, 2.0, None).within(interim(0.0, 3.0)).lambda_max
    assert (alone.lower, alone.upper, alone.kind) == (1.0, 2.0, "deterministic")


def test_intervals_that_exclude_each_other_are_no_intersection() -> None:
    assert interim(0.0, 1.0).within(interim(2.0, 3.0)).lambda_max.upper == 1.0


@pytest.mark.parametrize(("lower", "upper", "chance"), [(1.0, 0.0, None), (0.0, 1.0, 1.5), (0.0, 1.0, -0.1)])
def test_no_enclosure_is_empty_or_more_than_certain(lower: float, upper: float, chance: float | None) -> None:
    with pytest.raises(ValueError, match=r"no interval|equal to [01]"):
        interim(lower, upper, chance)
