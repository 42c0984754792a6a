"""Exact tr DHD and ‖DHD‖_F² of a smooth MLP, if scales are products of rows and columns (mathematics.md, section 13).

Weights and bias of a layer are two groups of parameters, each with scales u[i] v[j]; a bias has the single input 1 and
v = 1. With x the inputs of a group (v ⊙ a, or 1), groups g ≤ h of layers l ≤ k have the block x_g ⊗ M,

    M[i,p,j] = A[i,p] x_h[j] + δ[p] B[i,j],
    A = diag(u_g) A_lk diag(u_h),     δ = u_h ⊙ δ_k,     B = diag(u_g) J_lk diag(v_h),

whose second term is absent for l = k, and if h is a bias. The two groups of one layer share A_ll. Inner products of
blocks are those of section 3; every block is summed over pairs of samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from wsb_engine.curvature.closed_form.layout import MAX_TILE, TRAFFIC
from wsb_engine.curvature.closed_form.mlp import Network, Passes, forward_backward, square_blocks, step_down
from wsb_engine.curvature.closed_form.scales import LayerScale
from wsb_engine.curvature.closed_form.sums import TileSource


class Group(NamedTuple):
    """Parameters of one layer with scales u[i] v[j]: its weights, or its bias."""

    layer: int
    u: Tensor
    """(d_out,)"""
    v: Tensor | None
    """(d_in,); None for a bias."""


@dataclass(frozen=True)
class Sizes:
    """Cost of the sums."""

    tile: int
    """Samples in a tile."""
    cost: float
    """Operations, as in ``layout``."""


def groups(scales: Sequence[LayerScale]) -> list[Group] | None:
    """Return the groups of all layers in order; None if the scales of a layer's weights are no product."""
    found = []
    for layer, scale in enumerate(scales):
        if scale.W is not None:
            factors = _factors(scale.W)
            if factors is None:
                return None
            found.append(Group(layer, *factors))
        if scale.b is not None:
            found.append(Group(layer, scale.b, None))
    return found


def _factors(W: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return u and v with W = u vᵀ exactly, one of them of ones; None unless rows or columns are constant."""
    rows, columns = W[:, 0], W[0]
    if torch.equal(W, rows.unsqueeze(1).expand_as(W)):
        return rows, torch.ones_like(columns)
    if torch.equal(W, columns.expand_as(W)):
        return torch.ones_like(rows), columns
    return None


def sizes(net: Network, found: Sequence[Group], samples: int, memory: int) -> Sizes | None:
    """Choose the samples in a tile, and count the operations; None if not even single samples fit."""
    layers, item = net.layers, 8
    held, operations, build = 0, 0.0, 0.0
    for index, first in enumerate(found):
        for second in found[index:]:
            row, column = layers[first.layer], layers[second.layer]
            width = row.d_out * column.d_out
            held += width
            if second.layer > first.layer and second.v is not None:
                jacobian = row.d_out * column.d_in
                held += jacobian
                apart = second.layer > first.layer + 1
                operations += 2.0 * (jacobian + 2 * width * (1 + apart * TRAFFIC) + 2 * jacobian * apart)
                build += 2.0 * jacobian * row.d_out
            operations += 2.0 * width + 8 * TRAFFIC
            build += 2.0 * width * row.d_out
    held += sum(2 * layer.d_out**2 + layer.d_in + 6 * layer.d_out for layer in layers)
    pair = item * (12 + 3 * max(layer.d_out for layer in layers))
    tile = min(samples, MAX_TILE)
    while tile and 2 * item * held * tile + pair * tile * tile > memory / 2:
        tile //= 2
    if not tile:
        return None
    # Each tile is made again for those after it.
    tiles = math.ceil(samples / tile)
    return Sizes(tile, samples * (samples + tile) / 2 * operations + samples * build * (tiles + 1) / 2)


def scaled_moments(
    net: Network,
    source: TileSource,
    weights: Tensor,
    found: Sequence[Group],
    tile: int,
    *,
    progress: Callable[[float], None] = lambda _: None,
) -> tuple[float, float]:
    """Compute tr DHD and ‖DHD‖_F².

    Args:
        net: The network, in float64.
        source: Gives tiles of inputs and targets.
        weights: (N,) float64 on the working device, of sum 1.
        found: From ``groups``.
        tile: Samples at a time.
        progress: Called with the fraction done; may raise to stop.
    """
    starts = range(0, len(weights), tile)
    t, squares = weights.new_zeros(()), weights.new_zeros(len(found) * (len(found) + 1) // 2)
    done, pairs = 0, len(starts) * (len(starts) + 1) // 2

    def make(start: int) -> _Tile:
        a0, y = source(start, min(start + tile, len(weights)))
        return _Tile(net, forward_backward(net, a0, y), found)

    for index, start in enumerate(starts):
        first, w = make(start), weights[start : start + tile]
        for other in starts[index:]:
            second = first if other == start else make(other)
            factor = 1 if other == start else 2
            for block, (products, count) in enumerate(_products(first, second)):
                squares[block] += factor * count * (w @ products @ weights[other : other + tile])
            done += 1
            progress(done / pairs)
        t += w @ first.trace(found)
    return float(t), float(squares.sum())


class _Tile:
    """Scaled quantities of B samples, by indices of groups."""

    def __init__(self, net: Network, passes: Passes, found: Sequence[Group]) -> None:
        self.inputs = [passes.a[g.layer] * g.v if g.v is not None else torch.ones_like(passes.z[:, :1]) for g in found]
        self.delta = [passes.delta[g.layer] * g.u for g in found]
        self.A: dict[tuple[int, int], Tensor] = {}
        """A, transposed: (B, d_k, d_l)."""
        self.J: dict[tuple[int, int], Tensor] = {}
        """B, transposed: (B, d_{k−1}, d_l); (B, d_l), its diagonal, for l = k − 1."""
        squares = square_blocks(net, passes, min(g.layer for g in found))
        for k in sorted({g.layer for g in found}):
            chains = dict(_descend(net, passes, squares[k], k))
            jacobians = dict(_jacobians(net, passes, k))
            for h, column in enumerate(found):
                for g, row in enumerate(found[: h + 1]):
                    if column.layer != k:
                        continue
                    self.A[g, h] = chains[row.layer] * column.u[:, None] * row.u
                    if column.v is not None and row.layer < k:
                        J = jacobians[row.layer]
                        self.J[g, h] = J * row.u * (column.v if J.ndim == 2 else column.v[:, None])

    def trace(self, found: Sequence[Group]) -> Tensor:
        """Return the trace of each sample's Hessian, (B,)."""
        diagonals = (self.A[g, g].diagonal(dim1=1, dim2=2).sum(dim=1) for g in range(len(found)))
        sizes = (x.square().sum(dim=1) for x in self.inputs)
        return torch.stack([d * n for d, n in zip(diagonals, sizes, strict=True)]).sum(dim=0)


def _descend(net: Network, passes: Passes, top: Tensor, level: int) -> Iterator[tuple[int, Tensor]]:
    """Yield (l, Xᵀ) for l = ``level`` down to 0."""
    yield level, top
    block = top
    for l in range(level - 1, -1, -1):
        block = step_down(net, passes, l, block)
        yield l, block


def _jacobians(net: Network, passes: Passes, k: int) -> Iterator[tuple[int, Tensor]]:
    """Yield (l, J_lkᵀ) for l = k − 1, whose diagonal alone is not 0, and down to 0."""
    if k > 0:
        yield k - 1, passes.phi1[k - 1]
    if k > 1:
        top = passes.phi1[k - 1].unsqueeze(2) * net.layers[k - 1].W * passes.phi1[k - 2].unsqueeze(1)
        yield from _descend(net, passes, top, k - 2)


def _products(first: _Tile, second: _Tile) -> Iterator[tuple[Tensor, int]]:
    """Yield the inner products of the samples' blocks, (B, B′), and how often a block occurs in H."""
    K = [_gram(x, y) for x, y in zip(first.inputs, second.inputs, strict=True)]
    for g, h in first.A:
        products = _gram(first.A[g, h], second.A[g, h]).mul_(K[h])
        if (g, h) in first.J:
            products.addcmul_(_gram(first.delta[h], second.delta[h]), _gram(first.J[g, h], second.J[g, h]))
            products += _mixed(g, h, first, second)
            products += _mixed(g, h, second, first).T
        yield products.mul_(K[g]), 1 if g == h else 2


def _mixed(g: int, h: int, first: _Tile, second: _Tile) -> Tensor:
    """Return (A_s δ_t) · (B_t x_s) for s in ``first``, t in ``second``: (B, B′)."""
    A, x, delta, J = first.A[g, h], first.inputs[h], second.delta[h], second.J[g, h]
    if J.ndim == 2:
        return _gram(A * x.unsqueeze(1), delta.unsqueeze(2) * J.unsqueeze(1))
    left = torch.einsum("spi,tp->sti", A, delta)
    right = torch.einsum("tji,sj->sti", J, x)
    return (left * right).sum(dim=2)


def _gram(x: Tensor, y: Tensor) -> Tensor:
    return x.flatten(1) @ y.flatten(1).T
