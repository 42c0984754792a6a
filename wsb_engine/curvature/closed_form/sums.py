"""Exact tr H and ‖H‖_F² of a smooth MLP without forming H (mathematics.md, section 3; arXiv 2604.10202).

With H = Σ_s w_s h_s over samples, t = Σ_s w_s tr h_s and q = Σ_{s,t} w_s w_t ⟨h_s, h_t⟩, block by block of layers: by
pairs of samples (``inner_products``) or from the block itself (``blocks``). Products are computed in the working dtype,
sums over samples in float64. Nothing larger than a tile of samples is held unless it fits the memory limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from wsb_engine.curvature.closed_form import inner_products
from wsb_engine.curvature.closed_form.blocks import chunks_of, outer_factors, row_dots
from wsb_engine.curvature.closed_form.layout import Layout, triangle
from wsb_engine.curvature.closed_form.mlp import Network, forward_backward
from wsb_engine.curvature.closed_form.tiles import Block, Tile, make_tile
from wsb_engine.errors import ResourceError

TileSource = Callable[[int, int], tuple[Tensor, Tensor]]
"""(start, stop) → a_0 (B, d_0) in the working dtype and y (B, C)."""

SMALLEST_NORMAL = 2.0**-126
"""Smallest normal number of float32; smaller ones may count as 0."""
COHERENCE_SAMPLES = 4096
"""Up to this many samples the Gram matrix of inputs is computed for its coherence even if q doesn't need it."""


@dataclass(frozen=True)
class ClosedForm:
    """Moments of H and their parts by layer and sample. L layers, N samples; all float64 on the CPU."""

    trace: float
    frobenius_squared: float
    layer_traces: Tensor
    """(L,)"""
    block_squares: Tensor
    """(L, L) symmetric: ‖H_lk‖_F²."""
    sample_shares: Tensor
    """(N,): w_s ⟨h_s, H⟩, which sum to q."""
    self_share: float
    """Σ_s w_s² ‖h_s‖²: the part of q from pairs s = t."""
    coherence: float | None
    """max |K_0(s,t)| / √(K_0(s,s) K_0(t,t)) over s ≠ t of inputs that are not 0; None if it was not computed."""


@dataclass
class Sums:
    """Accumulators, float64 on the working device."""

    block_squares: Tensor
    """(L, L)"""
    layer_traces: Tensor
    """(L,)"""
    shares: Tensor
    """(N,)"""
    self_share: Tensor
    coherence: Tensor


def closed_form(
    net: Network,
    source: TileSource,
    weights: Tensor,
    layout: Layout,
    *,
    progress: Callable[[float], None] = lambda _: None,
) -> ClosedForm:
    """Compute t and q as ``layout`` says.

    Args:
        net: The network, in the working dtype and on the working device.
        source: Gives tiles of inputs and targets.
        weights: (N,) float64 on the working device, of sum 1.
        layout: From ``wsb_engine.curvature.closed_form.layout.cheapest_layout`` for the same network and N.
        progress: Called with the fraction done; may raise to stop.
    """
    sums = no_sums(net, weights)
    for fraction in add_terms(net, source, weights, layout, sums):
        progress(fraction)
    return finish(sums, layout)


def underflow(net: Network, source: TileSource, samples: int, tile: int) -> float:
    """Bound what q may lose of terms below the range of float32, if products are computed in float32.

    With K ≥ ‖ã_l,s‖², D ≥ ‖δ_l,s‖² and J ≥ ‖J_lk,s‖_F² (as φ′ and S are about 1), every Gram entry is off by at most
    2^−126 a term, and its factors are at most (1 + K)² (1 + D + J).

    Args:
        net: The network, on the working device.
        source: Gives tiles of inputs and targets.
        samples: N.
        tile: Samples at a time.
    """
    found = []
    for start in range(0, samples, tile):
        passes = forward_backward(net, *source(start, min(start + tile, samples)))
        largest = [torch.stack([_longest(each) for each in rows]).amax() for rows in (passes.a, passes.delta)]
        slopes = [slope.abs().amax().double() for slope in passes.phi1]
        found.append(torch.stack([*largest, torch.stack([torch.zeros_like(largest[0]), *slopes]).amax()]))
    longest, D, steepest = (float(each) for each in torch.stack(found).amax(dim=0).tolist())
    K = 1 + longest
    norms: list[float] = torch.stack([layer.W.double().square().sum() for layer in net.layers]).tolist()[1:]
    J = math.prod(max(1.0, norm * steepest**2) for norm in norms)
    terms = max(triangle(max(layer.d_in + 1, layer.d_out)) for layer in net.layers)
    return SMALLEST_NORMAL * terms * (1 + K) ** 2 * (1 + D + J)


def _longest(rows: Tensor) -> Tensor:
    """Return the largest squared norm of a row."""
    return rows.double().square().sum(dim=1).amax()


def no_sums(net: Network, weights: Tensor) -> Sums:
    """Return accumulators at 0, on the device of the weights."""
    layers, samples = len(net.layers), len(weights)
    zero = weights.new_zeros(())
    return Sums(
        weights.new_zeros(layers, layers), weights.new_zeros(layers), weights.new_zeros(samples), zero.clone(), zero
    )


def add_terms(
    net: Network, source: TileSource, weights: Tensor, layout: Layout, sums: Sums, index: int = 0, count: int = 1
) -> Iterator[float]:
    """Add every ``count``-th term from ``index`` on; yield the fraction done after each round of ``count`` terms.

    The last fraction is 1, and all indices yield the same ones, however many terms each adds.
    """
    for turn, (add, fraction) in enumerate(_terms(net, source, weights, layout, sums, count)):
        if turn % count == index:
            add()
        if turn % count == count - 1 or fraction == 1:
            yield fraction


def _terms(
    net: Network, source: TileSource, weights: Tensor, layout: Layout, sums: Sums, parts: int
) -> Iterator[tuple[Callable[[], None], float]]:
    """Yield functions that add a term, each with the fraction done after it; a block has at least ``parts`` terms."""
    starts = range(0, len(weights), layout.tile)
    held: dict[int, Tile] = {}

    def make(start: int, needed: Layout) -> Tile:
        stop = min(start + layout.tile, len(weights))
        a0, y = source(start, stop)
        return make_tile(net, needed, start, forward_backward(net, a0, y), weights[start:stop])

    def get(start: int, group: range) -> Tile:
        """Return the tile from ``start`` on; those of one group are held."""
        for other in held.keys() - set(group):
            del held[other]
        if start in held:
            return held[start]
        tile = make(start, layout)
        if start in group:
            held[start] = tile
        return tile

    def tiles_of(block: Block) -> Iterator[Tile]:
        """Yield all tiles; if not all are held, with no more than this block needs."""
        if layout.kept >= len(starts):
            yield from (get(start, starts) for start in starts)
        else:
            held.clear()
            alone = replace(layout, forms={block: layout.forms[block]})
            yield from (make(start, alone) for start in starts)

    def visit(group: range, rows: range, other: int) -> None:
        second = get(other, group)
        for start in rows:
            first = get(start, group)
            if start == other:
                _add_traces(net, layout, first, sums)
            if visited:
                _add_pairs(net, layout, first, second, sums)

    visited = _visits_pairs(layout, len(weights))
    visits = list(visits_of(layout, len(weights)))
    weight = len(visits) if visited else 0
    total = weight + len(starts) * len(layout.blocks)
    pairs, done = sum(len(rows) for _, rows, _ in visits), 0
    for group, rows, other in visits:
        done += len(rows)
        yield partial(visit, group, rows, other), weight * done / pairs / total
    for b, block in enumerate(layout.blocks):
        chunks = chunks_of(net, layout, block, parts)
        for c, chunk in enumerate(chunks, 1):
            done_blocks = len(starts) * (b + c / len(chunks))
            yield (
                partial(_add_block, net, layout, block, chunk, partial(tiles_of, block), sums),
                ((weight + done_blocks) / total),
            )


def visits_of(layout: Layout, samples: int) -> Iterator[tuple[range, range, int]]:
    """Yield group, rows and column of each term over pairs: the tiles held, and those of them that meet another one.

    Tiles are named by their first sample. Every pair occurs once; a column outside its group is computed for it.
    """
    starts = range(0, samples, layout.tile)
    pairs = _visits_pairs(layout, samples)
    for first in range(0, len(starts), layout.kept):
        group = starts[first : first + layout.kept]
        for column, other in enumerate(starts[first:] if pairs else group, first):
            rows = starts[first if pairs else column : min(column + 1, first + layout.kept)]
            if layout.kept < len(starts):
                yield group, rows, other
            else:
                # Nothing is computed twice, so that members can share single pairs.
                for row in range(len(rows)):
                    yield group, rows[row : row + 1], other


def _visits_pairs(layout: Layout, samples: int) -> bool:
    return bool(layout.pairs) or samples <= COHERENCE_SAMPLES


def differentiable_moments(net: Network, a0: Tensor, y: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Compute t and q of an unweighted batch as differentiable float64 scalars; all pairs of samples at once.

    Args:
        net: The network, whose tensors may require gradients.
        a0: (N, d_0) inputs.
        y: (N, C) targets.
        layout: Layout for N samples, of pairs only.

    Raises:
        ResourceError: ``memory_limit`` if the layout needs more than one tile.
    """
    if layout.tile < len(a0):
        raise ResourceError(
            f"{len(a0)} samples need more memory than the penalty's limit allows; {layout.tile} fit",
            code="memory_limit",
            advice="Use smaller batches.",
            samples=layout.tile,
        )
    w = torch.full((len(a0),), 1 / len(a0), dtype=torch.float64, device=a0.device)
    tile = make_tile(net, layout, 0, forward_backward(net, a0, y), w)
    t = sum((inner_products.trace(net, layout, tile, l) for l in layout.learning), w.new_zeros(()))
    grams = inner_products.input_grams(layout, tile, tile)
    q = sum(
        (
            (1 if l == k else 2) * (w @ products @ w)
            for (l, k), products in inner_products.products(net, layout, tile, tile, grams)
        ),
        w.new_zeros(()),
    )
    return t, q


def finish(sums: Sums, layout: Layout) -> ClosedForm:
    """Return t and q of all terms."""
    squares = sums.block_squares + sums.block_squares.triu(1).T
    return ClosedForm(
        trace=float(sums.layer_traces.sum()),
        frobenius_squared=float(squares.sum()),
        layer_traces=sums.layer_traces.cpu(),
        block_squares=squares.cpu(),
        sample_shares=sums.shares.cpu(),
        self_share=float(sums.self_share),
        coherence=min(float(sums.coherence), 1.0) if _visits_pairs(layout, len(sums.shares)) else None,
    )


def _add_traces(net: Network, layout: Layout, tile: Tile, sums: Sums) -> None:
    for l in layout.learning:
        sums.layer_traces[l] += inner_products.trace(net, layout, tile, l)


def _add_pairs(net: Network, layout: Layout, first: Tile, second: Tile, sums: Sums) -> None:
    """Add all pairs of samples of two tiles; nothing waits for the device."""
    same = first is second or first.start == second.start
    K = inner_products.input_grams(layout, first, second)
    rows, columns, self_shares = [], [], []
    for (l, k), products in inner_products.products(net, layout, first, second, K):
        factor = 1 if l == k else 2
        rows.append(factor * (products @ second.w))
        if same:
            self_shares.append(factor * products.diagonal())
        else:
            columns.append(factor * (first.w @ products))
    if rows:
        by_block = torch.stack(rows)
        for (l, k), square in zip(layout.pairs, (by_block @ first.w).unbind(), strict=True):
            sums.block_squares[l, k].add_(square, alpha=(1 if same else 2) / (1 if l == k else 2))
        sums.shares[first.rows].addcmul_(first.w, by_block.sum(dim=0))
    if self_shares:
        sums.self_share += torch.stack(self_shares).sum(dim=0) @ first.w.square()
    if columns:
        sums.shares[second.rows].addcmul_(second.w, torch.stack(columns).sum(dim=0))
    _add_coherence(K[layout.learning[0]], first, second, same, sums)


def _add_coherence(K: Tensor, first: Tile, second: Tile, same: bool, sums: Sums) -> None:
    cosine = K.div_(torch.outer(first.lengths, second.lengths).sqrt_()).abs_()
    if same:
        cosine.fill_diagonal_(0)
    sums.coherence = torch.maximum(sums.coherence, cosine.amax())


def _add_block(
    net: Network, layout: Layout, block: Block, chunk: slice, tiles: Callable[[], Iterator[Tile]], sums: Sums
) -> None:
    """Form some rows of block (l, k), H_lk = Σ_s w_s X_sᵀ Y_s; add ‖·‖² and each sample's share of it."""
    l, k = block
    factor = 1 if l == k else 2
    H = sums.shares.new_zeros(())
    for tile in tiles():
        X, Y = outer_factors(net, block, tile, chunk)
        H = H + ((tile.w.to(X.dtype).unsqueeze(1) * X).T @ Y).double()
    sums.block_squares[l, k] += H.square().sum()
    for tile in tiles():
        X, Y = outer_factors(net, block, tile, chunk)
        sums.shares[tile.rows] += factor * tile.w * row_dots(X @ H.to(X.dtype), Y)
        sums.self_share += factor * (tile.w.square() * row_dots(X, X) * row_dots(Y, Y)).sum()
