"""Confirm an enclosure by fresh products with its outermost Ritz vectors (mathematics.md, sections 6 and 11)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from wsb_engine.bounds.certificates import Enclosures, End
from wsb_engine.spectrum.enclosure import Enclosing
from wsb_engine.spectrum.lanczos import Lanczos
from wsb_engine.spectrum.run import TILE, UNIT, Run, dot, norm
from wsb_engine.spectrum.three_vectors import ThreeVectors

RESIDUAL_MARGIN = 8.0
"""Rounding explains a fresh residual that exceeds the expected one by at most this many times the rounding bound."""
CLUSTER = 8.0
"""Ritz values of a run without a basis within this many units of √k ‖H‖ may be copies of one eigenvalue."""


@dataclass(frozen=True)
class RitzResidual:
    """Fresh residuals of the outermost Ritz pairs compared with expected ones, relative to ‖H‖."""

    excess: float
    """Largest excess of a fresh ‖Hx − θx‖ over the expected residual; inf if an inner end lies beyond its outer end."""
    explained: float
    """The excess that rounding explains."""


@dataclass(frozen=True)
class RitzPair:
    """What a fresh product with a Ritz vector x tells, in the units of σH."""

    expected: float
    """Residual that the recurrence implies."""
    residual: float
    """‖σHx − θx‖."""
    quotient: float
    """x·(σHx) / ‖x‖²."""
    length: float
    """‖σHx‖."""


@dataclass(frozen=True)
class RitzVectors:
    """The outermost Ritz vectors, the largest first."""

    values: list[float]
    """In the units of σH."""
    expected: list[float]
    """Residuals that the recurrence implies."""
    columns: Tensor
    """(P, 2), of norm 1"""
    shortest: float = 1.0
    """The smaller ‖Qy‖ of the two, by which rounding of the recurrence is magnified; 1 with a basis."""


@dataclass(frozen=True)
class RitzPairs:
    """The outermost Ritz pairs, multiplied once more."""

    vectors: RitzVectors
    top: RitzPair
    bottom: RitzPair


def outer_vectors(lanczos: Run) -> RitzVectors:
    """Compute the two outermost Ritz vectors, by a second pass if the run keeps no basis."""
    values, inner = torch.linalg.eigh(lanczos.tridiagonal)
    weights = inner[:, [-1, 0]]
    if not isinstance(lanczos, Lanczos):
        width = CLUSTER * math.sqrt(lanczos.steps) * lanczos.unit * lanczos.norm_estimate
        near = (values >= values[-1] - width, values <= values[0] + width)
        weights = torch.stack([_filtered(inner[:, each]) for each in near], dim=1)
    X = lanczos.combinations(weights)
    lengths = torch.linalg.vector_norm(X, dim=0)
    X /= lengths
    shortest = 1.0 if isinstance(lanczos, Lanczos) else float(lengths.min())
    expected = (lanczos.betas[-1] * weights[-1].abs() / shortest).tolist()
    return RitzVectors([float(values[-1]), float(values[0])], expected, X, shortest)


def multiplied(
    lanczos: Run, vectors: RitzVectors, use: Callable[[Tensor, Tensor], None] = lambda x, image: None
) -> RitzPairs:
    """Multiply Ritz vectors once more, one after the other.

    Args:
        lanczos: The run.
        vectors: Its outermost Ritz vectors.
        use: Called with each vector x, (P,), and σHx, which is not held any longer.
    """
    pairs = []
    for x, value, expected in zip(vectors.columns.unbind(1), vectors.values, vectors.expected, strict=True):
        image = lanczos.image(x)
        tiles = zip(image.split(TILE), x.split(TILE), strict=True)
        residual = norm(torch.stack([torch.linalg.vector_norm(part - value * of) for part, of in tiles]))
        pairs.append(RitzPair(expected, residual, dot(x, image) / dot(x, x), norm(image)))
        use(x, image)
        del image  # before the next takes as much memory
    return RitzPairs(vectors, *pairs)


def outer_pairs(lanczos: Run) -> RitzPairs:
    """Compute the two outermost Ritz pairs: ``multiplied`` of ``outer_vectors``."""
    return multiplied(lanczos, outer_vectors(lanczos))


def _filtered(copies: Tensor) -> Tensor:
    """Project e_1 onto the span of eigenvectors of T, (k, m): m > 1 if orthogonality was lost; (k,).

    A copy on its own may belong to a combination Qy that almost vanishes, while f(T) e_1 belongs to f(H) q_1.
    """
    y = copies @ copies[0]
    length = torch.linalg.vector_norm(y)
    return y / length if float(length) else copies[:, -1]


def confirm(enclosing: Enclosing, found: Enclosures, pairs: RitzPairs) -> tuple[Enclosures, RitzResidual]:
    """Replace inner ends by fresh Rayleigh quotients, and compare fresh residuals with expected ones.

    The Rayleigh quotient of any vector is a lower bound on λ_max, so it needs no basis and no recurrence.

    Returns:
        The enclosure with the new inner ends, and the comparison.
    """
    lanczos, rounding = enclosing.lanczos, enclosing.premises.rounding
    largest, eta = lanczos.norm_estimate, enclosing.slack("measured")[0]
    noise = enclosing.noise("measured", lanczos.steps)[-1]
    ends, excess = [], 0.0
    for pair, sign, end in ((pairs.top, 1, found.lambda_max), (pairs.bottom, -1, found.lambda_min.mirrored)):
        excess = max(excess, pair.residual - pair.expected)
        slack = enclosing.noise(end.how, lanczos.steps)[-1] + rounding.operator + _dot_rounding(lanczos, pair.length)
        quotient = sign * pair.quotient
        if math.nextafter(quotient - slack, -math.inf) > end.upper:
            excess = math.inf
        ends.append(_with_inner(end, quotient, slack))
    explained = RESIDUAL_MARGIN * (eta / pairs.vectors.shortest + noise)
    found = _with_ends(lanczos, found, ends[0], ends[1].mirrored)
    return found, RitzResidual(excess / largest, explained / largest) if largest else RitzResidual(0.0, 0.0)


def unconfirmed(enclosing: Enclosing, found: Enclosures) -> Enclosures:
    """Replace the provisional inner ends of a run without a basis by its own Rayleigh quotients, at no product."""
    lanczos, rounding = enclosing.lanczos, enclosing.premises.rounding
    if not isinstance(lanczos, ThreeVectors):
        return found
    ends = []
    for sign, end in ((1, found.lambda_max), (-1, found.lambda_min.mirrored)):
        quotients = zip(lanczos.quotients, enclosing.noise(end.how, lanczos.steps), lanczos.norms, strict=True)
        found_here = [
            (sign * value, noise + _dot_rounding(lanczos, length) + rounding.operator)
            for value, noise, length in quotients
        ]
        ends.append(_with_inner(end, *max(found_here, key=lambda pair: pair[0] - pair[1])))
    return _with_ends(lanczos, found, ends[0], ends[1].mirrored)


def _with_inner(end: End, value: float, slack: float) -> End:
    """Replace the inner end of an interval for λ_max; what lies above the outer end swaps places with it."""
    # Without slack nothing was rounded: H is 0.
    lower = math.nextafter(value - slack, -math.inf) if slack else value
    derivation = replace(end.derivation, inner=value, inner_slack=slack)
    return replace(end, lower=min(lower, end.upper), upper=max(lower, end.upper), derivation=derivation)


def _with_ends(lanczos: Run, found: Enclosures, top: End, bottom: End) -> Enclosures:
    """Replace both ends; without a basis move inner ends of earlier steps, which were provisional, out to them."""
    history = found.history
    if not isinstance(lanczos, Lanczos):
        history = tuple(
            replace(
                step,
                lambda_max=replace(step.lambda_max, lower=min(step.lambda_max.lower, top.lower)),
                lambda_min=replace(step.lambda_min, upper=max(step.lambda_min.upper, bottom.upper)),
            )
            for step in history
        )
    return replace(found, lambda_max=top, lambda_min=bottom, history=history)


def _dot_rounding(lanczos: Run, length: float) -> float:
    """Bound the rounding of a unit vector's dot product with a vector of this length, summed by pairs."""
    return (math.log2(max(lanczos.parameters, 2)) + 4) * UNIT * length
