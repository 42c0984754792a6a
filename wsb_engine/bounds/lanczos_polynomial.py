"""Probabilistic bounds from a Lanczos run at a random start (mathematics.md, section 6).

The Lanczos polynomial p(τ) = Π (τ − θ_j) / Π β_j has ‖p(H) v_1‖ = 1. If v_1 is uniform on the sphere, its component
along an eigenvector of λ_1 is at least c with probability 1 − δ, and then |p(λ_1)| ≤ 1/c (van Dorsselaer, Hochstenbach,
van der Vorst 2000).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

HALVINGS = 200
"""Of the bracket; it shrinks to neighbouring numbers before that."""


def overlap_quantile(n: int, failure_probability: float) -> float:
    """c with P(|u·v| < c) ≤ δ for a unit vector u and v uniform on the sphere in R^n.

    u·v has a density proportional to (1 − x²)^((n−3)/2), which for n ≥ 3 is largest at 0, where it is
    Γ(n/2) / (√π Γ((n−1)/2)) ≤ √((n−1)/(2π)): c is δ over twice that.

    Args:
        n: Dimension, at least 1.
        failure_probability: 0 < δ ≤ 1/2.
    """
    if n == 1:
        return 1.0
    if n == 2:
        return math.sin(math.pi * failure_probability / 2)
    return min(1.0, failure_probability / 2 / math.sqrt((n - 1) / (2 * math.pi)))


def largest_eigenvalue_bound(ritz_values: Sequence[float], betas: Sequence[float], n: int, delta: float) -> float:
    """τ > θ_1 with |p(τ)| = 1/c: with probability 1 − δ the largest eigenvalue is not above it.

    Args:
        ritz_values: θ of the first k steps from the start vector, without a restart.
        betas: β_1..β_k of the same steps, positive; inf where the logarithms overflow is never reached.
        n: Order of H.
        delta: δ.

    Returns:
        The bound; θ_1 itself where some β is 0, which says that the space of v_1 is exhausted.
    """
    top = max(ritz_values)
    if min(betas) <= 0:
        return top
    target = sum(math.log(beta) for beta in betas) - math.log(overlap_quantile(n, delta))

    def excess(tau: float) -> float:
        return sum(math.log(tau - theta) if tau > theta else -math.inf for theta in ritz_values) - target

    width = max(top - min(ritz_values), max(betas), abs(top) * 1e-16, 1e-300)
    low, high = top, top + width
    while excess(high) < 0:
        low, width = high, 2 * width
        high = top + width
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        if not low < middle < high:
            break
        low, high = (middle, high) if excess(middle) < 0 else (low, middle)
    return high
