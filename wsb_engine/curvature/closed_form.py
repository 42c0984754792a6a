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
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from wsb_engine.curvature.mlp import (
    Network,
    Passes,
    diagonal_term,
    last_hidden_factor,
    passes,
    square_blocks,
    step_down,
)
from wsb_engine.curvature.plan import Plan, square_rows, triangle
from wsb_engine.errors import ResourceError

Block = tuple[int, int]
TileSource = Callable[[int, int], tuple[Tensor, Tensor]]
"""(start, stop) → a_0 (B, d_0) in the working dtype and y (B, C)."""

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


@dataclass(frozen=True)
class _Tile:
    """What a tile of B samples brings to any pair sum."""

    start: int
    w: Tensor
    """(B,) float64"""
    run: Passes
    packed: dict[Block, Tensor]
    """A_ll as (B, d(d+1)/2), or A_lkᵀ as (B, d_k, d_l)."""
    factor: dict[Block, tuple[Tensor, Tensor, Tensor]]
    """Rᵀ (B, C, d), diag R Rᵀ (B, d), v (B, d)."""
    jacobian: dict[Block, Tensor]
    """J_lkᵀ (B, d_{k−1}, d_l) for l < k − 1."""

    @property
    def rows(self) -> slice:
        return slice(self.start, self.start + len(self.w))


@dataclass
class _Sums:
    """Accumulators, float64 on the working device."""

    block_squares: Tensor
    layer_traces: Tensor
    shares: Tensor
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
        plan: From ``wsb_engine.curvature.plan.plan`` for the same network and N.
        progress: Called with the fraction done; may raise to stop.
    """
    count, samples = len(net.layers), len(weights)
    sums = _Sums(
        weights.new_zeros(count, count), weights.new_zeros(count), weights.new_zeros(samples), weights.new_zeros(())
    )
    starts = range(0, samples, plan.tile)

    def tile(start: int) -> _Tile:
        stop = min(start + plan.tile, samples)
        a0, y = source(start, stop)
        return _tile(net, plan, start, passes(net, a0, y), weights[start:stop])

    get = cache(tile) if plan.cached else tile
    visited = bool(plan.pairs) or samples <= COHERENCE_SAMPLES
    steps = _Steps(progress, visited * len(starts) * (len(starts) + 1) // 2 + len(starts) * len(plan.blocks))
    for i, start in enumerate(starts):
        first = get(start)
        _add_traces(net, plan, first, sums)
        for other in starts[i:] if visited else ():
            second = first if other == start else get(other)
            _add_pairs(net, plan, first, second, sums)
            steps.done()
    for block in plan.blocks:
        _add_block(net, plan, block, lambda: map(get, starts), sums)
        steps.done(len(starts))
    return _finish(sums, visited)


def differentiable_moments(net: Network, a0: Tensor, y: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """t and q of an unweighted batch as float64 scalars that autograd can follow; all pairs of samples at once.

    Args:
        net: The network, whose tensors may require gradients.
        a0: (N, d_0) inputs.
        y: (N, C) targets.
        plan: For N samples, of pairs only.

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
    tile = _tile(net, plan, 0, passes(net, a0, y), w)
    t = sum((_trace(net, plan, tile, l) for l in _learning(plan)), w.new_zeros(()))
    grams = _input_grams(net, plan, tile, tile)
    q = sum(
        ((1 if l == k else 2) * (w @ products @ w) for (l, k), products in _products(net, plan, tile, tile, grams)),
        w.new_zeros(()),
    )
    return t, q


class _Steps:
    def __init__(self, progress: Callable[[float], None], total: int) -> None:
        self._progress, self._total, self._count = progress, total, 0

    def done(self, steps: int = 1) -> None:
        self._count += steps
        self._progress(min(self._count / self._total, 1.0))


def _finish(sums: _Sums, visited: bool) -> ClosedForm:
    squares = sums.block_squares + sums.block_squares.triu(1).T
    return ClosedForm(
        trace=float(sums.layer_traces.sum()),
        frobenius_squared=float(squares.sum()),
        layer_traces=sums.layer_traces.cpu(),
        block_squares=squares.cpu(),
        sample_shares=sums.shares.cpu(),
        self_share=float(sums.self_share),
        coherence=sums.coherence if visited else None,
    )


def _tile(net: Network, plan: Plan, start: int, run: Passes, w: Tensor) -> _Tile:
    lowest = square_rows(plan.forms, len(net.layers))
    squares = square_blocks(net, run, lowest) if lowest < len(net.layers) else {}
    packed: dict[Block, Tensor] = {}
    factor: dict[Block, tuple[Tensor, Tensor, Tensor]] = {}
    jacobian: dict[Block, Tensor] = {}
    for (l, k), form in plan.forms.items():
        if form == "factor":
            R = last_hidden_factor(net, run)
            factor[l, k] = R, R.square().sum(dim=1), diagonal_term(net, run, l)
        elif l == k:
            packed[l, k] = _pack(squares[l])
    for k in sorted({k for l, k in plan.forms if l != k}):
        wanted = [l for l, other in plan.forms if other == k and l != k]
        packed |= {(l, k): X for l, X in _descend(net, run, squares[k], k, min(wanted)) if l in wanted}
        if net.layers[k].learns_weight and min(wanted) < k - 1:
            top = run.phi1[k - 1].unsqueeze(2) * net.layers[k - 1].W * run.phi1[k - 2].unsqueeze(1)
            chain = [(k - 2, top), *_descend(net, run, top, k - 2, min(wanted))]
            jacobian |= {(l, k): X for l, X in chain if l in wanted}
    return _Tile(start, w, run, packed, factor, jacobian)


def _descend(net: Network, run: Passes, top: Tensor, level: int, lowest: int) -> Iterator[tuple[int, Tensor]]:
    """(l, Xᵀ) for l = level − 1 down to ``lowest``, from Xᵀ at ``level``."""
    block = top
    for l in range(level - 1, lowest - 1, -1):
        block = step_down(net, run, l, block)
        yield l, block


def _pack(square: Tensor) -> Tensor:
    """Upper triangle of symmetric (B, d, d) as (B, d(d+1)/2), scaled so that dot products are ⟨·,·⟩_F."""
    rows, columns = torch.triu_indices(square.shape[1], square.shape[1], device=square.device)
    return square[:, rows, columns] * _off_diagonal_scale(rows, columns, square)


def _off_diagonal_scale(rows: Tensor, columns: Tensor, like: Tensor) -> Tensor:
    one = torch.ones((), dtype=like.dtype, device=like.device)
    return torch.where(rows == columns, one, one * math.sqrt(2))


def _learning(plan: Plan) -> list[int]:
    return sorted({l for l, k in plan.forms if l == k})


def _gram(x: Tensor, y: Tensor) -> Tensor:
    return (x.flatten(1) @ y.flatten(1).T).double()


def _add_traces(net: Network, plan: Plan, tile: _Tile, sums: _Sums) -> None:
    for l in _learning(plan):
        sums.layer_traces[l] += _trace(net, plan, tile, l)


def _trace(net: Network, plan: Plan, tile: _Tile, l: int) -> Tensor:
    """Σ_s w_s K_l(s,s) tr A_ll,s over a tile."""
    if plan.forms[l, l] == "factor":
        _, diagonal, v = tile.factor[l, l]
        trace = (diagonal + v).double().sum(dim=1)
    else:
        d = net.layers[l].d_out
        rows, columns = torch.triu_indices(d, d, device=tile.w.device)
        trace = tile.packed[l, l][:, rows == columns].double().sum(dim=1)
    norm = net.layers[l].augmented(tile.run.a[l]).double().square().sum(dim=1)
    return (tile.w * norm * trace).sum()


def _products(
    net: Network, plan: Plan, first: _Tile, second: _Tile, K: dict[int, Tensor]
) -> Iterator[tuple[Block, Tensor]]:
    """⟨h_s, h_t⟩ by block for s in ``first``, t in ``second``, (B, B′) float64; of l < k without the mirrored block."""
    for l, k in plan.pairs:
        if l == k:
            yield (l, k), K[l].square() * _square_products(plan, l, first, second)
        else:
            yield (l, k), K[l] * _cross_products(net, l, k, K[k], first, second)


def _input_grams(net: Network, plan: Plan, first: _Tile, second: _Tile) -> dict[int, Tensor]:
    """K_l of the layers that pair sums need and of the first, for its coherence; (B, B′) float64 each."""
    needed = sorted({index for block in plan.pairs for index in block} | {_learning(plan)[0]})
    return {l: _gram(*(net.layers[l].augmented(tile.run.a[l]) for tile in (first, second))) for l in needed}


def _add_pairs(net: Network, plan: Plan, first: _Tile, second: _Tile, sums: _Sums) -> None:
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


def _add_coherence(net: Network, l: int, K: Tensor, first: _Tile, second: _Tile, same: bool, sums: _Sums) -> None:
    norms = [net.layers[l].augmented(tile.run.a[l]).double().square().sum(dim=1) for tile in (first, second)]
    scale = (norms[0].unsqueeze(1) * norms[1]).sqrt()
    cosine = torch.where(scale > 0, K.abs() / scale, 0.0)
    if same:
        cosine.fill_diagonal_(0)
    sums.coherence = max(sums.coherence, min(float(cosine.max()), 1.0))


def _square_products(plan: Plan, l: int, first: _Tile, second: _Tile) -> Tensor:
    """⟨A_ll,s , A_ll,t⟩, (B, B′) float64."""
    if plan.forms[l, l] == "packed":
        return _gram(first.packed[l, l], second.packed[l, l])
    (R, rr, v), (R2, rr2, v2) = first.factor[l, l], second.factor[l, l]
    # A = R Rᵀ + diag(v): ‖R_sᵀ R_t‖² + diag(R_s R_sᵀ)·v_t + v_s·diag(R_t R_tᵀ) + v_s·v_t
    inner = R.flatten(0, 1) @ R2.flatten(0, 1).T
    squares: Tensor = inner.square().unflatten(0, R.shape[:2]).unflatten(2, R2.shape[:2]).sum(dim=(1, 3))
    return squares.double() + _gram(rr + v, v2) + _gram(v, rr2)


def _cross_products(net: Network, l: int, k: int, K: Tensor, first: _Tile, second: _Tile) -> Tensor:
    """K_k ⟨A, A⟩ + (δ·δ) ⟨J, J⟩ + c(s,t) + c(t,s) of block (l, k), (B, B′) float64."""
    products = K * _gram(first.packed[l, k], second.packed[l, k])
    if not net.layers[k].learns_weight:
        return products
    J = [tile.jacobian[l, k] if l < k - 1 else tile.run.phi1[l] for tile in (first, second)]
    products += _gram(first.run.delta[k], second.run.delta[k]) * _gram(*J)
    products += _mixed(l, k, first, second)
    products += _mixed(l, k, second, first).T
    return products


def _mixed(l: int, k: int, first: _Tile, second: _Tile) -> Tensor:
    """c_lk(s, t) for s in ``first``, t in ``second``: (B, B′) float64."""
    A, a, delta = first.packed[l, k], first.run.a[k], second.run.delta[k]
    if l == k - 1:
        # J is diagonal: Σ_ip (A_s[i,p] a_s[i]) (φ′_t[i] δ_t[p])
        return _gram(A * a.unsqueeze(1), delta.unsqueeze(2) * second.run.phi1[l].unsqueeze(1))
    left = torch.einsum("spi,tp->sti", A, delta)
    right = torch.einsum("tji,sj->sti", second.jacobian[l, k], a)
    return (left * right).sum(dim=2).double()


def _add_block(net: Network, plan: Plan, block: Block, tiles: Callable[[], Iterator[_Tile]], sums: _Sums) -> None:
    """Forms block (l, k) in chunks of rows: H_lk = Σ_s w_s X_sᵀ Y_s, then ‖·‖² and each sample's share of it."""
    l, k = block
    factor = 1 if l == k else 2
    for chunk in _chunks(net, plan, block):
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


def _chunks(net: Network, plan: Plan, block: Block) -> Iterator[slice]:
    l, k = block
    row, column = net.layers[l], net.layers[k]
    if l == k:
        total, unit = triangle(row.width), triangle(row.d_out) * 8 * 2 + 2 * plan.tile * plan.itemsize
    else:
        total = row.d_out
        unit = column.parameters * (row.width * 8 * 2 + 3 * plan.tile * plan.itemsize)
    size = max(1, min(total, int(plan.memory / 2 // unit)))
    return (slice(start, min(start + size, total)) for start in range(0, total, size))


def _outer(net: Network, block: Block, tile: _Tile, chunk: slice) -> tuple[Tensor, Tensor]:
    """X (B, r) and Y (B, c) with h_s[chunk of block] = X_sᵀ Y_s."""
    l, k = block
    row, column = net.layers[l], net.layers[k]
    augmented = row.augmented(tile.run.a[l])
    if l == k:
        # Symmetric twice: A in its indices, ã ãᵀ in its own.
        rows, columns = torch.triu_indices(row.width, row.width, device=augmented.device)[:, chunk]
        pairs = augmented[:, rows] * augmented[:, columns] * _off_diagonal_scale(rows, columns, augmented)
        return pairs, tile.packed[l, l]
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
