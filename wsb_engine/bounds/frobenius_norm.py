"""Bounds on eigenvalues from the Frobenius norm alone, for an unknown trace (mathematics.md, section 4).

    −‖H‖_F ≤ λ_n ≤ λ_1 ≤ ‖H‖_F

is the Wolkowicz-Styan bound at the trace for which it is widest. The inner ends need the norm from below, which probes
do not give: Ritz values take their place, since λ_n ≤ θ ≤ λ_1 for each of them.
"""

from __future__ import annotations

from wsb_engine.bounds.bound import Bound, ExtremeBounds, Range


def frobenius_norm(norm: float, ritz: Range | None = None) -> ExtremeBounds:
    """Bound the extreme eigenvalues.

    Args:
        norm: Upper bound on ‖H‖_F.
        ritz: A number not below λ_n and one not above λ_1.
    """
    smallest, largest = ritz or (norm, -norm)
    return ExtremeBounds(max(largest, -norm), norm, -norm, min(smallest, norm))


FROBENIUS_NORM = Bound(
    "frobenius_norm",
    ("Products with independent Gaussian vectors bound the Frobenius norm of H.",),
    lambda known: frobenius_norm(known.norm[1], known.ritz) if known.trace is None else None,
)
