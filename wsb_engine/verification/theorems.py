"""The theorems behind a report's bounds, in ball arithmetic (mathematics.md, sections 2, 5, 6 and 11).

Written from the theorems, not from the code that the engine evaluates them with: it exists to find that code's faults.
Inputs are the exact values of floats. Every comparison that returns True holds for all numbers in the balls, which
enclose the exact results (Johansson 2017, *Arb: efficient arbitrary-precision midpoint-radius interval arithmetic*,
IEEE Transactions on Computers 66).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from flint import arb, ctx

PRECISION = 256
"""Bits of the balls' midpoints."""
UNIT = 2.0**-53


@contextmanager
def precisely() -> Iterator[None]:
    """Compute with ``PRECISION`` bits inside the block."""
    with ctx.workprec(PRECISION):
        yield


@dataclass(frozen=True)
class Recurrence:
    """α, β, γ of k steps: β_k belongs to the residual, γ_1 is unused."""

    alpha: Sequence[float]
    beta: Sequence[float]
    gamma: Sequence[float]

    def first(self, steps: int) -> Recurrence:
        return Recurrence(self.alpha[:steps], self.beta[:steps], self.gamma[:steps])

    def signed(self, sign: int) -> Recurrence:
        """Return the recurrence of H, or for −1 of −H."""
        return self if sign > 0 else Recurrence([-alpha for alpha in self.alpha], self.beta, self.gamma)

    @property
    def size(self) -> float:
        """The largest entry of T and β_k."""
        return max((abs(value) for part in (self.alpha, self.beta, self.gamma) for value in part), default=0.0)


class Resolvent(NamedTuple):
    """Combinations of g(τ) = (τ − T)^{-1} e_1 ≥ 0."""

    last: arb
    """g_k."""
    weighted: arb
    """Σ ε_j g_j."""
    total: arb
    """Σ g_j."""


class Ends(NamedTuple):
    """Bounds on λ_max and λ_min."""

    max_lower: arb
    max_upper: arb
    min_lower: arb
    min_upper: arb


class Known(NamedTuple):
    """Ranges of trace and Frobenius norm that contain those of H and of H + E."""

    trace_low: arb
    trace_high: arb
    norm_low: arb
    norm_high: arb


def larger(a: arb, b: arb) -> arb:
    return (a + b + abs(a - b)) / 2


def smaller(a: arb, b: arb) -> arb:
    return (a + b - abs(a - b)) / 2


def root(x: arb) -> arb:
    """Return √max(x, 0)."""
    return larger(x, arb(0)).sqrt() if x > 0 else _root_near_zero(x)


def _root_near_zero(x: arb) -> arb:
    top = x.upper()
    if not top > 0:
        return arb(0)
    return arb(0).union(top.sqrt())


def within_rounding(
    trace: float,
    square: float,
    order: int,
    *,
    operator: float,
    relative: float,
    absolute: float,
    of_trace: float,
) -> Known:
    """Widen t and q by the rounding of their sums, and by 2 ‖E‖_F for what H + E may be (section 11).

    Args:
        trace, square: t and q as summed.
        order: P.
        operator: Bound on ‖E‖_F.
        relative, absolute: Errors of q as summed, relative and further.
        of_trace: Error of t as summed, in units of √P.
    """
    t, q, E = arb(trace), arb(square), arb(operator)
    summed = arb(relative) * q + arb(absolute)
    spread = arb(order).sqrt() * (2 * E + arb(relative) * q.sqrt() + arb(of_trace))
    return Known(
        t - spread,
        t + spread,
        larger(root(q - summed) - 2 * E, arb(0)),
        (q + summed).sqrt() + 2 * E,
    )


def two_traces(known: Known, order: int) -> Ends:
    """Bound both ends for every trace and norm in these ranges (Wolkowicz and Styan 1980, Theorem 2.1).

    m + s√(n−1) and m + s/√(n−1) are concave in t = n m at a fixed norm f: the former rises up to t = f, so that it is
    largest in the range as near to f as possible, and the latter is smallest at an end of the range. λ_min mirrors it.
    """
    if order == 1:
        return Ends(known.trace_low, known.trace_high, known.trace_low, known.trace_high)

    def ends(t: arb, f: arb) -> tuple[arb, arb, arb, arb]:
        m = t / order
        s = root(f * f / order - m * m)
        inner, outer = s / arb(order - 1).sqrt(), s * arb(order - 1).sqrt()
        return m + inner, m + outer, m - outer, m - inner

    low, high, f, least = known.trace_low, known.trace_high, known.norm_high, known.norm_low
    top = ends(smaller(larger(f, low), high), f)[1]
    bottom = ends(smaller(larger(-f, low), high), f)[2]
    at_low, at_high = ends(low, least), ends(high, least)
    return Ends(smaller(at_low[0], at_high[0]), top, bottom, larger(at_low[3], at_high[3]))


def overlap(order: int, delta: float) -> arb:
    """Compute c with P(|u·q_1| ≤ c) ≤ δ for the stored start vector q_1, rounded from the uniform sphere (section 6).

    The density of u·v is at most √((n−1)/(2π)) for n ≥ 3. The direction of q_1 is rounded by u, its length by
    (n/2 + 2) u at most.
    """
    n, d = arb(order), arb(delta)
    if order == 1:
        c = arb(1)
    elif order == 2:
        c = (arb.pi() * d / 2).sin()
    else:
        c = smaller(d / (2 * ((n - 1) / (2 * arb.pi())).sqrt()), arb(1))
    return c * (1 - (n / 2 + 2) * UNIT) - 2 * UNIT


def density_peak(order: int) -> arb:
    """Compute the largest density of u·v on the sphere in R^n, n ≥ 3: Γ(n/2) / (√π Γ((n−1)/2))."""
    n = arb(order)
    return ((n / 2).lgamma() - ((n - 1) / 2).lgamma()).exp() / arb.pi().sqrt()


def resolvent(tau: arb, recurrence: Recurrence, epsilon: Sequence[float]) -> Resolvent | None:
    """Evaluate g(τ); None unless τ is certainly above λ_max(T).

    Args:
        tau: τ.
        recurrence: α, β, γ.
        epsilon: ε_j ≥ ‖f_j‖.
    """
    alpha, beta, gamma = recurrence.alpha, recurrence.beta, recurrence.gamma
    pivots, coupled = [], arb(0)
    for j in range(len(alpha) - 1, -1, -1):
        pivot = tau - arb(alpha[j]) - coupled
        if not pivot > 0:
            return None
        pivots.append(pivot)
        coupled = arb(beta[j - 1]) * arb(gamma[j]) / pivot if j else arb(0)
    pivots.reverse()
    g = 1 / pivots[0]
    weighted, total = arb(epsilon[0]) * g, g
    for j in range(1, len(alpha)):
        g = g * arb(beta[j - 1]) / pivots[j]
        weighted, total = weighted + arb(epsilon[j]) * g, total + g
    return Resolvent(g, weighted, total)


def start_vector_holds(
    tau: arb, recurrence: Recurrence, epsilon: Sequence[float], order: int, delta: float, *, evaluation: float = 0.0
) -> bool:
    """Return whether λ_1 ≤ τ follows from the start vector: h(τ) = (1 + u) β_k g_k + Σ ε_j g_j ≤ c (section 6).

    Args:
        tau: τ.
        recurrence: α, β, γ.
        epsilon: ε_j ≥ ‖f_j‖.
        order: P.
        delta: δ.
        evaluation: Added to each ε_j, for the rounding of an evaluation in floats.
    """
    found = resolvent(tau, recurrence, epsilon)
    if found is None:
        return False
    length = 1 + (arb(order) / 2 + 2) * UNIT
    h = length * arb(recurrence.beta[-1]) * found.last + found.weighted + arb(evaluation) * found.total
    return bool(h <= overlap(order, delta))


def remainder(
    known: Known, trace_known: bool, recurrence: Recurrence, order: int, eta: float, *, margin: float = 0.0
) -> arb | None:
    """Bound the largest eigenvalue φ of the complement of the basis (section 5); None if that is empty.

    Args:
        known: Ranges of t and ‖H‖_F.
        trace_known: False if only the norm is, and then φ = ‖F‖_F.
        recurrence: α, and β as the symmetric T has it.
        order: P.
        eta: η, the distance of H in the Frobenius norm to a matrix of which the factorisation is exact.
        margin: Relative increase of q, for the rounding of an evaluation in floats.
    """
    k = len(recurrence.alpha)
    if k == order:
        return None
    whole = (known.norm_high + arb(eta)) ** 2
    squares = sum((arb(a) ** 2 for a in recurrence.alpha), arb(0))
    squares += 2 * sum((arb(b) ** 2 for b in recurrence.beta), arb(0))
    f = root(whole * (1 + arb(margin)) - squares)
    if not trace_known:
        return f
    inside = sum((arb(a) for a in recurrence.alpha), arb(0))
    shift = arb(2 * k + 2).sqrt() * arb(eta)
    left = Known(known.trace_low - inside - shift, known.trace_high - inside + shift, arb(0), f)
    return smaller(two_traces(left, order - k).max_upper, f)


def bordered_below(tau: arb, recurrence: Recurrence, corner: arb | None) -> bool:
    """Return whether τ is certainly above λ_max [ T  βe_k ; βe_kᵀ  φ ], or without a corner above λ_max(T).

    All pivots of τ − M are positive if and only if it is positive definite.
    """
    pivot = None
    beta = recurrence.beta
    for j, alpha in enumerate(recurrence.alpha):
        pivot = tau - arb(alpha) - (arb(beta[j - 1]) ** 2 / pivot if pivot is not None else 0)
        if not pivot > 0:
            return False
    if corner is None or pivot is None:
        return corner is None or bool(tau > corner)
    return bool(tau - corner - arb(beta[-1]) ** 2 / pivot > 0)


def norm_factor(count: int, delta: float) -> arb:
    """Compute the x in (0, 1) with x − 1 − ln x = 2 ln(1/δ)/m, in P(‖F‖_F² > Q/x) ≤ δ (section 4), by bisection."""
    target = 2 * -arb(delta).log() / count
    low, high = arb(0), target + 2  # of −ln x, in which e^{−s} − 1 + s rises from 0
    for _ in range(PRECISION):
        middle = ((low + high) / 2).mid()
        if (-middle).exp() - 1 + middle < target:
            low = middle
        else:
            high = middle
    return (-low.union(high)).exp()
