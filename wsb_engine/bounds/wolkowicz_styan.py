"""Bounds on eigenvalues from two traces (Wolkowicz & Styan 1980, Theorems 2.1 and 2.2).

For a symmetric n × n matrix with trace t and squared Frobenius norm q, with m = t/n and s² = q/n − m²:

    m − s√(n−1) ≤ λ_n ≤ m − s/√(n−1)          m + s/√(n−1) ≤ λ_1 ≤ m + s√(n−1)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

UNIT = 2.0**-53


@dataclass(frozen=True)
class WolkowiczStyan:
    """The four bounds."""

    lambda_max_lower: float
    lambda_max_upper: float
    lambda_min_lower: float
    lambda_min_upper: float


def wolkowicz_styan(t: float, q: float, n: int) -> WolkowiczStyan:
    """Bounds on the extreme eigenvalues.

    Args:
        t: Trace.
        q: Squared Frobenius norm.
        n: Order of the matrix, at least 1.

    Raises:
        ValueError: if n < 1.
    """
    m, s = _mean_and_deviation(t, q, n)
    if n == 1:
        return WolkowiczStyan(t, t, t, t)
    inner, outer = s / math.sqrt(n - 1), s * math.sqrt(n - 1)
    return WolkowiczStyan(m + inner, m + outer, m - outer, m - inner)


def kth_eigenvalue(t: float, q: float, n: int, k: int) -> tuple[float, float]:
    """Lower and upper bound on the k-th largest eigenvalue λ_k, 1 ≤ k ≤ n (Theorem 2.2).

    Raises:
        ValueError: if k is outside 1..n.
    """
    if not 1 <= k <= n:
        raise ValueError(f"k must lie in 1..{n}, got {k}")
    m, s = _mean_and_deviation(t, q, n)
    return m - s * math.sqrt((k - 1) / (n - k + 1)), m + s * math.sqrt((n - k) / k)


def _mean_and_deviation(t: float, q: float, n: int) -> tuple[float, float]:
    if n < 1:
        raise ValueError(f"the order of the matrix must be at least 1, got {n}")
    m = t / n
    # t² ≤ n q holds exactly; rounding may break it.
    return m, math.sqrt(max(q / n - m * m, 0.0))


Range = tuple[float, float]
"""Lower and upper limit of a number that is not known exactly."""


def wolkowicz_styan_within(t: Range, q: Range, n: int) -> WolkowiczStyan:
    """The bounds that hold for every trace and squared Frobenius norm within these ranges.

    The outer bounds are largest, and the inner ones smallest, at t = ±√q or at an end of its range: m + s√(n−1) is
    concave in t with its maximum at √q.

    Args:
        t: Range of the trace.
        q: Range of the squared Frobenius norm, not negative.
        n: Order of the matrix, at least 1.

    Raises:
        ValueError: if n < 1.
    """
    if n == 1:
        return WolkowiczStyan(t[0], t[1], t[0], t[1])
    root = math.sqrt(q[1])
    # s² is a difference, which rounds by a few units of q/n.
    low, high = q[0] * (1 - 8 * UNIT), q[1] * (1 + 8 * UNIT)
    outer = [wolkowicz_styan(min(max(peak, t[0]), t[1]), high, n) for peak in (root, -root)]
    inner = [wolkowicz_styan(end, low, n) for end in t]
    slack = 8 * UNIT * root
    return WolkowiczStyan(
        min(b.lambda_max_lower for b in inner) - slack,
        max(b.lambda_max_upper for b in outer) + slack,
        min(b.lambda_min_lower for b in outer) - slack,
        max(b.lambda_min_upper for b in inner) + slack,
    )
