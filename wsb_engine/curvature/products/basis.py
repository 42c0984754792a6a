"""Exact moments of any model's Hessian from its products with the whole basis (mathematics.md, section 4)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from wsb_engine.curvature.products.autodiff import HessianProduct


def basis_moments(
    operator: HessianProduct, *, progress: Callable[[float, int], None] = lambda *_: None
) -> tuple[float, float]:
    """Compute t = Σ e_iᵀ H e_i and q = Σ ‖H e_i‖² from P products in blocks, without O(P²) memory.

    Args:
        operator: Computes H·V for blocks of columns.
        progress: Called with the fraction of columns done and the products so far; may raise to stop.
    """
    P = operator.parameters
    t = torch.zeros((), dtype=torch.float64, device=operator.device)
    q = torch.zeros_like(t)
    stop = 0
    while stop < P:
        # An operator that runs out of memory continues with fewer columns.
        start, stop = stop, min(stop + operator.columns, P)
        columns = operator(operator.basis(start, stop))
        t += columns[start:stop].diagonal().sum()
        q += columns.square().sum()
        progress(stop / P, stop)
    return float(t), float(q)
