"""The Wolkowicz-Styan bound against λ_max, over hidden widths, orthogonality of the samples, and scale of the weights.

For the smooth network of three layers the bound is a function of exactly these (Omae et al. 2026): of the affine
parameters, the hidden width, and the Gram matrices of the samples. λ_max is enclosed by certified ends.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING

import torch
from page import LAMBDA_MAX, Claim, Result, panels, svg, table
from setting import CLASSES, HIDDEN, Rows, Setting, analyse, fit, middle, perceptron, ranks_agree
from torch import nn

from wsb_engine.presentation.figures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROWS = 400
WIDTHS = (4, 8, 16, 32, 64)
SCALES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
COSINES = (0.0, 0.2, 0.4, 0.6, 0.8, 0.95)
ORTHOGONAL_ROWS = 40
"""Fewer than there are pixels, so that all can be orthogonal."""
NETWORKS = 3
"""Initial weights for each case."""
STEPS = 150
AGREEING = 0.9
"""Rank correlation that counts as agreement."""
OMAE_2026 = "[Omae et al. 2026](https://arxiv.org/abs/2604.10202)"
PANELS = {"width": "hidden width", "cosine": "cosine of samples", "scale": "scale of weights"}


@dataclass(frozen=True)
class Case:
    """One network on some rows."""

    varied: str
    """Key of ``PANELS``."""
    value: float
    trained: bool
    sharpness: float
    """λ_max."""
    largest: float
    """Certified: λ_max is at most this."""
    bound: float
    norm: float
    """‖H‖_F."""


def run(setting: Setting) -> Result:
    """Measure all cases."""
    cases = [
        case
        for network in range(setting.take(NETWORKS, 1))
        for each in (_widths, _cosines, _scales)
        for case in each(setting, setting.seed + network)
    ]
    head = ("varied", "value", "network", "λ_max", "bound", "bound / λ_max", "bound / ‖H‖_F")
    return Result(table(head, _rows(cases)), _claims(cases), {"bound": _figure(cases)})


def _widths(setting: Setting, seed: int) -> Iterator[Case]:
    rows = setting.train[0][:ROWS], setting.train[1][:ROWS]
    for width in setting.take(WIDTHS, (4, 16)):
        yield from _both("width", width, perceptron(rows[0].shape[1], width, CLASSES, seed), rows, setting)


def _cosines(setting: Setting, seed: int) -> Iterator[Case]:
    for cosine in setting.take(COSINES, (0.0, 0.8)):
        rows = _at_cosine(setting.train, cosine)
        yield from _both("cosine", cosine, perceptron(rows[0].shape[1], HIDDEN, CLASSES, seed), rows, setting)


def _scales(setting: Setting, seed: int) -> Iterator[Case]:
    rows = setting.train[0][:ROWS], setting.train[1][:ROWS]
    module = perceptron(rows[0].shape[1], HIDDEN, CLASSES, seed)
    for trained in (False, True):
        if trained:
            fit(module, rows, setting.take(STEPS, 20))
        weights = nn.utils.parameters_to_vector(module.parameters()).detach().clone()
        for scale in setting.take(SCALES, (0.5, 2.0)):
            nn.utils.vector_to_parameters(scale * weights, module.parameters())
            yield _case("scale", scale, trained, module, rows)
        nn.utils.vector_to_parameters(weights, module.parameters())


def _both(varied: str, value: float, module: nn.Module, rows: Rows, setting: Setting) -> Iterator[Case]:
    """Measure a network before and after training."""
    yield _case(varied, value, False, module, rows)
    fit(module, rows, setting.take(STEPS, 20))
    yield _case(varied, value, True, module, rows)


def _case(varied: str, value: float, trained: bool, module: nn.Module, rows: Rows) -> Case:
    report = analyse(module, rows)
    if report.bounds is None or report.moments is None or report.enclosure is None:
        raise RuntimeError("a smooth perceptron has moments")
    bound, norm = report.bounds.wolkowicz_styan.lambda_max.upper, math.sqrt(report.moments.frobenius_squared)
    return Case(varied, value, trained, middle(report), report.enclosure.lambda_max.upper, bound, norm)


def _at_cosine(rows: Rows, cosine: float) -> Rows:
    """Return the nearest rows of which all pairs have the same cosine, and a squared norm equal to their number of
    pixels, as standardised rows have on average.

    The orthonormal rows nearest to X are the polar factor UVᵀ of its singular value decomposition; a unit vector c that
    is orthogonal to all of them makes √(1 − ρ) u_s + √ρ c of cosine ρ.
    """
    x, y = rows[0][:ORTHOGONAL_ROWS], rows[1][:ORTHOGONAL_ROWS]
    U, _, Vh = torch.linalg.svd(x, full_matrices=True)
    orthonormal, common = U @ Vh[: len(x)], Vh[len(x)]
    mixed = math.sqrt(1 - cosine) * orthonormal + math.sqrt(cosine) * common
    return math.sqrt(x.shape[1]) * mixed, y


def _medians(cases: Sequence[Case], varied: str, trained: bool) -> list[tuple[float, float, float, float]]:
    """List value, λ_max, bound and ‖H‖_F, medians over the networks."""
    chosen = [case for case in cases if case.varied == varied and case.trained == trained]
    found = []
    for value in sorted({case.value for case in chosen}):
        here = [case for case in chosen if case.value == value]
        found.append(
            (value, median(c.sharpness for c in here), median(c.bound for c in here), median(c.norm for c in here))
        )
    return found


def _rows(cases: Sequence[Case]) -> list[tuple[str, ...]]:
    return [
        (
            PANELS[varied],
            f"{value:g}",
            "trained" if trained else "untrained",
            f"{sharpness:.4g}",
            f"{bound:.4g}",
            f"{bound / sharpness:.2f}",
            f"{bound / norm:.4f}",
        )
        for varied in PANELS
        for trained in (False, True)
        for value, sharpness, bound, norm in _medians(cases, varied, trained)
    ]


def _claims(cases: Sequence[Case]) -> list[Claim]:
    ratios = [case.bound / case.sharpness for case in cases]
    rank = ranks_agree([case.bound for case in cases], [case.sharpness for case in cases])
    shares = [[bound / norm for *_, bound, norm in _medians(cases, "width", trained)] for trained in (False, True)]
    growth = [ranks_agree(*_curve(cases, "width", trained)) for trained in (False, True)]
    return [
        Claim(
            "λ_max is at most the bound",
            OMAE_2026,
            f"in {sum(case.largest <= case.bound for case in cases)} of {len(cases)} networks; it is "
            f"{min(ratios):.2f} to {max(ratios):.2f} times λ_max",
            agrees=all(case.largest <= case.bound for case in cases),
        ),
        *(_orthogonality(cases, trained) for trained in (False, True)),
        Claim(
            "the bound characterises sharpness: it orders networks as λ_max does",
            OMAE_2026,
            f"rank correlation {rank:.2f} over all networks",
            agrees=rank >= AGREEING,
        ),
        Claim(
            "the bound approaches ‖H‖_F as the number of parameters grows",
            "[mathematics](../../docs/mathematics.md), section 2",
            f"its share of ‖H‖_F goes with the width from {shares[0][0]:.4f} to {shares[0][-1]:.4f}, and from "
            f"{shares[1][0]:.4f} to {shares[1][-1]:.4f} after training",
            agrees=all(one < other for each in shares for one, other in pairwise(each)),
        ),
        Claim(
            "before training λ_max grows with the width",
            "[Karakida et al. 2019](https://arxiv.org/abs/1806.01316)",
            f"rank correlation {growth[0]:.2f}; {growth[1]:.2f} after training",
            agrees=growth[0] >= AGREEING,
        ),
        _saturation(cases),
    ]


def _curve(cases: Sequence[Case], varied: str, trained: bool) -> tuple[list[float], list[float]]:
    found = _medians(cases, varied, trained)
    return [value for value, *_ in found], [sharpness for _, sharpness, *_ in found]


def _orthogonality(cases: Sequence[Case], trained: bool) -> Claim:
    found = _medians(cases, "cosine", trained)
    first, last, name = found[0], found[-1], "trained" if trained else "untrained"
    return Claim(
        f"the orthogonality of the samples decides: the bound and λ_max rise with their cosine ({name})",
        OMAE_2026,
        f"at cosine {first[0]:g} the bound is {first[2]:.3g} and λ_max {first[1]:.3g}; at {last[0]:g} {last[2]:.3g} "
        f"and {last[1]:.3g}",
        agrees=all(one[i] < other[i] for one, other in pairwise(found) for i in (1, 2)),
    )


def _saturation(cases: Sequence[Case]) -> Claim:
    found = _medians(cases, "scale", True)
    peak = max(found, key=lambda each: each[1])
    return Claim(
        "large weights saturate the softmax of a trained network, which flattens the loss",
        "[Cohen et al. 2021](https://arxiv.org/abs/2103.00065), of cross-entropy",
        f"λ_max is largest, {peak[1]:.3g}, at scale {peak[0]:g}, and {found[-1][1]:.3g} at {found[-1][0]:g}",
        agrees=found[-1][1] < peak[1] / 2,
    )


def _figure(cases: Sequence[Case]) -> bytes:
    with style():
        axes = panels(list(PANELS.values()))
        for each, varied in zip(axes, PANELS, strict=True):
            for trained in (False, True):
                _draw(each, _medians(cases, varied, trained), trained)
            each.set_yscale("log")
            if varied != "cosine":
                each.set_xscale("log", base=2)
        axes[0].set_ylabel("median over networks")
        axes[0].legend(fontsize="x-small", framealpha=0.8, edgecolor="none", loc="best")
        return svg(axes)


def _draw(axes: Axes, found: Sequence[tuple[float, float, float, float]], trained: bool) -> None:
    label, line = ("trained", "-") if trained else ("untrained", ":")
    values = [value for value, *_ in found]
    curves = {"bound": ("v", "C1", [each[2] for each in found]), LAMBDA_MAX: ("o", "C0", [each[1] for each in found])}
    for name, (marker, color, heights) in curves.items():
        axes.plot(values, heights, marker + line, color=color, label=f"{name}, {label}", markersize=4)
