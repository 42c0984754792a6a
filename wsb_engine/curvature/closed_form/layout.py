"""Cost and memory model of the closed form: the form in which each block of H is summed, and the size of tiles.

A block (l, k) of H = Σ_s w_s ã_l ⊗ M_s is summed in one of these forms, all exact:

    pairs, packed   ⟨h_s, h_t⟩ for all pairs of samples, from Gram matrices of flattened blocks
    pairs, factor   the same with A = R Rᵀ + diag(v), for the last hidden layer (‖R_sᵀ R_t‖², better for wide layers)
    block           the block itself, formed in chunks of its rows: better when samples outnumber parameters

Costs are floating-point operations plus a charge for memory traffic; they rank forms and predict no times.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from operator import itemgetter
from typing import Literal, NamedTuple

from wsb_engine.curvature.closed_form.mlp import Network
from wsb_engine.errors import ResourceError

Form = Literal["packed", "factor", "block"]

MAX_TILE = 1024
"""Samples in a tile: beyond this, products of Gram matrices gain nothing."""
MIN_TILE = 64
"""Smaller tiles cost more in calls than they save; only a lack of memory calls for them."""
MIN_TILES = 4
"""Tiles to aim for: the symmetry in (s, t) saves up to half of the work only between different tiles."""
LAUNCHES_LAYER, LAUNCHES_PAIR, LAUNCHES_BLOCK = 60.0, 14.0, 16.0
"""Kernels that a GPU starts for each layer of a tile, for a pair of tiles, and for each block of a pair."""
TRAFFIC = 12.0
"""Operations that touching a number once costs, relative to one multiply-add of a matrix product."""
TILES_SHARE = 7 / 8
"""Share of the memory for tiles and their pairs; half of the memory if blocks are formed as well."""
BLOCK_TOUCHES = 8
"""Number of times that forming a block touches each entry of a sample's rows."""


def triangle(n: int) -> int:
    """Return the number of entries of a packed symmetric n × n matrix."""
    return n * (n + 1) // 2


@dataclass(frozen=True)
class Layout:
    """The form of each block, and the tiles."""

    forms: dict[tuple[int, int], Form]
    """By block (l, k), l ≤ k, of layers that learn."""
    tile: int
    """Samples in a tile."""
    kept: int
    """Tiles that are held at once. If there are more, the held ones meet all later ones before the next are made."""
    memory: int
    """Bytes to work in."""
    itemsize: int
    """Item size of the working dtype, in bytes."""
    cost: float
    """Approximate number of operations: 1e11 take seconds on two cores."""

    @property
    def learning(self) -> list[int]:
        """Layers that learn."""
        return sorted({l for l, k in self.forms if l == k})

    @property
    def pairs(self) -> list[tuple[int, int]]:
        return [block for block, form in self.forms.items() if form != "block"]

    @property
    def blocks(self) -> list[tuple[int, int]]:
        return [block for block, form in self.forms.items() if form == "block"]


def cheapest_layout(
    net: Network,
    samples: int,
    *,
    memory: int,
    itemsize: int,
    prefer: Literal["auto", "pairs", "block"] = "auto",
    tiles: int = MIN_TILES,
    launch: float = 0.0,
) -> Layout:
    """Choose the cheapest form for each block and the largest useful tile.

    Args:
        net: The network.
        samples: N.
        memory: Bytes to work in.
        itemsize: Item size of the working dtype, in bytes.
        prefer: Forces blocks by pairs, or formed blocks.
        tiles: Number of tiles to aim for.
        launch: Operations that starting a kernel costs; 0 on a CPU. Elsewhere tiles are as large as memory allows,
            unless smaller ones cost less.

    Raises:
        ResourceError: ``memory_limit`` if not even single samples fit.
    """
    layout = _plan(net, samples, memory, itemsize, prefer, tiles, launch)
    if layout is not None:
        return layout
    needed = memory
    while _plan(net, samples, needed, itemsize, prefer, tiles, launch) is None:
        needed += needed // 4 + 1
    raise ResourceError(
        f"the closed form needs {needed:,} bytes for single samples, the memory limit is {memory:,}",
        code="memory_limit",
        advice=f"Set memory_limit to at least {needed}, or analyse fewer layers with the parameters option.",
        needed=needed,
        limit=memory,
    )


def _plan(
    net: Network,
    samples: int,
    memory: int,
    itemsize: int,
    prefer: Literal["auto", "pairs", "block"],
    tiles: int,
    launch: float,
) -> Layout | None:
    """Return the cheapest layout; None if not even single samples fit."""
    learning = [index for index, layer in enumerate(net.layers) if layer.width]
    forms: dict[tuple[int, int], Form] = {}
    cost = of_pairs = 0.0
    for l in learning:
        for k in learning:
            if k < l:
                continue
            costs = _costs(net, l, k, samples, memory, itemsize)
            allowed = {
                form: c for form, c in costs.items() if prefer == "auto" or (form == "block") == (prefer == "block")
            }
            best = min(allowed or costs, key=costs.__getitem__)
            forms[l, k] = best
            cost += costs[best]
            of_pairs += costs[best] * (best != "block")
    starting = _Starting(launch, of_pairs)
    tiling = _tiling(net, forms, samples, memory, itemsize, tiles, starting)
    if tiling is None:
        return None
    tile, kept, overhead = tiling
    return Layout(forms, tile, kept, memory, itemsize, cost + overhead)


def _costs(net: Network, l: int, k: int, n: int, memory: int, itemsize: int) -> dict[Form, float]:
    row, column = net.layers[l], net.layers[k]
    pairs = n * (n + 1) / 2
    gram = 2.0 * (row.width + column.width) + 4 * TRAFFIC
    costs: dict[Form, float] = {}
    if l == k:
        costs["packed"] = pairs * (gram + 2 * triangle(row.d_out))
        if l == len(net.layers) - 2 and net.loss.convex:
            c = net.classes
            costs["factor"] = pairs * (gram + c * c * (2 * row.d_out + TRAFFIC) + 6 * row.d_out)
        shape = (triangle(row.width), triangle(row.d_out))
    else:
        costs["packed"] = pairs * (gram + 2.0 * _pair_width(net, l, k))
        shape = (row.width, row.d_out * column.parameters)
    if block_row_bytes(net, l, k, itemsize) <= memory / 2:
        # Twice: a second pass for the samples' shares.
        costs["block"] = 2 * n * (2.0 * shape[0] * shape[1] + BLOCK_TOUCHES * TRAFFIC * sum(shape))
    return costs


def _build_cost(net: Network, forms: dict[tuple[int, int], Form]) -> float:
    """Count the operations of computing one sample's blocks, which are repeated if tiles are not kept."""
    widths, cost = [layer.d_out for layer in net.layers], 0.0
    for l in range(square_rows(forms, len(widths)), len(widths) - 1):
        cost += 2.0 * widths[l] * widths[l + 1] * (widths[l] + widths[l + 1])
    for l, k in forms:
        if l < k:
            cost += 2.0 * widths[l] * widths[l + 1] * (widths[k] + net.layers[k].d_in * (k > l + 1))
    return cost


def _pair_width(net: Network, l: int, k: int) -> float:
    """Count the multiply-adds of a pair of samples in an off-diagonal block."""
    row, column = net.layers[l], net.layers[k]
    width = float(row.d_out * column.d_out)
    if column.learns_weight:
        if k == l + 1:
            width += 2 * width + row.d_out + column.d_out
        else:
            width += row.d_out * column.d_in + column.d_out
            width += 2 * row.d_out * (column.d_out + column.d_in + TRAFFIC)
    return width


def block_row_bytes(net: Network, l: int, k: int, itemsize: int) -> int:
    """Return the bytes of the smallest chunk of block (l, k): a row of units, summed in float64."""
    row, column = net.layers[l], net.layers[k]
    columns = triangle(row.d_out) if l == k else row.width * column.parameters
    return 8 * columns + itemsize * columns


def sample_bytes(net: Network, forms: dict[tuple[int, int], Form], itemsize: int) -> tuple[int, int]:
    """Return the bytes of one sample's quantities: those kept in a tile, and those needed only to compute it."""
    layers = net.layers
    squares = [layer.d_out**2 for layer in layers[square_rows(forms, len(layers)) :]]
    transient = sum(squares) + 2 * max(squares, default=0)
    count = sum(layer.d_in + 4 * layer.d_out for layer in layers)
    for (l, k), form in forms.items():
        row, column = layers[l], layers[k]
        if form == "factor":
            count += net.classes * row.d_out + 2 * row.d_out
        elif form == "packed" and l == k:
            count += triangle(row.d_out)
        elif l != k:
            count += row.d_out * (column.d_out + column.d_in * (k > l + 1))
            transient = max(transient, 2 * row.d_out * column.d_out)
    return count * itemsize, transient * itemsize


def held_bytes(net: Network, layout: Layout, samples: int) -> int:
    """Return the bytes that summing the closed form holds at once: tiles, a pair of them, and a chunk of a block."""
    (size, transient), pair = sample_bytes(net, layout.forms, layout.itemsize), _pair_bytes(net, layout.forms)
    tiles = min(layout.kept, math.ceil(samples / layout.tile)) + (layout.kept * layout.tile < samples)
    chunks = (block_row_bytes(net, l, k, layout.itemsize) * _rows(net, l, k) for l, k in layout.blocks)
    block = min(max(chunks, default=0), layout.memory // 2)
    return layout.tile * (size * tiles + transient + pair * layout.tile) + block


def _rows(net: Network, l: int, k: int) -> int:
    """Count the rows that a block is formed in."""
    return triangle(net.layers[l].width) if l == k else net.layers[l].d_out


def square_rows(forms: dict[tuple[int, int], Form], layers: int) -> int:
    """Return the lowest layer whose A_ll must be formed as a d × d matrix."""
    wanted = [l if form != "factor" else l + 1 for (l, k), form in forms.items() if l == k]
    wanted += [k for l, k in forms if l != k]
    return min(wanted, default=layers)


def _pair_bytes(net: Network, forms: dict[tuple[int, int], Form]) -> int:
    """Return the bytes of one pair of samples while a pair of tiles is summed."""
    numbers = 12
    for (l, k), form in forms.items():
        if form == "factor":
            numbers = max(numbers, 12 + 2 * net.classes**2)
        elif form == "packed" and k > l + 1:
            numbers = max(numbers, 12 + 3 * net.layers[l].d_out)
    return 8 * numbers


class _Starting(NamedTuple):
    """What the size of tiles decides besides reading them, where starting kernels takes time."""

    launch: float
    """Operations that starting a kernel costs."""
    of_pairs: float
    """Operations of all pairs of samples, each counted once."""

    def cost(self, n: int, tile: int, forms: Collection[tuple[int, int]]) -> float:
        """Count the operations of pairs that are computed twice, within a tile, and those of starting kernels."""
        if not self.launch:
            return 0.0
        count, layers = math.ceil(n / tile), sum(l == k for l, k in forms)
        pair = LAUNCHES_PAIR + LAUNCHES_BLOCK * len(forms)
        kernels = count * LAUNCHES_LAYER * layers + count * (count + 1) / 2 * pair
        return self.of_pairs * tile / n + self.launch * kernels


def _tiling(
    net: Network,
    forms: dict[tuple[int, int], Form],
    n: int,
    memory: int,
    itemsize: int,
    tiles: int,
    starting: _Starting,
) -> tuple[int, int, float] | None:
    """Choose the samples in a tile and the tiles to hold; count the operations of computing and reading them.

    Returns:
        None if no tile fits.
    """
    (size, transient), pair = sample_bytes(net, forms, itemsize), _pair_bytes(net, forms)
    blocks = [block for block, form in forms.items() if form == "block"]
    budget = memory / 2 if blocks else TILES_SHARE * memory
    passing = 2 if blocks else 1
    build, again = _build_cost(net, forms), sum(_build_cost(net, {block: "block"}) for block in blocks)
    choices = []
    tile = math.ceil(n / tiles)
    if not starting.launch:
        tile = min(n, MAX_TILE, max(MIN_TILE, tile))
    while tile:
        count = math.ceil(n / tile)
        fitting = int((budget - transient * tile - pair * tile * tile) // (size * tile))
        kept = count if fitting >= count else fitting - passing
        if kept > 0:
            made = build * (math.ceil(count / kept) + 1) / 2 + (2 * again if kept < count else 0)
            read = TRAFFIC * size / itemsize * n / tile if len(blocks) < len(forms) else 0
            choices.append((n * (made + read) + starting.cost(n, tile, forms), tile, kept))
        tile //= 2
    if not choices:
        return None
    cost, tile, kept = min(choices, key=itemgetter(0))
    return tile, kept, cost
