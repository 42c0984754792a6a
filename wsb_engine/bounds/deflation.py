"""Rigorous bounds from a Krylov basis and two traces (mathematics.md, section 5).

What the basis leaves over is bounded by Wolkowicz-Styan. With orthonormal Q of k columns, T = QᵀHQ and
H Q = Q T + β q_{k+1} e_kᵀ, the complement F = Q⊥ᵀ H Q⊥ has tr F = t − tr T and ‖F‖_F² = q − ‖T‖_F² − 2β².
With φ the upper bound on its largest eigenvalue

    λ_max(T) ≤ λ_1 ≤ λ_max [ T  βe_k ; βe_kᵀ  φ ].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from wsb_engine.bounds.wolkowicz_styan import wolkowicz_styan

ROUNDING = 1e3
"""‖F‖_F² is raised by this many units of rounding of q: it is what is left of a subtraction."""


@dataclass(frozen=True)
class Remainder:
    """What the complement of a Krylov space can still hold."""

    largest: float
    """φ: its largest eigenvalue is not above this."""
    smallest: float
    """Its smallest eigenvalue is not below this."""
    frobenius: float
    """Upper bound on ‖F‖_F."""


def remainder(t: float | None, q: float, n: int, T: Tensor, beta: float, *, unit: float) -> Remainder | None:
    """Bounds on the complement of a Krylov space.

    Args:
        t: Exact trace of H, or None where it is not known; then φ = ‖F‖_F.
        q: Squared Frobenius norm of H, or an upper bound on it.
        n: Order of H.
        T: (k, k).
        beta: Norm of the last residual.
        unit: Rounding unit of t, q and T.

    Returns:
        None where there is no complement, k = n.
    """
    left = n - len(T)
    if left == 0:
        return None
    squares = max(q - float(T.square().sum()) - 2 * beta * beta, 0.0) + ROUNDING * unit * q
    frobenius = math.sqrt(squares)
    if t is None:
        return Remainder(frobenius, -frobenius, frobenius)
    b = wolkowicz_styan(t - float(T.trace()), squares, left)
    return Remainder(min(b.lambda_max_upper, frobenius), max(b.lambda_min_lower, -frobenius), frobenius)


def bordered_eigenvalues(T: Tensor, beta: float, corner: float) -> Tensor:
    """Eigenvalues of [ T  βe_k ; βe_kᵀ  φ ], ascending; (k + 1,)."""
    k = len(T)
    M = torch.zeros(k + 1, k + 1, dtype=torch.float64)
    M[:k, :k] = T
    M[k - 1, k] = M[k, k - 1] = beta
    M[k, k] = corner
    values: Tensor = torch.linalg.eigvalsh(M)
    return values


def bordered_maximum(T: Tensor, beta: float, corner: float) -> float:
    """λ_max [ T  βe_k ; βe_kᵀ  φ ]."""
    return float(bordered_eigenvalues(T, beta, corner)[-1])
