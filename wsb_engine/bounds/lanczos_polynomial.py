"""Upper bounds on λ_1 from a Krylov run at a random start, whatever rounding did to it (mathematics.md, section 6).

Let H q_j = γ_j q_{j−1} + α_j q_j + β_j q_{j+1} + f_j for j = 1..k, the q_j orthogonal or not, and let T have α on
its diagonal, β below and γ above it. For τ > λ_max(T), g(τ) = (τ − T)^{-1} e_1 is non-negative and decreases in τ.
If ε_j ≥ |u_1·f_j| for the eigenvector u_1 of λ_1, and |u_1·q_1| > c, then λ_1 is at most the τ at which

    h(τ) = (1 + u) β_k g_k(τ) + Σ_j ε_j g_j(τ)

falls to c. For f = 0 this is the bound of van Dorsselaer, Hochstenbach and van der Vorst (2000), as β_k g_k = 1/p_k for
the Lanczos polynomial p_k. A uniform start has |u_1·q_1| > c with probability 1 − δ: one event for all k.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

UNIT = 2.0**-53
EVALUATION = 8.0
"""Units of max(|τ|, |T|) by which evaluating g perturbs an entry of T; added to ε."""
STRIDE = 256.0
"""Factor by which the search for the root moves away from θ_1 while h says little."""
ACCURACY = 1e-3
"""Relative accuracy, upwards, of the root's distance from θ_1."""
HARMLESS_EXPONENT = 60
"""T is not scaled if its size is within this power of two of 1."""
FARTHEST = 2.0**200
"""Multiple of ‖T‖ beyond which a root counts as infinite."""


@dataclass(frozen=True)
class Recurrence:
    """Coefficients of k Lanczos steps from the start vector, without a restart."""

    alphas: Sequence[float]
    betas: Sequence[float]
    """β_1..β_k, not negative; β_k belongs to the residual."""
    gammas: Sequence[float]
    """γ_1..γ_k, not negative; γ_1 is unused."""
    epsilons: Sequence[float]
    """ε_j ≥ ‖f_j‖."""

    @property
    def size(self) -> float:
        """The largest entry of T and β_k."""
        return max(*map(abs, self.alphas), *self.betas, *self.gammas)

    @property
    def mirrored(self) -> Recurrence:
        """The recurrence of −H."""
        return replace(self, alphas=[-alpha for alpha in self.alphas])

    @property
    def settled(self) -> Recurrence:
        """The recurrence with its residual set to 0: its bound shows what rounding alone leaves open."""
        return replace(self, betas=[*self.betas[:-1], 0.0])

    def shifted(self, exponent: int) -> Recurrence:
        """Return the recurrence of 2^exponent · H."""
        if not exponent:
            return self
        columns = (self.alphas, self.betas, self.gammas, self.epsilons)
        return Recurrence(*([math.ldexp(value, exponent) for value in column] for column in columns))


def overlap_quantile(n: int, failure_probability: float) -> float:
    """Compute c with P(|u·v| < c) ≤ δ for a unit vector u and v uniform on the sphere in R^n.

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


def largest_eigenvalue_bound(recurrence: Recurrence, n: int, delta: float, *, near: float | None = None) -> float:
    """Bound λ_1 from above, with probability 1 − δ over the start vector.

    Args:
        recurrence: Recurrence of H, or of −H for the smallest eigenvalue.
        n: Order of H.
        delta: δ.
        near: λ_max(T), from which the search starts, if it is known.

    Returns:
        The bound; inf if rounding (ε) or an early stop (β_k) hides the overlap of the start vector at every τ.
    """
    c, size = _overlap(n, delta), recurrence.size
    if c <= 0 or not math.isfinite(size) or not all(map(math.isfinite, recurrence.epsilons)):
        return math.inf
    if size == 0:
        return recurrence.epsilons[0] / c  # T = 0, so h(τ) = ε_1/τ
    exponent = _exponent(size)
    recurrence, size = recurrence.shifted(-exponent), math.ldexp(size, -exponent)
    theta = _largest_ritz_value(recurrence) if near is None else math.ldexp(near, -exponent)
    distance = _smallest_root(lambda d: _h(recurrence, n, size, theta + d) / c, UNIT * size, FARTHEST * size)
    try:
        return math.ldexp(math.nextafter(theta + distance, math.inf), exponent)
    except OverflowError:
        return math.inf


def bound_exceeds(recurrence: Recurrence, n: int, delta: float, tau: float) -> bool:
    """Return whether ``largest_eigenvalue_bound`` is above τ; costs one evaluation of h."""
    c, size = _overlap(n, delta), recurrence.size
    exponent = _exponent(size) if math.isfinite(size) else 0
    scaled, tau = recurrence.shifted(-exponent), math.ldexp(tau, -exponent)
    return not (c > 0 and _h(scaled, n, math.ldexp(size, -exponent), tau) <= c)


def _overlap(n: int, delta: float) -> float:
    """Compute c for a stored start vector: its direction is rounded by u, its length by (n/2 + 2) u at most."""
    return overlap_quantile(n, delta) * (1 - (n / 2 + 2) * UNIT) - 2 * UNIT


def _exponent(size: float) -> int:
    """Return the power of two by which to divide T lest h under- or overflow; mostly 0."""
    exponent = math.frexp(size)[1]
    return exponent if abs(exponent) > HARMLESS_EXPONENT else 0


def _smallest_root(f: Callable[[float], float], smallest: float, largest: float) -> float:
    """Find the least d with f(d) ≤ 1, up to ``ACCURACY`` too large; inf above ``largest``.

    f falls at least as fast as 1/d, so d f(d) is above the root; between points on both sides of it, the
    Illinois rule interpolates ln f over ln d.

    Args:
        f: Decreasing; inf at d = 0 at the latest.
        smallest: Start of the search.
        largest: End of the search.
    """
    near, above = smallest, f(smallest)
    if above <= 1:
        return near
    while True:
        # More than proportional lest rounding leaves it short.
        far = near * (STRIDE if above == math.inf else 1.001 * above if above < STRIDE else math.sqrt(STRIDE * above))
        if far > largest:
            return math.inf
        below = f(far)
        if below <= 1:
            break
        near, above = far, below
    high, low, last = math.log(above), _log(below), 0
    while far - near > ACCURACY * far and below < 1 - ACCURACY:
        share = high / (high - low) if math.isfinite(high - low) else 0.5
        # Aimed at the far side, where the search may end.
        middle = near * (far / near) ** min(max(share, 0.02), 0.98) * (1 + ACCURACY / 2)
        value = f(middle)
        if value <= 1:
            far, below, low = middle, value, _log(value)
            high = high / 2 if last > 0 else high
            last = 1
        else:
            near, high = middle, math.log(value)
            low = low / 2 if last < 0 else low
            last = -1
    return far


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


def _largest_ritz_value(recurrence: Recurrence) -> float:
    """Compute λ_max(T) from the symmetric matrix with off-diagonals √(β_j γ_{j+1})."""
    T = np.diag(recurrence.alphas)
    off = np.sqrt(np.multiply(recurrence.betas[:-1], recurrence.gammas[1:]))
    return float(np.linalg.eigvalsh(T + np.diag(off, 1) + np.diag(off, -1))[-1])


def _h(recurrence: Recurrence, n: int, size: float, tau: float) -> float:
    """Compute h(τ), including the rounding of its evaluation; inf if τ ≤ λ_max(T).

    With D_k = τ − α_k and D_j = τ − α_j − β_j γ_{j+1}/D_{j+1}: g_1 = 1/D_1 and g_{j+1} = β_j g_j/D_{j+1}. Rounding
    makes this the exact g of a T whose entries are off by a few units of ``size`` and τ; that is added to ε.
    """
    alphas, betas, gammas = recurrence.alphas, recurrence.betas, recurrence.gammas
    k = len(alphas)
    D, coupled = [0.0] * k, 0.0
    for j in range(k - 1, -1, -1):
        D[j] = tau - alphas[j] - coupled
        if D[j] <= 0:
            return math.inf
        coupled = betas[j - 1] * gammas[j] / D[j] if j else 0.0
    g, total, everything = 1 / D[0], recurrence.epsilons[0] / D[0], 1 / D[0]
    for j in range(1, k):
        g *= betas[j - 1] / D[j]
        total += recurrence.epsilons[j] * g
        everything += g
    residual = (1 + (n / 2 + 2) * UNIT) * betas[-1] * g
    evaluation = EVALUATION * UNIT * max(size, abs(tau)) * everything
    return (1 + 8 * k * UNIT) * (residual + total + evaluation)
