"""The stage of an analysis that evaluates every registered bound."""

from __future__ import annotations

from wsb_engine import report as r
from wsb_engine.bounds import registry
from wsb_engine.bounds.bound import Bound, ExtremeBounds, Quantities
from wsb_engine.bounds.frobenius_norm import FROBENIUS_NORM
from wsb_engine.bounds.rounding import Rounding
from wsb_engine.bounds.wolkowicz_styan import WOLKOWICZ_STYAN


def evaluate(quantities: Quantities, rounding: Rounding) -> list[r.NamedBound]:
    """Evaluate the bounds for which the quantities suffice.

    Args:
        quantities: From the moments, rounding included.
        rounding: What they assume of rounding.
    """
    found = ((bound, bound.evaluate(quantities)) for bound in registry.BOUNDS)
    return [_named(bound, ends, quantities, rounding) for bound, ends in found if ends is not None]


def from_moments(bounds: list[r.NamedBound]) -> r.Bounds | None:
    """Select the bound for ``bounds.wolkowicz_styan`` of the report, where it was before bounds had names."""
    for bound in bounds:
        if bound.name in (WOLKOWICZ_STYAN.name, FROBENIUS_NORM.name):
            ends = r.ExtremeBounds(lambda_max=bound.lambda_max, lambda_min=bound.lambda_min)
            return r.Bounds(wolkowicz_styan=ends)
    return None


def _named(bound: Bound, ends: ExtremeBounds, quantities: Quantities, rounding: Rounding) -> r.NamedBound:
    chance = quantities.failure_probability
    return r.NamedBound(
        name=bound.name,
        assumptions=[*bound.assumptions, rounding.assumption],
        kind="probabilistic" if chance else "deterministic",
        failure_probability=chance or None,
        lambda_max=r.Interval(lower=ends.lambda_max_lower, upper=ends.lambda_max_upper),
        lambda_min=r.Interval(lower=ends.lambda_min_lower, upper=ends.lambda_min_upper),
    )
