"""Traces of the samples' Hessians, and inner products of their blocks between two tiles (mathematics.md, section 3).

    ⟨h_s, h_t⟩_ll = K_l² ⟨A_ll,s , A_ll,t⟩
    ⟨h_s, h_t⟩_lk = K_l ( K_k ⟨A_lk,s , A_lk,t⟩ + (δ_k,s·δ_k,t) ⟨J_lk,s , J_lk,t⟩ + c_lk(s,t) + c_lk(t,s) ),  l < k
    c_lk(s,t)     = (A_lk,s δ_k,t) · (J_lk,t a_k,s)

where K_l(s,t) = ã_l,s·ã_l,t. Layers count from 0. Products run in the working dtype; results are float64.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from wsb_engine.curvature.closed_form.layout import Layout
from wsb_engine.curvature.closed_form.mlp import Network
from wsb_engine.curvature.closed_form.tiles import Block, Tile


def trace(net: Network, layout: Layout, tile: Tile, l: int) -> Tensor:
    """Return Σ_s w_s K_l(s,s) tr A_ll,s over a tile."""
    if layout.forms[l, l] == "factor":
        _, diagonal, v = tile.factor[l, l]
        trace = (diagonal + v).double().sum(dim=1)
    else:
        d = net.layers[l].d_out
        row = torch.arange(d, device=tile.w.device)
        diagonal = row * (2 * d + 1 - row) // 2  # where the packed rows begin
        trace = tile.packed[l, l].index_select(1, diagonal).double().sum(dim=1)
    norm = tile.augmented[l].double().square().sum(dim=1)
    return (tile.w * norm * trace).sum()


def products(
    net: Network, layout: Layout, first: Tile, second: Tile, K: dict[int, Tensor]
) -> Iterator[tuple[Block, Tensor]]:
    """Yield ⟨h_s, h_t⟩ by block (l, k), l ≤ k, for s in ``first`` and t in ``second``, (B, B′) float64 each."""
    for l, k in layout.pairs:
        if l == k:
            yield (l, k), _square_products(layout, l, first, second).mul_(K[l]).mul_(K[l])
        else:
            yield (l, k), _cross_products(net, l, k, K[k], first, second).mul_(K[l])


def input_grams(layout: Layout, first: Tile, second: Tile) -> dict[int, Tensor]:
    """Return K_l of the layers that pairs need, and of the first for its coherence, (B, B′) float64 each."""
    needed = sorted({index for block in layout.pairs for index in block} | {layout.learning[0]})
    return {l: _gram(first.augmented[l], second.augmented[l]) for l in needed}


def _square_products(layout: Layout, l: int, first: Tile, second: Tile) -> Tensor:
    """Return ⟨A_ll,s , A_ll,t⟩, (B, B′) float64."""
    if layout.forms[l, l] == "packed":
        return _gram(first.packed[l, l], second.packed[l, l])
    (R, rr, v), (R2, rr2, v2) = first.factor[l, l], second.factor[l, l]
    # A = R Rᵀ + diag(v): ‖R_sᵀ R_t‖² + diag(R_s R_sᵀ)·v_t + v_s·diag(R_t R_tᵀ) + v_s·v_t
    inner = R.flatten(0, 1) @ R2.flatten(0, 1).T
    squares: Tensor = inner.square().unflatten(0, R.shape[:2]).unflatten(2, R2.shape[:2]).sum(dim=(1, 3))
    return squares.double() + _gram(rr + v, v2) + _gram(v, rr2)


def _cross_products(net: Network, l: int, k: int, K: Tensor, first: Tile, second: Tile) -> Tensor:
    """Return K_k ⟨A, A⟩ + (δ·δ) ⟨J, J⟩ + c(s,t) + c(t,s) of block (l, k), (B, B′) float64."""
    products = _gram(first.packed[l, k], second.packed[l, k]).mul_(K)
    if not net.layers[k].learns_weight:
        return products
    J = [tile.jacobian[l, k] if l < k - 1 else tile.passes.phi1[l] for tile in (first, second)]
    products.addcmul_(_gram(first.passes.delta[k], second.passes.delta[k]), _gram(*J))
    products += _mixed(l, k, first, second)
    products += _mixed(l, k, second, first).T
    return products


def _mixed(l: int, k: int, first: Tile, second: Tile) -> Tensor:
    """Return c_lk(s, t) for s in ``first``, t in ``second``: (B, B′) float64."""
    A, a, delta = first.packed[l, k], first.passes.a[k], second.passes.delta[k]
    if l == k - 1:
        # J is diagonal: Σ_ip (A_s[i,p] a_s[i]) (φ′_t[i] δ_t[p])
        return _gram(A * a.unsqueeze(1), delta.unsqueeze(2) * second.passes.phi1[l].unsqueeze(1))
    left = torch.einsum("spi,tp->sti", A, delta)
    right = torch.einsum("tji,sj->sti", second.jacobian[l, k], a)
    return (left * right).sum(dim=2).double()


def _gram(x: Tensor, y: Tensor) -> Tensor:
    return (x.flatten(1) @ y.flatten(1).T).double()
