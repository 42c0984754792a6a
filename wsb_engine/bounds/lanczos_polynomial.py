"""Probabilistic bounds from a Lanczos run at a random start (mathematics.md, section 6).

The Lanczos polynomial p(τ) = Π (τ − θ_j) / Π β_j has ‖p(H) v_1‖ = 1. If v_1 is uniform on the sphere, its component
along an eigenvector of λ_1 is at least c with probability 1 − δ, and then |p(λ_1)| ≤ 1/c (van Dorsselaer, Hochstenbach,
van der Vorst 2000).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

STEPS = 100
"""Of Newton's method; about ten are enough."""


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
        betas: β_1..β_k of the same steps, not negative.
        n: Order of H.
        delta: δ.

    Returns:
        The bound, inf where it is above every number; θ_1 itself where some β is 0, which says that the space of v_1
        is exhausted.
    """
    top = max(ritz_values)
    if min(betas) <= 0:
        return top
    if max(betas) == math.inf:
        return math.inf
    target = math.fsum(math.log(beta) for beta in betas) - math.log(overlap_quantile(n, delta))
    below = [top - theta for theta in ritz_values]

    def excess(s: float) -> tuple[float, float]:
        """log |c p(θ_1 + e^s)|, and its slope: convex, with a slope from 1 to k."""
        gap = math.exp(s)
        factors = [gap + distance for distance in below]
        return math.fsum(map(math.log, factors)) - target, math.fsum(gap / factor for factor in factors)

    # No factor is below e^s, so that this is not below the root, and by convexity no step goes beyond it.
    s = target / len(below)
    try:
        for _ in range(STEPS):
            value, slope = excess(s)
            # What rounding lacks is made good by as much in s: the slope is at least 1.
            following = s - (value / slope if value > 0 else value)
            if value <= 0 or following >= s:
                s = max(s, following)
                break
            s = following
        gap = math.exp(s)
    except OverflowError:
        return math.inf
    except ValueError:  # the gap is below every number
        gap = 0.0
    return math.nextafter(top + gap, math.inf)
