"""Edge of stability: the certified λ_max of three optimizers' steps against what they can bear, along training.

An optimizer's full-batch steps are unstable on the quadratic model once η λ_max exceeds a limit: 2 for gradient
descent, 2(1 + β) with heavy-ball momentum (Cohen et al. 2021), and 2(1 + β₁)/(1 − β₁), 38 at β₁ = 0.9, for Adam, where
λ_max is that of the preconditioned Hessian (Cohen et al. 2022). The option ``optimizer`` certifies η λ_max / limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from page import LAMBDA_MAX, Claim, Result, panels, svg, table
from setting import CLASSES, FAST, Setting, analyse, descend, perceptron

from wsb_engine.optimizer import Optimizer
from wsb_engine.presentation.figures import Curve, Point, along, style
from wsb_engine.report import Interval

ROWS = 1000
HIDDEN = 12
"""Few enough that the rows are not soon separated, which flattens the loss."""
HOVERING = 1.25
"""Factor within which the median ratio, from the first measurement above 1 to the last, counts as at the edge."""
COHEN_2021 = "[Cohen et al. 2021](https://arxiv.org/abs/2103.00065)"
COHEN_2022 = "[Cohen et al. 2022](https://arxiv.org/abs/2207.14484)"


@dataclass(frozen=True)
class Case:
    """A training."""

    title: str
    limit: str
    source: str
    settings: Optimizer
    make: Callable[[Iterable[torch.nn.Parameter], float], torch.optim.Optimizer]
    steps: int


@dataclass(frozen=True)
class Measurement:
    """What is certified after a number of steps."""

    step: int
    loss: float
    lambda_max: Interval
    """Of the Hessian."""
    ratio: Interval
    """Of what the optimizer's steps see to its limit; above 1 they are unstable on the quadratic model."""


CASES = (
    Case(
        "gradient descent",
        "2/η",
        COHEN_2021,
        Optimizer(kind="sgd", learning_rate=0.4),
        lambda parameters, rate: torch.optim.SGD(parameters, lr=rate),
        steps=3000,
    ),
    Case(
        "heavy ball, β = 0.9",
        "2(1 + β)/η",
        COHEN_2021,
        Optimizer(kind="sgd", learning_rate=0.8, momentum=0.9),
        lambda parameters, rate: torch.optim.SGD(parameters, lr=rate, momentum=0.9),
        steps=450,
    ),
    Case(
        "Adam, β₁ = 0.9",
        "38/η",
        COHEN_2022,
        Optimizer(kind="adam", learning_rate=0.02, betas=(0.9, 0.99)),
        lambda parameters, rate: torch.optim.Adam(parameters, lr=rate, betas=(0.9, 0.99)),
        steps=600,
    ),
)


def run(setting: Setting) -> Result:
    """Train by each optimizer and measure on the way."""
    found = [(case, _train(case, setting)) for case in CASES]
    return Result(
        table(
            ("optimizer", "η", "limit of λ_max", "first above 1", "largest ratio", "median from then on", "last"),
            [_row(case, measured) for case, measured in found],
        ),
        [claim for case, measured in found for claim in _claims(case, measured)],
        {"edge": _figure(found)},
    )


def _train(case: Case, setting: Setting) -> list[Measurement]:
    rows = setting.train[0][:ROWS], setting.train[1][:ROWS]
    module = perceptron(rows[0].shape[1], HIDDEN, CLASSES, setting.seed)
    optimizer = case.make(module.parameters(), case.settings.learning_rate or 0.0)
    options = FAST.model_copy(update={"optimizer": case.settings})
    steps = setting.take(case.steps, 20)
    every = steps // setting.take(25, 2)
    measured = []
    for step in range(1, steps + 1):
        loss = descend(module, rows, optimizer)
        if step % every == 0:
            report = analyse(module, rows, options, _state(module, optimizer, step, case.settings))
            if report.enclosure is None or report.optimizer is None or report.optimizer.ratio is None:
                raise RuntimeError("the ratio is not enclosed")
            measured.append(Measurement(step, loss, report.enclosure.lambda_max, report.optimizer.ratio))
    return measured


def _state(module: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int, settings: Optimizer) -> Any:
    """Return the second moments as ``analyze`` takes them; None for steps that are not scaled."""
    if not settings.needs_state:
        return None
    moments = {f"{name}.exp_avg_sq": optimizer.state[p]["exp_avg_sq"] for name, p in module.named_parameters()}
    return {**moments, "step": torch.tensor(step)}


def _above(measured: list[Measurement]) -> list[Measurement]:
    """Return the measurements from the first that is certified above 1."""
    first = next((i for i, each in enumerate(measured) if each.ratio.lower > 1), len(measured))
    return measured[first:]


def _row(case: Case, measured: list[Measurement]) -> list[str]:
    above = _above(measured)
    return [
        case.title,
        f"{case.settings.learning_rate:g}",
        case.limit,
        f"step {above[0].step}" if above else "never",
        _shown(max((each.ratio for each in measured), key=lambda ratio: ratio.lower)),
        f"{median(each.ratio.lower for each in above):.2f}" if above else "",
        _shown(measured[-1].ratio),
    ]


def _shown(ratio: Interval) -> str:
    return f"{ratio.lower:.3f} to {ratio.upper:.3f}"


def _claims(case: Case, measured: list[Measurement]) -> list[Claim]:
    """Judge what the literature says of this optimizer."""
    above = _above(measured)
    name = case.title.partition(",")[0]
    if not above:
        largest = max(each.ratio.upper for each in measured)
        return [Claim(f"{name} reaches {case.limit}", case.source, f"the ratio is at most {largest:.2f}", agrees=False)]
    centre = median(each.ratio.lower for each in above)
    claims = [
        Claim(
            f"{name} reaches {case.limit} and then hovers at it",
            case.source,
            f"certified above 1 at step {above[0].step}; median ratio {centre:.2f} from then on",
            agrees=1 / HOVERING <= centre <= HOVERING,
        )
    ]
    last, peak = measured[-1], max(each.lambda_max.lower for each in measured)
    if case.settings.needs_state:
        first = above[0].lambda_max
        claims.append(
            Claim(
                f"{name} goes on into regions of higher curvature: λ_max of the unscaled Hessian rises at the edge",
                case.source,
                f"λ_max is {first.lower:.3g} at step {above[0].step}, and {last.lambda_max.lower:.3g} at the end",
                agrees=last.lambda_max.lower > first.upper,
            )
        )
    else:
        claims.append(
            Claim(
                f"with the cross-entropy sharpness falls at the end of training ({name})",
                case.source,
                f"λ_max is at most {peak:.2f}, and {last.lambda_max.upper:.2f} at a loss of {last.loss:.3f}",
                agrees=last.lambda_max.upper < 0.9 * peak,
            )
        )
    return claims


def _figure(found: list[tuple[Case, list[Measurement]]]) -> bytes:
    with style():
        axes = panels([case.title for case, _ in found])
        for each, (case, measured) in zip(axes, found, strict=True):
            ratios = Curve("", [Point(m.step, m.ratio.lower, m.ratio.upper) for m in measured])
            along([ratios], each, x_label="step", y_label="", limit=(case.limit, 1.0))
            each.set_ylim(bottom=0)
        axes[0].set_ylabel(f"{LAMBDA_MAX} of the steps / limit")
        return svg(axes)
