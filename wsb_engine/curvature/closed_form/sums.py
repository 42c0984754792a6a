"""Exact tr H and ‖H‖_F² of a smooth MLP without forming H (mathematics.md, section 3; arXiv 2604.10202).

With H = Σ_s w_s h_s over samples, t = Σ_s w_s tr h_s and q = Σ_{s,t} w_s w_t ⟨h_s, h_t⟩, block by block of layers:

    ⟨h_s, h_t⟩_ll = K_l² ⟨A_ll,s , A_ll,t⟩
    ⟨h_s, h_t⟩_lk = K_l ( K_k ⟨A_lk,s , A_lk,t⟩ + (δ_k,s·δ_k,t) ⟨J_lk,s , J_lk,t⟩ + c_lk(s,t) + c_lk(t,s) ),  l < k
    c_lk(s,t)     = (A_lk,s δ_k,t) · (J_lk,t a_k,s)

where K_l(s,t) = ã_l,s·ã_l,t. Layers count from 0 and J is written B in mathematics.md. Products run in the working
dtype, sums over samples in float64. Nothing larger than a tile of samples is held unless it fits the memory limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from wsb_engine.curvature.closed_form.mlp import Network, passes
from wsb_engine.curvature.closed_form.plan import Plan, triangle
from wsb_engine.curvature.closed_form.tiles import Block, Tile, make_tile, off_diagonal_scale
from wsb_engine.errors import ResourceError

TileSource = Callable[[int, int], tuple[Tensor, Tensor]]
"""(start, stop) → a_0 (B, d_0) in the working dtype and y (B, C)."""

SMALLEST_NORMAL = 2.0**-126
"""Of float32; what is smaller may count as 0."""
COHERENCE_SAMPLES = 4096
"""Up to this many samples the Gram matrix of inputs is visited for its coherence even when q doesn't need it."""


@dataclass(frozen=True)
class ClosedForm:
    """Moments of H and where they come from. L layers, N samples; all float64 on the CPU."""

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
    """max |K_0(s,t)| / √(K_0(s,s) K_0(t,t)) over s ≠ t of inputs that are not 0; None where it wasn't visited."""


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
    coherence: float = 0.0


def closed_form(
    net: Network,
    source: TileSource,
    weights: Tensor,
    plan: Plan,
    *,
    progress: Callable[[float], None] = lambda _: None,
) -> ClosedForm:
    """Sums t and q as ``plan`` says.

    Args:
        net: The network, in the working dtype and on the working device.
        source: Gives tiles of inputs and targets.
        weights: (N,) float64 on the working device, of sum 1.
        plan: From ``wsb_engine.curvature.closed_form.plan.plan`` for the same network and N.
        progress: Called with the fraction done; may raise to stop.
    """
    sums = no_sums(net, weights)
    for fraction in add_terms(net, source, weights, plan, sums):
        progress(fraction)
    return finish(sums, plan)


def underflow(net: Network, source: TileSource, samples: int, tile: int) -> float:
    """What terms below the range of float32 may take from q, if products run in float32: an upper bound.

    With K ≥ ‖ã_l,s‖², D ≥ ‖δ_l,s‖² and J ≥ ‖J_lk,s‖_F² (as φ′ and S are about 1), every Gram entry is off by at most
    2^−126 a term, and what multiplies it is at most (1 + K)² (1 + D + J).

    Args:
        net: The network, on the working device.
        source: Gives tiles of inputs and targets.
        samples: N.
        tile: Samples at a time.
    """
    K = D = steepest = 0.0
    for start in range(0, samples, tile):
        run = passes(net, *source(start, min(start + tile, samples)))
        for a, delta in zip(run.a, run.delta, strict=True):
            K = max(K, 1 + float(a.double().square().sum(dim=1).max()))
            D = max(D, float(delta.double().square().sum(dim=1).max()))
        steepest = max(steepest, *(float(slope.abs().max()) for slope in run.phi1), 0.0)
    norms = [float(layer.W.double().square().sum()) for layer in net.layers[1:]]
    J = math.prod(max(1.0, norm * steepest**2) for norm in norms)
    terms = max(triangle(max(layer.d_in + 1, layer.d_out)) for layer in net.layers)
    return SMALLEST_NORMAL * terms * (1 + K) ** 2 * (1 + D + J)


def no_sums(net: Network, weights: Tensor) -> Sums:
    """Nothing added yet, on the device of the weights."""
    layers, samples = len(net.layers), len(weights)
    return Sums(
        weights.new_zeros(layers, layers), weights.new_zeros(layers), weights.new_zeros(samples), weights.new_zeros(())
    )


def add_terms(
    net: Network, source: TileSource, weights: Tensor, plan: Plan, sums: Sums, index: int = 0, count: int = 1
) -> Iterator[float]:
    """Adds every ``count``-th term from ``index`` on; gives the fraction done after each round of ``count`` terms.

    The last fraction is 1, and all indices see the same ones, however many terms fall to each.
    """
    for turn, (add, fraction) in enumerate(_terms(net, source, weights, plan, sums, count)):
        if turn % count == index:
            add()
        if turn % count == count - 1 or fraction == 1:
            yield fraction


def _terms(
    net: Network, source: TileSource, weights: Tensor, plan: Plan, sums: Sums, parts: int
) -> Iterator[tuple[Callable[[], None], float]]:
    """What there is to add, each with the fraction done after it; a block comes in at least ``parts`` parts."""
    starts = range(0, len(weights), plan.tile)
    held: dict[int, Tile] = {}

    def make(start: int, layout: Plan) -> Tile:
        stop = min(start + plan.tile, len(weights))
        a0, y = source(start, stop)
        return make_tile(net, layout, start, passes(net, a0, y), weights[start:stop])

    def get(start: int, group: range) -> Tile:
        """The tile from ``start`` on; those of one group are held."""
        for other in held.keys() - set(group):
            del held[other]
        if start in held:
            return held[start]
        tile = make(start, plan)
        if start in group:
            held[start] = tile
        return tile

    def tiles_of(block: Block) -> Iterator[Tile]:
        """All tiles, with no more than this block needs where not all are held."""
        if plan.kept >= len(starts):
            yield from (get(start, starts) for start in starts)
        else:
            held.clear()
            alone = replace(plan, forms={block: plan.forms[block]})
            yield from (make(start, alone) for start in starts)

    def visit(group: range, rows: range, other: int) -> None:
        second = get(other, group)
        for start in rows:
            first = get(start, group)
            if start == other:
                _add_traces(net, plan, first, sums)
            if visited:
                _add_pairs(net, plan, first, second, sums)

    visited = _visits_pairs(plan, len(weights))
    visits = list(visits_of(plan, len(weights)))
    weight = len(visits) if visited else 0
    total = weight + len(starts) * len(plan.blocks)
    pairs, done = sum(len(rows) for _, rows, _ in visits), 0
    for group, rows, other in visits:
        done += len(rows)
        yield partial(visit, group, rows, other), weight * done / pairs / total
    for b, block in enumerate(plan.blocks):
        chunks = _chunks(net, plan, block, parts)
        for c, chunk in enumerate(chunks, 1):
            done_blocks = len(starts) * (b + c / len(chunks))
            yield (
                partial(_add_block, net, plan, block, chunk, partial(tiles_of, block), sums),
                ((weight + done_blocks) / total),
            )


def visits_of(plan: Plan, samples: int) -> Iterator[tuple[range, range, int]]:
    """Group, rows and column of each term over pairs: which tiles are held, and which of them meet which one.

    Tiles are named by their first sample. Every pair comes once, and a column outside of its group is made for it.
    """
    starts = range(0, samples, plan.tile)
    pairs = _visits_pairs(plan, samples)
    for first in range(0, len(starts), plan.kept):
        group = starts[first : first + plan.kept]
        for column, other in enumerate(starts[first:] if pairs else group, first):
            rows = starts[first if pairs else column : min(column + 1, first + plan.kept)]
            if plan.kept < len(starts):
                yield group, rows, other
            else:
                # Nothing is made twice, so that members can share single pairs.
                for row in range(len(rows)):
                    yield group, rows[row : row + 1], other


def _visits_pairs(plan: Plan, samples: int) -> bool:
    return bool(plan.pairs) or samples <= COHERENCE_SAMPLES


def differentiable_moments(net: Network, a0: Tensor, y: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """t and q of an unweighted batch as float64 scalars that autograd can follow; all pairs of samples at once.

    Args:
        net: The network, whose tensors may require gradients.
        a0: (N, d_0) inputs.
        y: (N, C) targets.
        plan: Plan for N samples, of pairs only.

    Raises:
        ResourceError: ``memory_limit`` where the plan needs more than one tile.
    """
    if plan.tile < len(a0):
        raise ResourceError(
            f"{len(a0)} samples need more memory than the penalty's limit allows; {plan.tile} fit",
            code="memory_limit",
            advice="Use smaller batches.",
            samples=plan.tile,
        )
    w = torch.full((len(a0),), 1 / len(a0), dtype=torch.float64, device=a0.device)
    tile = make_tile(net, plan, 0, passes(net, a0, y), w)
    t = sum((_trace(net, plan, tile, l) for l in _learning(plan)), w.new_zeros(()))
    grams = _input_grams(net, plan, tile, tile)
    q = sum(
        ((1 if l == k else 2) * (w @ products @ w) for (l, k), products in _products(net, plan, tile, tile, grams)),
        w.new_zeros(()),
    )
    return t, q


def finish(sums: Sums, plan: Plan) -> ClosedForm:
    """t and q of all terms."""
    squares = sums.block_squares + sums.block_squares.triu(1).T
    return ClosedForm(
        trace=float(sums.layer_traces.sum()),
        frobenius_squared=float(squares.sum()),
        layer_traces=sums.layer_traces.cpu(),
        block_squares=squares.cpu(),
        sample_shares=sums.shares.cpu(),
        self_share=float(sums.self_share),
        coherence=sums.coherence if _visits_pairs(plan, len(sums.shares)) else None,
    )


def _learning(plan: Plan) -> list[int]:
    return sorted({l for l, k in plan.forms if l == k})


def _gram(x: Tensor, y: Tensor) -> Tensor:
    return (x.flatten(1) @ y.flatten(1).T).double()


def _add_traces(net: Network, plan: Plan, tile: Tile, sums: Sums) -> None:
    for l in _learning(plan):
        sums.layer_traces[l] += _trace(net, plan, tile, l)


def _trace(net: Network, plan: Plan, tile: Tile, l: int) -> Tensor:
    """Σ_s w_s K_l(s,s) tr A_ll,s over a tile."""
    if plan.forms[l, l] == "factor":
        _, diagonal, v = tile.factor[l, l]
        trace = (diagonal + v).double().sum(dim=1)
    else:
        d = net.layers[l].d_out
        rows, columns = torch.triu_indices(d, d, device=tile.w.device)
        trace = tile.packed[l, l].index_select(1, (rows == columns).nonzero().squeeze(1)).double().sum(dim=1)
    norm = net.layers[l].augmented(tile.run.a[l]).double().square().sum(dim=1)
    return (tile.w * norm * trace).sum()


def _products(
    net: Network, plan: Plan, first: Tile, second: Tile, K: dict[int, Tensor]
) -> Iterator[tuple[Block, Tensor]]:
    """⟨h_s, h_t⟩ by block for s in ``first``, t in ``second``, (B, B′) float64; of l < k without the mirrored block."""
    for l, k in plan.pairs:
        if l == k:
            yield (l, k), K[l].square() * _square_products(plan, l, first, second)
        else:
            yield (l, k), K[l] * _cross_products(net, l, k, K[k], first, second)


def _input_grams(net: Network, plan: Plan, first: Tile, second: Tile) -> dict[int, Tensor]:
    """K_l of the layers that pair sums need and of the first, for its coherence; (B, B′) float64 each."""
    needed = sorted({index for block in plan.pairs for index in block} | {_learning(plan)[0]})
    return {l: _gram(*(net.layers[l].augmented(tile.run.a[l]) for tile in (first, second))) for l in needed}


def _add_pairs(net: Network, plan: Plan, first: Tile, second: Tile, sums: Sums) -> None:
    same = first is second or first.start == second.start
    total = first.w.new_zeros(len(first.w), len(second.w))
    K = _input_grams(net, plan, first, second)
    for (l, k), products in _products(net, plan, first, second, K):
        square = first.w @ products @ second.w
        sums.block_squares[l, k] += square if same else 2 * square
        total += products if l == k else 2 * products
    sums.shares[first.rows] += first.w * (total @ second.w)
    if same:
        sums.self_share += (first.w.square() * total.diagonal()).sum()
    else:
        sums.shares[second.rows] += second.w * (first.w @ total)
    l = _learning(plan)[0]
    _add_coherence(net, l, K[l], first, second, same, sums)


def _add_coherence(net: Network, l: int, K: Tensor, first: Tile, second: Tile, same: bool, sums: Sums) -> None:
    norms = [net.layers[l].augmented(tile.run.a[l]).double().square().sum(dim=1) for tile in (first, second)]
    scale = (norms[0].unsqueeze(1) * norms[1]).sqrt()
    cosine = torch.where(scale > 0, K.abs() / scale, 0.0)
    if same:
        cosine.fill_diagonal_(0)
    sums.coherence = max(sums.coherence, min(float(cosine.max()), 1.0))


def _square_products(plan: Plan, l: int, first: Tile, second: Tile) -> Tensor:
    """⟨A_ll,s , A_ll,t⟩, (B, B′) float64."""
    if plan.forms[l, l] == "packed":
        return _gram(first.packed[l, l], second.packed[l, l])
    (R, rr, v), (R2, rr2, v2) = first.factor[l, l], second.factor[l, l]
    # A = R Rᵀ + diag(v): ‖R_sᵀ R_t‖² + diag(R_s R_sᵀ)·v_t + v_s·diag(R_t R_tᵀ) + v_s·v_t
    inner = R.flatten(0, 1) @ R2.flatten(0, 1).T
    squares: Tensor = inner.square().unflatten(0, R.shape[:2]).unflatten(2, R2.shape[:2]).sum(dim=(1, 3))
    return squares.double() + _gram(rr + v, v2) + _gram(v, rr2)


def _cross_products(net: Network, l: int, k: int, K: Tensor, first: Tile, second: Tile) -> Tensor:
    """K_k ⟨A, A⟩ + (δ·δ) ⟨J, J⟩ + c(s,t) + c(t,s) of block (l, k), (B, B′) float64."""
    products = K * _gram(first.packed[l, k], second.packed[l, k])
    if not net.layers[k].learns_weight:
        return products
    J = [tile.jacobian[l, k] if l < k - 1 else tile.run.phi1[l] for tile in (first, second)]
    products += _gram(first.run.delta[k], second.run.delta[k]) * _gram(*J)
    products += _mixed(l, k, first, second)
    products += _mixed(l, k, second, first).T
    return products


def _mixed(l: int, k: int, first: Tile, second: Tile) -> Tensor:
    """c_lk(s, t) for s in ``first``, t in ``second``: (B, B′) float64."""
    A, a, delta = first.packed[l, k], first.run.a[k], second.run.delta[k]
    if l == k - 1:
        # J is diagonal: Σ_ip (A_s[i,p] a_s[i]) (φ′_t[i] δ_t[p])
        return _gram(A * a.unsqueeze(1), delta.unsqueeze(2) * second.run.phi1[l].unsqueeze(1))
    left = torch.einsum("spi,tp->sti", A, delta)
    right = torch.einsum("tji,sj->sti", second.jacobian[l, k], a)
    return (left * right).sum(dim=2).double()


def _add_block(
    net: Network, plan: Plan, block: Block, chunk: slice, tiles: Callable[[], Iterator[Tile]], sums: Sums
) -> None:
    """Forms some rows of block (l, k), H_lk = Σ_s w_s X_sᵀ Y_s, then ‖·‖² and each sample's share of it."""
    l, k = block
    factor = 1 if l == k else 2
    H = sums.shares.new_zeros(())
    for tile in tiles():
        X, Y = _outer(net, block, tile, chunk)
        H = H + ((tile.w.to(X.dtype).unsqueeze(1) * X).T @ Y).double()
    sums.block_squares[l, k] += H.square().sum()
    for tile in tiles():
        X, Y = _outer(net, block, tile, chunk)
        sums.shares[tile.rows] += factor * tile.w * _row_dots(X @ H.to(X.dtype), Y)
        sums.self_share += factor * (tile.w.square() * _row_dots(X, X) * _row_dots(Y, Y)).sum()


def _row_dots(x: Tensor, y: Tensor) -> Tensor:
    """x_s·y_s, (B,) float64."""
    dots: Tensor = torch.linalg.vecdot(x, y, dim=1)
    return dots.double()


def _chunks(net: Network, plan: Plan, block: Block, parts: int) -> list[slice]:
    l, k = block
    row, column = net.layers[l], net.layers[k]
    if l == k:
        total, unit = triangle(row.width), triangle(row.d_out) * 8 * 2 + 2 * plan.tile * plan.itemsize
    else:
        total = row.d_out
        unit = column.parameters * (row.width * 8 * 2 + 3 * plan.tile * plan.itemsize)
    size = max(1, min(math.ceil(total / parts), int(plan.memory / 2 // unit)))
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def _outer(net: Network, block: Block, tile: Tile, chunk: slice) -> tuple[Tensor, Tensor]:
    """X (B, r) and Y (B, c) with h_s[chunk of block] = X_sᵀ Y_s."""
    l, k = block
    row, column = net.layers[l], net.layers[k]
    augmented = row.augmented(tile.run.a[l])
    if l == k:
        # Symmetric twice: A in its indices, ã ãᵀ in its own.
        rows, columns = torch.triu_indices(row.width, row.width, device=augmented.device)[:, chunk]
        pairs = augmented.index_select(1, rows).mul_(augmented.index_select(1, columns))
        return pairs.mul_(off_diagonal_scale(rows, columns, augmented)), tile.packed[l, l]
    A = tile.packed[l, k][:, :, chunk].transpose(1, 2).contiguous()
    M = A.unsqueeze(3) * column.augmented(tile.run.a[k])[:, None, None, :]
    if column.learns_weight:
        delta = tile.run.delta[k][:, None, :, None]
        if l < k - 1:
            M[..., : column.d_in] += delta * tile.jacobian[l, k][:, :, chunk].transpose(1, 2).unsqueeze(2)
        else:
            units = torch.arange(chunk.start, chunk.stop, device=A.device)
            M[:, units - chunk.start, :, units] += (
                tile.run.phi1[l][:, chunk].unsqueeze(2) * delta[:, 0, :, 0].unsqueeze(1)
            ).transpose(0, 1)
    return augmented, M.flatten(1)
