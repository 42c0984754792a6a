"""Spectra and densities of a series as heat maps, with a column for each checkpoint."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import pairwise

from service.rendering import overlay
from service.rendering.overlay import Axes
from service.rendering.svg import Caption, some
from service.series.checkpoints import Checkpoint, Density, Series
from service.series.drawing import MAX_TITLE, Drawing, Plot, plural
from service.series.quantities import TITLES, Map
from wsb_engine.presentation.numbers import number
from wsb_engine.presentation.text import name as cleaned

MAX_COLUMNS = 60
"""Most checkpoints of a heat map; of more, evenly spread ones."""
ROWS = 48
"""Cells of a column."""
DECADES = 4
"""Decades of a density that have different shades; what is lower is empty."""
MOST_DECADES = 14
"""Most decades of a logarithmic axis; eigenvalues that much smaller than the largest are rounding."""
MAX_LABEL = 12
"""Most characters of the position of a checkpoint."""


def map_of(series: Series, kind: Map, drawing: Drawing, *, key: str = "map") -> Plot:
    """Draw where the eigenvalues of each checkpoint are.

    Args:
        series: The checkpoints.
        kind: Eigenvalues, counted, or densities.
        drawing: Which axes are logarithmic; the columns are always in order.
        key: Unique on the page.
    """
    having = [each for each in series.checkpoints if _places(each, kind)]
    notes = []
    if len(having) > MAX_COLUMNS:
        notes.append(f"There are {number(len(having))} checkpoints; {MAX_COLUMNS} evenly spread ones are drawn.")
    shown = [having[i] for i in some(len(having), MAX_COLUMNS)]
    if missing := len(series.checkpoints) - len(having):
        notes.append(f"Checkpoints without a column, because their reports have none: {number(missing)}.")
    if not shown:
        return Plot(None, [])
    is_log = "y" in drawing.log
    edges = _edges([_places(each, kind) for each in shown], is_log=is_log)
    if edges is None:
        return Plot(None, ["No eigenvalue is positive, as a logarithmic axis needs it."])
    if is_log and (left_out := sum(_below(each, kind, edges[0]) for each in shown)):
        what = plural("eigenvalue" if kind == "spectrum" else "node", left_out)
        least = number(edges[0], 2)
        notes.append(
            f"Left out, because a logarithmic axis has no place below {least}: {number(left_out)} {what}"
            f"{'' if kind == 'spectrum' else ' of the densities'}."
        )
    if kind == "spectrum" and not all(each.is_whole for each in shown):
        notes.append("Some reports hold only the largest eigenvalues: an empty cell may hold smaller ones.")
    shades, ramp = _counts(shown, edges) if kind == "spectrum" else _densities(shown, edges)
    names = [cleaned(each.position, MAX_LABEL) for each in shown]
    described = (
        f"{number(len(shown))} columns, from {names[0]} to {names[-1]}, over λ from {number(edges[0], 3)} to"
        f" {number(edges[-1], 3)}; the darkest cell holds {ramp[1]}."
    )
    caption = Caption(f"{key}-{kind}", f"{TITLES[kind]} along {cleaned(series.title, MAX_TITLE)}", described)
    axes = Axes(" or ".join(sorted({each.kind for each in shown if each.kind})) or "checkpoint", "λ", log_y=is_log)
    return Plot(overlay.columns(names, shades, (edges[0], edges[-1]), axes, caption=caption, ramp=ramp), notes)


def _places(checkpoint: Checkpoint, kind: Map) -> Sequence[float]:
    if kind == "spectrum":
        return checkpoint.spectrum
    return () if checkpoint.density is None else checkpoint.density.grid


def _below(checkpoint: Checkpoint, kind: Map, edge: float) -> int:
    return bisect_left(_places(checkpoint, kind), edge)


def _edges(places: Sequence[Sequence[float]], *, is_log: bool) -> list[float] | None:
    """Return the ends of the cells, ascending; None if a logarithmic axis has no place for any number."""
    low, high = min(map(min, places)), max(map(max, places))
    if is_log:
        if high <= 0:
            return None
        least = min(place for each in places for place in each if place > 0)
        top = math.log10(high) + 0.02
        bottom = max(math.log10(least) - 0.02, top - MOST_DECADES)
        powers = (bottom + (top - bottom) * i / ROWS for i in range(ROWS + 1))
        return [10.0 ** min(308.0, max(-307.0, power)) for power in powers]
    room = 0.02 * (high / 2 - low / 2) or abs(low) * 0.01 or 1.0
    low, high = max(low - room, -1.7e308), min(high + room, 1.7e308)
    return [low * (1 - i / ROWS) + high * (i / ROWS) for i in range(ROWS + 1)]


def _counts(shown: Sequence[Checkpoint], edges: Sequence[float]) -> tuple[list[list[float]], tuple[str, str]]:
    """Shade cells by the logarithm of their number of eigenvalues."""
    counts = []
    for each in shown:
        below = [bisect_left(each.spectrum, edge) for edge in edges[:-1]] + [bisect_right(each.spectrum, edges[-1])]
        counts.append([below[i + 1] - below[i] for i in range(ROWS)])
    largest = max(max(column) for column in counts)
    scale = math.log1p(largest) or 1.0
    shades = [[math.log1p(count) / scale for count in column] for column in counts]
    return shades, ("1", f"{number(largest)} {plural('eigenvalue', largest)}")


def _densities(shown: Sequence[Checkpoint], edges: Sequence[float]) -> tuple[list[list[float]], tuple[str, str]]:
    """Shade cells by the logarithm of the largest density in them."""
    peaks = [_peaks(each.density, edges) for each in shown if each.density is not None]
    largest = max(max(column) for column in peaks)
    if largest <= 0:
        return [[0.0] * ROWS for _ in peaks], ("0", "0")
    shades = [
        [max(0.0, 1 + math.log10(peak / largest) / DECADES) if peak / largest > 0 else 0.0 for peak in column]
        for column in peaks
    ]
    return shades, (number(largest * 10.0**-DECADES, 2), f"density {number(largest, 2)}")


def _peaks(density: Density, edges: Sequence[float]) -> list[float]:
    """Return the largest density in each cell; between two nodes it is interpolated."""
    grid, values, found = density.grid, density.values, []
    for low, high in pairwise(edges):
        first, last = bisect_left(grid, low), bisect_right(grid, high)
        inner = max(values[first:last], default=0.0)
        if first == last and 0 < first < len(grid):
            width = grid[first] - grid[first - 1]
            share = ((low / 2 + high / 2) - grid[first - 1]) / width if width > 0 else 0.0
            inner = values[first - 1] * (1 - share) + values[first] * share
        found.append(max(0.0, inner))
    return found
