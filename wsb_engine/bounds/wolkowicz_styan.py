"""Bounds on eigenvalues from two traces (Wolkowicz & Styan 1980, Theorem 2.1).

For a symmetric n × n matrix with trace t and squared Frobenius norm q, with m = t/n and s² = q/n − m²:

    m − s√(n−1) ≤ λ_n ≤ m − s/√(n−1)          m + s/√(n−1) ≤ λ_1 ≤ m + s√(n−1)
"""

from __future__ import annotations

import math

from wsb_engine.bounds.bound import Bound, ExtremeBounds, Range

UNIT = 2.0**-53


def wolkowicz_styan(t: float, q: float, n: int) -> ExtremeBounds:
    """Bound the extreme eigenvalues.

    Args:
        t: Trace.
        q: Squared Frobenius norm.
        n: Order of the matrix, at least 1.

    Raises:
        ValueError: if n < 1.
    """
    if n < 1:
        raise ValueError(f"the order of the matrix must be at least 1, got {n}")
    if n == 1:
        return ExtremeBounds(t, t, t, t)
    m = t / n
    # t² ≤ n q holds exactly; rounding may break it.
    s = math.sqrt(max(q / n - m * m, 0.0))
    inner, outer = s / math.sqrt(n - 1), s * math.sqrt(n - 1)
    return ExtremeBounds(m + inner, m + outer, m - outer, m - inner)


def wolkowicz_styan_within(t: Range, norm: Range, n: int) -> ExtremeBounds:
    """Bound the extreme eigenvalues for every trace and Frobenius norm within these ranges.

    The outer bounds are largest at t = ±‖H‖_F, or at the end of t's range that is nearest, and the inner ones smallest
    at an end of it: m + s√(n−1) and m + s/√(n−1) are concave in t.

    Args:
        t: Range of the trace.
        norm: Range of the Frobenius norm, not negative.
        n: Order of the matrix, at least 1.

    Raises:
        ValueError: if n < 1.
    """
    if n == 1:
        # The ends of t's range were rounded to the nearest.
        slack = 8 * UNIT * max(abs(t[0]), abs(t[1]))
        least, most = t[0] - slack, t[1] + slack
        return ExtremeBounds(least, most, least, most)
    # Near 1, so that no square leaves the range of numbers.
    exponent = math.frexp(max(norm[1], abs(t[0]), abs(t[1])))[1]
    t = math.ldexp(t[0], -exponent), math.ldexp(t[1], -exponent)
    low, root = math.ldexp(norm[0], -exponent), math.ldexp(norm[1], -exponent)
    # s² is a difference, which rounds by a few units of q/n.
    outer = [wolkowicz_styan(min(max(peak, t[0]), t[1]), root * root * (1 + 8 * UNIT), n) for peak in (root, -root)]
    inner = [wolkowicz_styan(end, low * low * (1 - 8 * UNIT), n) for end in t]
    slack = 8 * UNIT * root
    ends = (
        min(b.lambda_max_lower for b in inner) - slack,
        max(b.lambda_max_upper for b in outer) + slack,
        min(b.lambda_min_lower for b in outer) - slack,
        max(b.lambda_min_upper for b in inner) + slack,
    )
    return ExtremeBounds(*(math.ldexp(end, exponent) for end in ends))


WOLKOWICZ_STYAN = Bound(
    "wolkowicz_styan",
    ("The trace and the Frobenius norm of H are exact but for rounding.",),
    lambda known: None if known.trace is None else wolkowicz_styan_within(known.trace, known.norm, known.order),
)
