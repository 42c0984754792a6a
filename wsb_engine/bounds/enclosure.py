"""Two-sided certificates for both ends of the spectrum from one Krylov run (mathematics.md, sections 5 and 6).

Inner ends are Ritz values. Outer ends are the tightest of what holds: a bound from what the basis leaves over, which is
deterministic where t and q are exact and as likely as the bound on q otherwise, and always one from the start vector.
All are widened by a stated slack for rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
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
class CertifiedNorm:
    """An upper bound on q that may fail; t is not known."""

    frobenius_squared: float
    failure_probability: float


Moments = ExactMoments | CertifiedNorm


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
    history: tuple[Enclosures, ...] = ()
    """After fewer products, in order, without histories of their own."""


def enclose(
    run: Lanczos,
    *,
    moments: Moments | None,
    failure_probability: float,
    relative_gap: float,
    max_products: int,
    both: bool = True,
    progress: Callable[[Enclosures], None] = lambda _: None,
    expired: Callable[[], bool] = lambda: False,
) -> Enclosures:
    """Continues the run until the gaps are small enough, everything is spanned, or the products are used up.

    Args:
        run: A Lanczos run at a uniform random start; it is advanced.
        moments: Exact t and q, or a bound on q that fails less often than δ, or None.
        failure_probability: δ of each end, if it is not deterministic.
        relative_gap: At which to stop.
        max_products: Steps of the run, those taken before included.
        both: Whether the gap of λ_min has to be small enough, too.
        progress: Called with what is certified so far; may raise to stop.
        expired: Asked after each step; what is certified by then is returned.
    """
    best: Enclosures | None = None
    history: list[Enclosures] = []
    while best is None or not (
        max(end.relative_gap for end in (best.lambda_max, best.lambda_min)[: 1 + both]) <= relative_gap
        or run.exhausted
        or run.steps >= max_products
        or expired()
    ):
        for _ in range(1 if run.steps < EVERY_STEP else 10):
            if not run.exhausted and run.steps < max_products:
                run.step()
        best = evaluate(run, moments=moments, failure_probability=failure_probability, relative_gap=relative_gap)
        history.append(best)
        progress(best)
    return replace(best, history=tuple(history[:-1]))


def widened(found: Enclosures, by: float) -> Enclosures:
    """The same, and its history, with each end moved outwards by so much more."""

    def end(now: End) -> End:
        width = now.upper - now.lower
        scale = width / now.relative_gap if now.relative_gap > 0 else math.inf
        return _end(now.lower - by, now.upper + by, now.failure_probability, scale)

    return replace(
        found,
        lambda_max=end(found.lambda_max),
        lambda_min=end(found.lambda_min),
        slack=found.slack + by,
        history=tuple(widened(step, by) for step in found.history),
    )


def evaluate(run: Lanczos, *, moments: Moments | None, failure_probability: float, relative_gap: float) -> Enclosures:
    """What the run certifies now; certainty goes before tightness beyond ``relative_gap``."""
    n, values = run.parameters, run.leading_ritz_values(run.steps)
    scale = run.scale
    if isinstance(moments, ExactMoments):
        scale = max(scale, math.sqrt(moments.frobenius_squared))
    slack = SLACK * run.unit * math.sqrt(run.steps) * scale
    deflated = _deflated(run, moments, values)
    # Whichever of two bounds is tighter fails only where one of them does.
    delta, risk = failure_probability, 0.0
    if isinstance(moments, CertifiedNorm) and not run.exhausted:
        risk = failure_probability
        delta -= moments.failure_probability
    # Only the steps from the start vector, before a restart, have its polynomial.
    first = run.first_breakdown or run.steps
    ritz = values if first == run.steps else run.leading_ritz_values(first)
    betas = run.betas[:first]
    upper = max(largest_eigenvalue_bound(ritz, betas, n, delta), values[-1])
    lower = min(-largest_eigenvalue_bound([-value for value in ritz], betas, n, delta), values[0])
    norm = max(abs(values[0]), abs(values[-1]))

    def chosen(likely: End, other: End | None) -> End:
        if other is None:
            return likely
        certain = other.kind == "deterministic" and other.relative_gap <= relative_gap
        return other if certain or other.relative_gap <= likely.relative_gap else likely

    def top(bound: float, risk: float) -> End:
        return _end(values[-1] - slack, bound + slack, risk, abs(values[-1]))

    def bottom(bound: float, risk: float) -> End:
        return _end(bound - slack, values[0] + slack, risk, norm)

    return Enclosures(
        lambda_max=chosen(top(upper, failure_probability), deflated and top(deflated[1], risk)),
        lambda_min=chosen(bottom(lower, failure_probability), deflated and bottom(deflated[0], risk)),
        products=run.steps,
        slack=slack,
    )


def _deflated(run: Lanczos, moments: Moments | None, values: list[float]) -> tuple[float, float] | None:
    """Bounds on λ_min and λ_max from what the basis leaves over; None where nothing is known of it."""
    if run.exhausted:
        return values[0], values[-1]
    if moments is None:
        return None
    T, beta = run.tridiagonal, run.betas[-1]
    t = moments.trace if isinstance(moments, ExactMoments) else None
    rest = remainder(t, moments.frobenius_squared, run.parameters, T, beta, unit=run.unit)
    if rest is None:
        return None
    return -bordered_maximum(-T, beta, -rest.smallest), bordered_maximum(T, beta, rest.largest)


def _end(lower: float, upper: float, risk: float, scale: float) -> End:
    gap = upper - lower
    relative = gap / scale if scale > 0 else (0.0 if gap == 0 else math.inf)
    return End(lower, upper, "probabilistic" if risk else "deterministic", risk, relative)
