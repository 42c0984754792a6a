"""Blocks of H formed in chunks of their rows, H_lk = Σ_s w_s X_sᵀ Y_s: for samples that outnumber parameters."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wsb_engine.curvature.closed_form.layout import Layout, triangle
from wsb_engine.curvature.closed_form.mlp import Network
from wsb_engine.curvature.closed_form.tiles import Block, Tile, off_diagonal_scale


def row_dots(x: Tensor, y: Tensor) -> Tensor:
    """Return x_s·y_s, (B,) float64."""
    dots: Tensor = torch.linalg.vecdot(x, y, dim=1)
    return dots.double()


def chunks_of(net: Network, layout: Layout, block: Block, parts: int) -> list[slice]:
    l, k = block
    row, column = net.layers[l], net.layers[k]
    if l == k:
        total, unit = triangle(row.width), triangle(row.d_out) * 8 * 2 + 2 * layout.tile * layout.itemsize
    else:
        total = row.d_out
        unit = column.parameters * (row.width * 8 * 2 + 3 * layout.tile * layout.itemsize)
    size = max(1, min(math.ceil(total / parts), int(layout.memory / 2 // unit)))
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def outer_factors(net: Network, block: Block, tile: Tile, chunk: slice) -> tuple[Tensor, Tensor]:
    """Return X (B, r) and Y (B, c) with h_s[chunk of block] = X_sᵀ Y_s."""
    l, k = block
    row, column = net.layers[l], net.layers[k]
    augmented = row.augmented(tile.passes.a[l])
    if l == k:
        # Symmetric twice: A in its indices, ã ãᵀ in its own.
        rows, columns = torch.triu_indices(row.width, row.width, device=augmented.device)[:, chunk]
        pairs = augmented.index_select(1, rows).mul_(augmented.index_select(1, columns))
        return pairs.mul_(off_diagonal_scale(rows, columns, augmented)), tile.packed[l, l]
    A = tile.packed[l, k][:, :, chunk].transpose(1, 2).contiguous()
    M = A.unsqueeze(3) * column.augmented(tile.passes.a[k])[:, None, None, :]
    if column.learns_weight:
        delta = tile.passes.delta[k][:, None, :, None]
        if l < k - 1:
            M[..., : column.d_in] += delta * tile.jacobian[l, k][:, :, chunk].transpose(1, 2).unsqueeze(2)
        else:
            units = torch.arange(chunk.start, chunk.stop, device=A.device)
            M[:, units - chunk.start, :, units] += (
                tile.passes.phi1[l][:, chunk].unsqueeze(2) * delta[:, 0, :, 0].unsqueeze(1)
            ).transpose(0, 1)
    return augmented, M.flatten(1)
