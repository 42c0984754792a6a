"""Rigorous bounds from a Krylov basis and two traces (mathematics.md, section 5).

Wolkowicz-Styan bounds what the basis leaves over. With orthonormal Q of k columns, T = QᵀHQ and
H Q = Q T + β q_{k+1} e_kᵀ, the complement F = Q⊥ᵀ H Q⊥ has tr F = t − tr T and ‖F‖_F² = q − ‖T‖_F² − 2β².
With φ the upper bound on its largest eigenvalue

    λ_max(T) ≤ λ_1 ≤ λ_max [ T  βe_k ; βe_kᵀ  φ ].

A computed factorisation holds exactly for a matrix within η of H: q then grows to (√q + η)², t moves by √(2k + 2) η,
and both ends move by η.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from wsb_engine.bounds.bound import Range
from wsb_engine.bounds.wolkowicz_styan import UNIT, wolkowicz_styan_within


@dataclass(frozen=True)
class Remainder:
    """Bounds on the spectrum of the complement of a Krylov space."""

    largest: float
    """φ: upper bound on the largest eigenvalue of F."""
    smallest: float
    """Lower bound on the smallest eigenvalue of F."""
    frobenius: float
    """Upper bound on ‖F‖_F."""


def remainder(t: Range | None, q: float, n: int, T: Tensor, beta: float, *, error: float = 0.0) -> Remainder | None:
    """Bound the complement of a Krylov space.

    Args:
        t: Range of the trace of H, or None if it is unknown; then φ = ‖F‖_F.
        q: Upper bound on the squared Frobenius norm of H.
        n: Order of H.
        T: (k, k) symmetric, float64.
        beta: Norm of the last residual.
        error: η, the distance in the Frobenius norm to a matrix for which the factorisation is exact.

    Returns:
        None if the complement is empty, k = n.
    """
    k = len(T)
    left = n - k
    if left == 0:
        return None
    whole = (math.sqrt(q) + error) ** 2
    # Sums of up to k² squares, whose difference may be far smaller than they are.
    squares = max(whole - float(T.square().sum()) - 2 * beta * beta, 0.0) + (3 * k + 16) * UNIT * whole
    frobenius = math.sqrt(squares)
    if t is None:
        return Remainder(frobenius, -frobenius, frobenius)
    shift = math.sqrt(2 * k + 2) * error + (k + 2) * UNIT * float(T.diagonal().abs().sum())
    inside = float(T.trace())
    b = wolkowicz_styan_within((t[0] - inside - shift, t[1] - inside + shift), (0.0, frobenius), left)
    return Remainder(min(b.lambda_max_upper, frobenius), max(b.lambda_min_lower, -frobenius), frobenius)


def bordered_eigenvalues(T: Tensor, beta: float, corner: float) -> Tensor:
    """Compute the eigenvalues of [ T  βe_k ; βe_kᵀ  φ ], ascending; (k + 1,)."""
    k = len(T)
    M = torch.zeros(k + 1, k + 1, dtype=torch.float64)
    M[:k, :k] = T
    M[k - 1, k] = M[k, k - 1] = beta
    M[k, k] = corner
    values: Tensor = torch.linalg.eigvalsh(M)
    return values


def bordered_maximum(T: Tensor, beta: float, corner: float) -> float:
    """Compute λ_max [ T  βe_k ; βe_kᵀ  φ ]."""
    return float(bordered_eigenvalues(T, beta, corner)[-1])
