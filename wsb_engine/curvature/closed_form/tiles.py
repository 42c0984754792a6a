"""Per-sample quantities of a tile of samples, in the forms that the closed form's layout asks for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from wsb_engine.curvature.closed_form.layout import Layout, square_rows
from wsb_engine.curvature.closed_form.mlp import (
    Network,
    Passes,
    diagonal_term,
    last_hidden_factor,
    square_blocks,
    step_down,
)

Block = tuple[int, int]


@dataclass(frozen=True)
class Tile:
    """Quantities of B samples that meet those of another tile."""

    start: int
    w: Tensor
    """(B,) float64"""
    passes: Passes
    packed: dict[Block, Tensor]
    """A_ll as (B, d(d+1)/2), or A_lkᵀ as (B, d_k, d_l)."""
    factor: dict[Block, tuple[Tensor, Tensor, Tensor]]
    """Rᵀ (B, C, d), diag R Rᵀ (B, d), v (B, d)."""
    jacobian: dict[Block, Tensor]
    """J_lkᵀ (B, d_{k−1}, d_l) for l < k − 1."""
    augmented: dict[int, Tensor]
    """ã_l of the layers that learn, (B, width)."""
    lengths: Tensor
    """‖ã‖² of the first of them, (B,) float64; inf for 0, which coheres with nothing."""

    @property
    def rows(self) -> slice:
        return slice(self.start, self.start + len(self.w))


def make_tile(net: Network, layout: Layout, start: int, passes: Passes, w: Tensor) -> Tile:
    """Compute what the layout needs of the B samples from ``start`` on, from their passes and weights w (B,)."""
    lowest = square_rows(layout.forms, len(net.layers))
    squares = square_blocks(net, passes, lowest) if lowest < len(net.layers) else {}
    packed: dict[Block, Tensor] = {}
    factor: dict[Block, tuple[Tensor, Tensor, Tensor]] = {}
    jacobian: dict[Block, Tensor] = {}
    for (l, k), form in layout.forms.items():
        if form == "factor":
            R = last_hidden_factor(net, passes)
            factor[l, k] = R, R.square().sum(dim=1), diagonal_term(net, passes, l)
        elif l == k:
            packed[l, k] = _pack(squares[l])
    for k in sorted({k for l, k in layout.forms if l != k}):
        wanted = [l for l, other in layout.forms if other == k and l != k]
        packed |= {(l, k): X for l, X in _descend(net, passes, squares[k], k, min(wanted)) if l in wanted}
        if net.layers[k].learns_weight and min(wanted) < k - 1:
            top = passes.phi1[k - 1].unsqueeze(2) * net.layers[k - 1].W * passes.phi1[k - 2].unsqueeze(1)
            chain = [(k - 2, top), *_descend(net, passes, top, k - 2, min(wanted))]
            jacobian |= {(l, k): X for l, X in chain if l in wanted}
    augmented = {l: net.layers[l].augmented(passes.a[l]) for l in layout.learning or _learning(net)}
    lengths = next(iter(augmented.values())).double().square().sum(dim=1)
    lengths = lengths.masked_fill(lengths == 0, math.inf)
    return Tile(start, w, passes, packed, factor, jacobian, augmented, lengths)


def _learning(net: Network) -> list[int]:
    return [l for l, layer in enumerate(net.layers) if layer.width]


def _descend(net: Network, passes: Passes, top: Tensor, level: int, lowest: int) -> Iterator[tuple[int, Tensor]]:
    """Yield (l, Xᵀ) for l = level − 1 down to ``lowest``, from Xᵀ at ``level``."""
    block = top
    for l in range(level - 1, lowest - 1, -1):
        block = step_down(net, passes, l, block)
        yield l, block


def _pack(square: Tensor) -> Tensor:
    """Return the upper triangle of symmetric (B, d, d) as (B, d(d+1)/2), scaled so that dot products are ⟨·,·⟩_F."""
    d = square.shape[1]
    rows, columns = torch.triu_indices(d, d, device=square.device)
    # On a CPU a ninth of the time of square[:, rows, columns].
    packed = square.flatten(1).index_select(1, rows * d + columns)
    return packed.mul_(off_diagonal_scale(rows, columns, square))


def off_diagonal_scale(rows: Tensor, columns: Tensor, like: Tensor) -> Tensor:
    one = torch.ones((), dtype=like.dtype, device=like.device)
    return torch.where(rows == columns, one, one * math.sqrt(2))
