"""Fresh products of the Ritz pairs that an enclosure rests on (mathematics.md, sections 6 and 11)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from wsb_engine.bounds.certificates import Enclosures
from wsb_engine.spectrum.enclosure import Enclosing
from wsb_engine.spectrum.lanczos import UNIT, Lanczos

RESIDUAL_MARGIN = 8.0
"""Rounding explains a fresh residual of so many times its own bound beyond the one that the run implies."""


@dataclass(frozen=True)
class RitzResidual:
    """What fresh products say of the outer Ritz pairs, relative to ‖H‖."""

    excess: float
    """Largest ‖Hx − θx‖ beyond the residual that the run implies; inf if an inner end lies beyond its outer end."""
    explained: float
    """What rounding explains of it."""


@dataclass(frozen=True)
class RitzPairs:
    """The outermost Ritz pairs of a run, largest first, each with a fresh product; in the units of the run."""

    values: list[float]
    expected: list[float]
    """Residuals that the run implies."""
    vectors: Tensor
    """(P, 2) unit columns"""
    images: Tensor
    """(P, 2) σH times the vectors"""


def outer_pairs(run: Lanczos) -> RitzPairs:
    """Multiply the two outermost Ritz vectors once more."""
    values, weights = torch.linalg.eigh(run.tridiagonal)
    weights = weights[:, [-1, 0]]
    X = run.combinations(weights)
    X = X / torch.linalg.vector_norm(X, dim=0)
    images = torch.stack([run.image(x) for x in X.unbind(dim=1)], dim=1)
    return RitzPairs(
        values=[float(values[-1]), float(values[0])],
        expected=(run.betas[-1] * weights[-1].abs()).tolist(),
        vectors=X,
        images=images,
    )


def confirm(enclosing: Enclosing, found: Enclosures, pairs: RitzPairs) -> tuple[Enclosures, RitzResidual]:
    """Take fresh Rayleigh quotients as inner ends, and compare fresh residuals with those that the run implies.

    A Rayleigh quotient is a lower bound on λ_max whatever vector it is of, so it needs no basis and no recurrence.

    Returns:
        The enclosure with the new inner ends, and the comparison.
    """
    run, rounding = enclosing.run, enclosing.premises.rounding
    scale, eta = run.scale, enclosing.slack("measured")[0]
    noise = enclosing.noise("measured", run.steps)[-1]
    ends, excess = [], 0.0
    for i, (sign, end) in enumerate(((1, found.lambda_max), (-1, found.lambda_min.mirrored))):
        x, image = pairs.vectors[:, i], pairs.images[:, i]
        residual = float(torch.linalg.vector_norm(image - pairs.values[i] * x))
        excess = max(excess, residual - pairs.expected[i])
        # Adding in pairs rounds by the logarithm of their number.
        dots = (math.log2(max(run.parameters, 2)) + 4) * UNIT * float(torch.linalg.vector_norm(image))
        slack = enclosing.noise(end.how, run.steps)[-1] + rounding.operator + dots
        lower = sign * _dot(x, image) / _dot(x, x) - slack
        if lower > end.upper:
            excess = math.inf
        ends.append(replace(end, lower=min(lower, end.upper), upper=max(lower, end.upper)))
    explained = RESIDUAL_MARGIN * (eta + noise)
    found = replace(found, lambda_max=ends[0], lambda_min=ends[1].mirrored)
    return found, RitzResidual(excess / scale, explained / scale) if scale else RitzResidual(0.0, 0.0)


def _dot(x: Tensor, y: Tensor) -> float:
    """x·y, added in pairs."""
    products = x * y
    while len(products) > 1:
        half = (len(products) + 1) // 2
        first, second = products[:half], products[half:]
        products = torch.cat([first[: len(second)] + second, first[len(second) :]])
    return float(products)
