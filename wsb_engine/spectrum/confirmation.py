"""Confirm an enclosure by fresh products with its outermost Ritz vectors (mathematics.md, sections 6 and 11)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from wsb_engine.bounds.certificates import Enclosures
from wsb_engine.spectrum.enclosure import Enclosing
from wsb_engine.spectrum.lanczos import UNIT, Lanczos

RESIDUAL_MARGIN = 8.0
"""Rounding explains a fresh residual that exceeds the expected one by at most this many times the rounding bound."""


@dataclass(frozen=True)
class RitzResidual:
    """Fresh residuals of the outermost Ritz pairs compared with expected ones, relative to ‖H‖."""

    excess: float
    """Largest excess of a fresh ‖Hx − θx‖ over the expected residual; inf if an inner end lies beyond its outer end."""
    explained: float
    """The excess that rounding explains."""


@dataclass(frozen=True)
class RitzPairs:
    """The outermost Ritz pairs, largest first, each with a fresh product; in the units of σH."""

    values: list[float]
    expected: list[float]
    """Residuals that the recurrence implies."""
    vectors: Tensor
    """(P, 2) unit columns"""
    images: Tensor
    """(P, 2) σH times the vectors"""


def outer_pairs(lanczos: Lanczos) -> RitzPairs:
    """Compute the two outermost Ritz pairs, and multiply their vectors once more."""
    values, weights = torch.linalg.eigh(lanczos.tridiagonal)
    weights = weights[:, [-1, 0]]
    X = lanczos.combinations(weights)
    X = X / torch.linalg.vector_norm(X, dim=0)
    images = torch.stack([lanczos.image(x) for x in X.unbind(dim=1)], dim=1)
    return RitzPairs(
        values=[float(values[-1]), float(values[0])],
        expected=(lanczos.betas[-1] * weights[-1].abs()).tolist(),
        vectors=X,
        images=images,
    )


def confirm(enclosing: Enclosing, found: Enclosures, pairs: RitzPairs) -> tuple[Enclosures, RitzResidual]:
    """Replace inner ends by fresh Rayleigh quotients, and compare fresh residuals with expected ones.

    The Rayleigh quotient of any vector is a lower bound on λ_max, so it needs no basis and no recurrence.

    Returns:
        The enclosure with the new inner ends, and the comparison.
    """
    lanczos, rounding = enclosing.lanczos, enclosing.premises.rounding
    norm, eta = lanczos.norm_estimate, enclosing.slack("measured")[0]
    noise = enclosing.noise("measured", lanczos.steps)[-1]
    ends, excess = [], 0.0
    for i, (sign, end) in enumerate(((1, found.lambda_max), (-1, found.lambda_min.mirrored))):
        x, image = pairs.vectors[:, i], pairs.images[:, i]
        residual = float(torch.linalg.vector_norm(image - pairs.values[i] * x))
        excess = max(excess, residual - pairs.expected[i])
        # The rounding of a pairwise sum grows with the logarithm of its length.
        dots = (math.log2(max(lanczos.parameters, 2)) + 4) * UNIT * float(torch.linalg.vector_norm(image))
        slack = enclosing.noise(end.how, lanczos.steps)[-1] + rounding.operator + dots
        lower = sign * _dot(x, image) / _dot(x, x) - slack
        if lower > end.upper:
            excess = math.inf
        ends.append(replace(end, lower=min(lower, end.upper), upper=max(lower, end.upper)))
    explained = RESIDUAL_MARGIN * (eta + noise)
    found = replace(found, lambda_max=ends[0], lambda_min=ends[1].mirrored)
    return found, RitzResidual(excess / norm, explained / norm) if norm else RitzResidual(0.0, 0.0)


def _dot(x: Tensor, y: Tensor) -> float:
    """Compute x·y by pairwise summation."""
    products = x * y
    while len(products) > 1:
        half = (len(products) + 1) // 2
        first, second = products[:half], products[half:]
        products = torch.cat([first[: len(second)] + second, first[len(second) :]])
    return float(products)
