"""Hessian-vector products of an MLP by hand: the forward and backward quantities are computed once and kept.

For a direction V with blocks V_l, U_l for weights and biases, the derivative R{·} along V of the usual passes is

    R{h_l} = V_l a_{l−1} + U_l + W_l R{a_{l−1}},      R{a_l} = φ_l′ ⊙ R{h_l}
    R{δ_L} = S R{z},   R{δ_l} = φ_l′ ⊙ (W_{l+1}ᵀ R{δ_{l+1}} + V_{l+1}ᵀ δ_{l+1}) + φ_l″ ⊙ R{h_l} ⊙ W_{l+1}ᵀ δ_{l+1}

and H·V has the blocks Σ_s w_s (R{δ_l} a_{l−1}ᵀ + δ_l R{a_{l−1}}ᵀ) and Σ_s w_s R{δ_l} (Pearlmutter 1994, *Fast exact
multiplication by the Hessian*, Neural Computation 6).

Arrays are laid out (d, m, B) for width d, m columns and B samples, so that each product is one matrix product.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from wsb_engine.curvature.closed_form.mlp import Network, diagonal_term, forward_backward
from wsb_engine.curvature.closed_form.sums import TileSource
from wsb_engine.curvature.losses.base import across
from wsb_engine.curvature.products.autodiff import COLUMNS, HessianProduct, Objective
from wsb_engine.model import MLP

CACHE_SHARE = 0.25
"""Share of the memory limit for the quantities of all samples; beyond it they are recomputed for every block."""
INTERMEDIATES = 4
"""Arrays of a layer's width that one column holds for each sample at once."""


@dataclass(frozen=True)
class _Chunk:
    """Quantities of B samples, transposed: (d, B) each, or (d, 1, B) if they meet columns."""

    a: list[Tensor]
    delta: list[Tensor]
    weighted_delta: list[Tensor]
    phi1: list[Tensor]
    bend: list[Tensor]
    """φ_l″ ⊙ W_{l+1}ᵀ δ_{l+1}"""
    curvature: Callable[[Tensor], Tensor]
    """Multiplies (C, m, B) float64 by S and the scale of H, in place."""
    w: Tensor
    """(B,) in the working dtype."""


class MLPProduct(HessianProduct):
    """H·V of an MLP for blocks of columns.

    Args:
        objective: The loss; its selected parameters fix the order of H.
        mlp: Names of each layer's tensors.
        net: The same layers with their tensors.
        source: Gives tiles of a_0 and targets.
        memory: Bytes to work in.
        columns: Number of columns to multiply at once.
    """

    def __init__(
        self,
        objective: Objective,
        mlp: MLP,
        net: Network,
        source: TileSource,
        *,
        memory: int,
        columns: int = COLUMNS,
    ) -> None:
        super().__init__(objective, columns)
        self._mlp, self._net, self._source = mlp, net, source
        widths = sum(layer.d_in + layer.d_out for layer in net.layers)
        samples = len(objective.targets.weights)
        room = memory * CACHE_SHARE / objective.dtype.itemsize
        self._rows = max(1, min(samples, int(room // (INTERMEDIATES * widths * self.columns))))
        self._cached: dict[int, _Chunk] | None = {} if INTERMEDIATES * widths * samples <= room else None

    def __call__(self, V: Tensor) -> Tensor:
        directions = self._directions(V)
        total = torch.zeros(V.shape, dtype=torch.float64, device=V.device)
        # Parameters of no layer keep 0: the logits don't depend on them.
        selected = self.objective.selected
        sums = dict(zip(selected, total.split([w.numel() for w in selected.values()]), strict=True))
        for start in range(0, len(self.objective.targets.weights), self._rows):
            self.objective.pause()
            chunk = self._chunk(start)
            for name, part in self._backward(chunk, directions, *self._forward(chunk, directions)).items():
                sums[name] += part
        return total

    @property
    def description(self) -> str:
        kept = "nothing" if self._cached is None else "everything"
        return f"{self._rows} samples at a time, {kept} kept between products"

    def smaller(self) -> MLPProduct | None:
        if self._rows == 1:
            return None
        less = copy.copy(self)
        less._rows, less._cached = self._rows // 2, None
        return less

    def _directions(self, V: Tensor) -> dict[str, Tensor]:
        """Return (d_out, m, d_in) by name of a weight, (d_out, m, 1) by name of a bias."""
        selected = self.objective.selected
        pieces = dict(zip(selected, V.split([tensor.numel() for tensor in selected.values()]), strict=True))
        for layer, dense in zip(self._net.layers, self._mlp.layers, strict=True):
            if layer.learns_weight:
                shape = (layer.d_in, layer.d_out, -1) if dense.transposed else (layer.d_out, layer.d_in, -1)
                piece = pieces[dense.weight].reshape(shape)
                pieces[dense.weight] = piece.permute((1, 2, 0) if dense.transposed else (0, 2, 1)).contiguous()
            if layer.learns_bias and dense.bias is not None:
                pieces[dense.bias] = pieces[dense.bias].unsqueeze(2)
        return pieces

    def _chunk(self, start: int) -> _Chunk:
        if self._cached is not None and start in self._cached:
            return self._cached[start]
        stop = min(start + self._rows, len(self.objective.targets.weights))
        passes = forward_backward(self._net, *self._source(start, stop))
        w = self.objective.targets.weights[start:stop].to(self.dtype)
        chunk = _Chunk(
            a=[a.T.contiguous() for a in passes.a],
            delta=[delta.T.contiguous() for delta in passes.delta],
            weighted_delta=[(w.unsqueeze(1) * delta).T.contiguous() for delta in passes.delta],
            phi1=[across(phi) for phi in passes.phi1],
            bend=[across(diagonal_term(self._net, passes, l)) for l in range(len(passes.phi1))],
            curvature=passes.loss.column_product(self._net.scale),
            w=w,
        )
        if self._cached is not None:
            self._cached[start] = chunk
        return chunk

    def row_forms(self, V: Tensor, column: Tensor) -> Tensor:
        """Compute scale · vᵀ∇²ℓ_s v of each row, (N,) float64 on the CPU (mathematics.md, section 14).

        With R{·} as above, the form of a row is

            R{z}ᵀ ∇²ℓ R{z} + Σ_l φ_l″ ⊙ W_{l+1}ᵀ δ_{l+1} · R{h_l}² + 2 Σ_l δ_l · V_l R{a_{l−1}}

        Args:
            V: (P, m) directions in the working dtype.
            column: (N,) int64 on the CPU: the direction of each row; −1 for rows to leave out, whose form is 0.
        """
        directions, total = self._directions(V), torch.zeros(len(column), dtype=torch.float64)
        for start in range(0, len(column), self._rows):
            self.objective.pause()
            forms = self._chunk_forms(self._chunk(start), directions).cpu()
            chosen = column[start : start + forms.shape[1]]
            picked = forms.gather(0, chosen.clamp(min=0).unsqueeze(0)).squeeze(0)
            total[start : start + len(chosen)] = torch.where(chosen < 0, 0.0, picked)
        return total

    def _chunk_forms(self, chunk: _Chunk, directions: dict[str, Tensor]) -> Tensor:
        """Return the forms of a chunk along each column, (m, B) float64."""
        rh, ra = self._forward(chunk, directions)
        rz = rh[-1].double()
        total = (rz * chunk.curvature(rz.clone())).sum(dim=0)
        for bend, slope in zip(chunk.bend, rh, strict=False):
            total += (bend * slope.square()).sum(dim=0, dtype=torch.float64)
        for l, (layer, dense) in enumerate(zip(self._net.layers, self._mlp.layers, strict=True)):
            before = ra[l]
            if layer.learns_weight and before is not None:
                moved = directions[dense.weight].transpose(0, 1) @ before.transpose(0, 1)
                total += 2 * (moved * chunk.delta[l]).sum(dim=1, dtype=torch.float64)
        return total

    def _forward(self, chunk: _Chunk, directions: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor | None]]:
        """Return R{h_l} of each layer, (d, m, B), and R{a} of its input; None where nothing below it learns."""
        layers, columns = self._net.layers, next(iter(directions.values())).shape[1]
        ra: list[Tensor | None] = [None]
        rh: list[Tensor] = []
        for l, (layer, dense) in enumerate(zip(layers, self._mlp.layers, strict=True)):
            start = chunk.a[l].new_zeros(1, 1)
            if layer.learns_bias and dense.bias is not None:
                start = directions[dense.bias].flatten(0, 1)
            if layer.learns_weight:
                h = torch.addmm(start, directions[dense.weight].flatten(0, 1), chunk.a[l])
            else:
                # Copied because h is written into, even for one sample, whose expanded direction is contiguous already.
                h = start.expand(layer.d_out * columns, len(chunk.w)).clone(memory_format=torch.contiguous_format)
            before = ra[l]
            if before is not None:
                by_width = h.view(layer.d_out, -1)
                torch.addmm(by_width, layer.W, before.flatten(1), out=by_width)
            rh.append(h.view(layer.d_out, columns, -1))
            if l < len(chunk.phi1):
                ra.append(chunk.phi1[l] * rh[l])
        return rh, ra

    def _backward(
        self, chunk: _Chunk, directions: dict[str, Tensor], rh: list[Tensor], ra: list[Tensor | None]
    ) -> dict[str, Tensor]:
        layers = self._net.layers
        rz = rh[-1].to(torch.float64, copy=True)
        rdelta = chunk.curvature(rz).to(self.dtype)
        parts: dict[str, Tensor] = {}
        for l in range(len(layers) - 1, -1, -1):
            layer, dense, m = layers[l], self._mlp.layers[l], rdelta.shape[1]
            weighted = rdelta * chunk.w
            if layer.learns_weight:
                block = (weighted.flatten(0, 1) @ chunk.a[l].T).view(layer.d_out, m, layer.d_in)
                before = ra[l]
                if before is not None:
                    other = before.flatten(0, 1) @ chunk.weighted_delta[l].T
                    block += other.view(layer.d_in, m, layer.d_out).permute(2, 1, 0)
                parts[dense.weight] = block.permute((2, 0, 1) if dense.transposed else (0, 2, 1)).reshape(-1, m)
            if layer.learns_bias and dense.bias is not None:
                parts[dense.bias] = weighted.sum(dim=2)
            if l > 0:
                inner = layer.W.T @ rdelta.flatten(1)
                if layer.learns_weight:
                    V = directions[dense.weight].permute(2, 1, 0)
                    by_column = inner.view(layer.d_in * m, -1)
                    torch.addmm(by_column, V.flatten(0, 1), chunk.delta[l], out=by_column)
                rdelta = inner.view(layer.d_in, m, -1).mul_(chunk.phi1[l - 1]).addcmul_(chunk.bend[l - 1], rh[l - 1])
        return parts
