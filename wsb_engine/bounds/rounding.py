"""Bounds on rounding errors of H, its products and its moments (mathematics.md, section 11)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from wsb_engine.bounds.bound import ExtremeBounds, Range
from wsb_engine.bounds.wolkowicz_styan import wolkowicz_styan_within

How = Literal["proven", "measured"]

SUMS = 1e3
"""Units of rounding by which sums over samples and parameters move q, if no proof bounds them."""


@dataclass(frozen=True)
class Rounding:
    """Bounds on rounding errors, in the units of H.

    Products multiply by H + E with a fixed E, the rounding of the quantities that they keep; each product also rounds.
    """

    how: How
    operator: float
    """‖E‖_F is not above this."""
    product: float | None = None
    """‖fl((H + E) v) − (H + E) v‖ ≤ this · ‖v‖, or None if it follows from the sizes of products."""
    failure_probability: float = 0.0
    """Probability with which ``operator`` fails."""
    relative_square_error: float = 0.0
    """Error of q as summed, relative to q."""
    square_error: float = 0.0
    """Further error of q as summed, absolute."""
    trace_error: float = 0.0
    """Further error of t as summed, by √n times this."""

    @property
    def assumption(self) -> str:
        """What the bounds on rounding errors rest on, in a sentence."""
        if self.how == "proven":
            return "A running error analysis bounds every rounding error."
        if self.failure_probability:
            return "Products with independent Gaussian vectors bound the rounding errors of float32."
        return "Rounding errors are measured by perturbation, not proven."

    def trace(self, t: float, q: float, n: int) -> Range:
        """Return the range of the trace of H and of H + E, from t and q as summed for order n."""
        summed = self.relative_square_error * math.sqrt(q) + self.trace_error
        error = math.sqrt(n) * (2 * self.operator + summed)
        return t - error, t + error

    def norm(self, q: float) -> Range:
        """Return the range of the Frobenius norm of H and of H + E, from its square as summed."""
        summed = self.relative_square_error * q + self.square_error
        low = math.sqrt(max(q - summed, 0.0)) - 2 * self.operator
        return max(low, 0.0), math.sqrt(q + summed) + 2 * self.operator

    def wolkowicz_styan(self, t: float, q: float, n: int) -> ExtremeBounds:
        """Bound both ends of the spectrum of H for all that rounding may have done to t and q.

        Args:
            t: Trace, as summed.
            q: Squared Frobenius norm, as summed.
            n: Order of H.
        """
        return wolkowicz_styan_within(self.trace(t, q, n), self.norm(q), n)

    def scaled(self, factor: float) -> Rounding:
        """Return the bounds for factor · H."""
        return replace(
            self,
            operator=self.operator * factor,
            product=None if self.product is None else self.product * factor,
            square_error=self.square_error * factor * factor,
            trace_error=self.trace_error * factor,
        )


def frobenius_factor(count: int, failure_probability: float) -> float:
    """Compute x in P( ‖F‖_F² > Q/x ) ≤ δ for Q = (1/m) Σ ‖F z_i‖², Gaussian z_i and symmetric F.

    With a_j the shares of the squared eigenvalues in ‖F‖_F², E e^{−sQ/‖F‖²} = Π (1 + 2 s a_j/m)^{−m/2} is largest if
    one eigenvalue holds everything, so P ≤ exp(−(m/2)(x − 1 − ln x)) for 0 < x < 1 (mathematics.md, section 4).

    Args:
        count: m.
        failure_probability: δ.

    Returns:
        The root of x − 1 − ln x = 2 ln(1/δ)/m in (0, 1), rounded downwards.
    """
    target = 2 * math.log(1 / failure_probability) / count
    # Newton's method for s = −ln x, where e^{−s} − 1 + s is convex and rises: from above, no step passes the root.
    s = target + 1
    for _ in range(100):
        value, slope = math.exp(-s) - 1 + s - target, 1 - math.exp(-s)
        following = s - value / slope
        if following >= s or value <= 0:
            break
        s = following
    return math.exp(-s) * (1 - 1e-12)
