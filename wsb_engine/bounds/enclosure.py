"""Two-sided certificates for both ends of the spectrum from one Krylov run (mathematics.md, sections 5 and 6).

Inner ends are Ritz values. Outer ends are the tightest of what holds: the deterministic bound where t and q are exact,
the probabilistic one always. All are widened by a stated slack for rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from wsb_engine.bounds.deflation import bordered_maximum, remainder
from wsb_engine.bounds.lanczos_polynomial import largest_eigenvalue_bound
from wsb_engine.spectrum.lanczos import Lanczos

SLACK = 32.0
"""Each end is widened by this many units of rounding of ‖H‖, times the root of the number of steps."""
EVERY_STEP = 40
"""Up to this many steps the bounds are evaluated after each; later after every tenth."""

Kind = Literal["deterministic", "probabilistic"]


@dataclass(frozen=True)
class ExactMoments:
    """t and q, exact up to rounding."""

    trace: float
    frobenius_squared: float


@dataclass(frozen=True)
class End:
    """An interval that holds λ_max, or λ_min."""

    lower: float
    upper: float
    kind: Kind
    failure_probability: float
    """0 for a deterministic bound."""
    relative_gap: float
    """inf where the eigenvalue is 0 and the interval is not."""


@dataclass(frozen=True)
class Enclosures:
    """Both ends after some products."""

    lambda_max: End
    lambda_min: End
    products: int
    slack: float
    """By how much each end was widened for rounding."""


def enclose(
    run: Lanczos,
    *,
    moments: ExactMoments | None,
    failure_probability: float,
    relative_gap: float,
    max_products: int,
    progress: Callable[[Enclosures], None] = lambda _: None,
    expired: Callable[[], bool] = lambda: False,
) -> Enclosures:
    """Continues the run until both gaps are small enough, everything is spanned, or the products are used up.

    Args:
        run: A Lanczos run at a uniform random start; it is advanced.
        moments: Exact t and q, or None where there are none.
        failure_probability: δ of each end's probabilistic bound.
        relative_gap: At which to stop.
        max_products: Steps of the run, those taken before included.
        progress: Called with what is certified so far; may raise to stop.
        expired: Asked after each step; what is certified by then is returned.
    """
    best: Enclosures | None = None
    while best is None or not (
        max(best.lambda_max.relative_gap, best.lambda_min.relative_gap) <= relative_gap
        or run.exhausted
        or run.steps >= max_products
        or expired()
    ):
        for _ in range(1 if run.steps < EVERY_STEP else 10):
            if not run.exhausted and run.steps < max_products:
                run.step()
        best = evaluate(run, moments=moments, failure_probability=failure_probability, relative_gap=relative_gap)
        progress(best)
    return best


def evaluate(
    run: Lanczos, *, moments: ExactMoments | None, failure_probability: float, relative_gap: float
) -> Enclosures:
    """What the run certifies now; certainty goes before tightness beyond ``relative_gap``."""
    T, n, unit = run.tridiagonal, run.parameters, run.unit
    values = run.leading_ritz_values(run.steps)
    beta = run.betas[-1]
    scale = run.scale if moments is None else max(run.scale, math.sqrt(moments.frobenius_squared))
    slack = SLACK * unit * math.sqrt(run.steps) * scale
    rest = None
    if moments is not None:
        rest = remainder(moments.trace, moments.frobenius_squared, n, T, beta, unit=unit)
    deterministic: tuple[float, float] | None = None
    if run.exhausted:
        deterministic = values[0], values[-1]
    elif rest is not None:
        deterministic = -bordered_maximum(-T, beta, -rest.smallest), bordered_maximum(T, beta, rest.largest)
    # Only the steps from the start vector, before a restart, have its polynomial.
    first = run.first_breakdown or run.steps
    ritz, betas = run.leading_ritz_values(first), run.betas[:first]
    upper = max(largest_eigenvalue_bound(ritz, betas, n, failure_probability), values[-1])
    lower = min(-largest_eigenvalue_bound([-value for value in ritz], betas, n, failure_probability), values[0])
    norm = max(abs(values[0]), abs(values[-1]))

    def chosen(likely: End, certain: End | None) -> End:
        if certain is None:
            return likely
        enough = certain.relative_gap <= relative_gap
        return certain if enough or certain.relative_gap <= likely.relative_gap else likely

    def top(bound: float, risk: float) -> End:
        return _end(values[-1] - slack, bound + slack, risk, abs(values[-1]))

    def bottom(bound: float, risk: float) -> End:
        return _end(bound - slack, values[0] + slack, risk, norm)

    return Enclosures(
        lambda_max=chosen(top(upper, failure_probability), deterministic and top(deterministic[1], 0.0)),
        lambda_min=chosen(bottom(lower, failure_probability), deterministic and bottom(deterministic[0], 0.0)),
        products=run.steps,
        slack=slack,
    )


def _end(lower: float, upper: float, risk: float, scale: float) -> End:
    gap = upper - lower
    relative = gap / scale if scale > 0 else (0.0 if gap == 0 else math.inf)
    return End(lower, upper, "probabilistic" if risk else "deterministic", risk, relative)
