"""Plots along training as SVG: runs overlaid on one pair of axes, and heat maps with a column for each checkpoint.

As in ``plots``, functions take plain numbers, and an SVG names and describes itself. Legends lie below the axes, so
that they hide nothing.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from markupsafe import Markup

from service.rendering.svg import (
    CHARACTER,
    LINE,
    WIDTH,
    Caption,
    LogScale,
    Scale,
    element,
    fitted,
    inside,
    line,
    marker,
    path,
    picture,
    some,
    span_of,
    text,
)
from wsb_engine.presentation.numbers import number

STYLES = 8
"""Runs that differ by colour, or by the shape of their markers."""
MAX_DRAWN = 4000
"""Most points of one plot; of more, evenly spread ones of each line."""
MAX_MARKED = 60
"""Most points of a line that have markers."""

_SHAPES = ("circle", "triangle", "diamond", "square")
_TOP, _BOTTOM, _RIGHT = 28.0, 220.0, WIDTH - 16
_LEAST_LEFT, _MOST_LEFT = 44.0, 130.0
"""Room for the numbers of the vertical axis."""
_VISIBLE = 7.0
"""Length from which an interval is drawn around its marker."""
_SWATCH = 26.0
"""Width of a sample of a line in the legend."""


@dataclass(frozen=True, slots=True)
class Point:
    """A number, an interval about it, or, without a value, only a bound."""

    x: float
    value: float | None
    lower: float | None = None
    upper: float | None = None
    is_doubtful: bool = False

    def ends(self) -> Iterator[float]:
        for found in (self.lower, self.value, self.upper):
            if found is not None:
                yield found


@dataclass(frozen=True, slots=True)
class Run:
    """One run: its lines, of which the first is the main one. ``style`` is 1 to ``STYLES``."""

    label: str
    style: int
    lines: Sequence[Sequence[Point | None]]
    """Points in the order in which to join them; None is a gap."""
    limits: Sequence[tuple[float, float]] = ()
    """A limit on this run's numbers along x."""


@dataclass(frozen=True, slots=True)
class Axes:
    """The names of both axes, and which of them are logarithmic."""

    x_label: str
    y_label: str
    log_x: bool = False
    log_y: bool = False


class Drawn(NamedTuple):
    """A plot, and what it leaves out."""

    svg: Markup | None
    """None if nothing can be drawn."""
    left_out: int
    """Points that a logarithmic axis has no place for."""
    is_thinned: bool
    """True if there are more points than are drawn."""


def overlay(runs: Sequence[Run], axes: Axes, *, caption: Caption, limit: float | None = None) -> Drawn:
    """Draw runs over common axes.

    Args:
        runs: The runs; lines of one run have one colour, those after the first are faint.
        axes: Labels and kinds of the axes.
        caption: What the plot shows, for readers who don't see it.
        limit: A limit that all runs share, labelled 2/η.
    """
    most = max(2, MAX_DRAWN // max(1, sum(len(run.lines) for run in runs)))
    is_thinned = any(len(points) > most for run in runs for points in run.lines)
    thinned = [_thinned(run, most) for run in runs]
    shown = [_placeable_part(run, axes) for run in thinned]
    points = _points(shown)
    left_out = len(_points(thinned)) - len(points)
    if not points:
        return Drawn(None, left_out, is_thinned)
    frame = _Frame.about(points, [value for run in shown for _, value in run.limits], axes, limit)
    parts = [frame.drawn(axes)]
    parts += [part for run in shown for part in _limits(run, frame)]
    if limit is not None:
        parts += _common_limit(limit, frame)
    parts += [part for run in shown for part in _run(run, frame)]
    legend, height = _legend(shown, points)
    return Drawn(picture(caption, height, [*parts, *legend]), left_out, is_thinned)


def columns(
    names: Sequence[str],
    shades: Sequence[Sequence[float]],
    y: tuple[float, float],
    axes: Axes,
    *,
    caption: Caption,
    ramp: tuple[str, str],
) -> Markup:
    """Draw a heat map with a column for each checkpoint.

    Args:
        names: Positions of the checkpoints.
        shades: The shades of the cells of each column, from the bottom to the top, 0 (empty) to 1.
        y: Ends of the vertical axis, which the cells divide evenly; on a logarithmic axis evenly in the logarithm.
        axes: Labels and kinds of the axes.
        caption: What the map shows, for readers who don't see it.
        ramp: What the lightest and the darkest shade mean.
    """
    scale = (LogScale if axes.log_y else Scale)(*y, _BOTTOM, _TOP)
    ticks = _log_ticks(scale) if isinstance(scale, LogScale) else scale.ticks()
    left = _left(ticks)
    wide, levels = (_RIGHT - left) / len(names), 8
    cells: dict[int, list[str]] = {}
    for i, column in enumerate(shades):
        tall = (_BOTTOM - _TOP) / len(column)
        # Neighbours of one shade are one cell: most of a column is empty or alike.
        start = 0
        for level, group in groupby(math.ceil(min(1.0, max(0.0, shade)) * levels) for shade in column):
            end = start + len(list(group))
            low, high, x = _BOTTOM - tall * start, _BOTTOM - tall * end, left + wide * i
            if level:
                corners = ((x, low), (x + wide, low), (x + wide, high), (x, high))
                cells.setdefault(level, []).append("M" + "L".join(f"{a:.2f} {b:.2f}" for a, b in corners))
            start = end
    parts = []
    for value, label in ticks:
        parts.append(line(left, scale(value), _RIGHT, scale(value), "grid"))
        parts.append(text(left - 6, scale(value) + 4, label, anchor="end"))
    parts += [
        element("path", d="".join(found), class_="cells", fill_opacity=round(level / levels, 3))
        for level, found in sorted(cells.items())
    ]
    parts += [line(left, _BOTTOM, _RIGHT, _BOTTOM, "axis"), text(8, _TOP - 13, axes.y_label, kind="quiet")]
    room = max((len(name) for name in names), default=1) * CHARACTER + 10
    for i in range(0, len(names), max(1, math.ceil(room / wide))):
        at = left + wide * (i + 0.5)
        parts.append(text(inside(at, names[i]), _BOTTOM + 17, names[i], anchor="middle"))
    parts.append(text(_RIGHT, _BOTTOM + 34, axes.x_label, anchor="end", kind="quiet"))
    return picture(caption, _BOTTOM + 64, [*parts, _ramp(left, _BOTTOM + 46, ramp, levels)])


def nothing(caption: Caption) -> Markup:
    """Draw an empty picture that says why it is empty."""
    lines = textwrap.wrap(caption.description, int((WIDTH - 16) / CHARACTER))
    told = [text(8, 44 + LINE * i, line, kind="quiet") for i, line in enumerate(lines)]
    return picture(caption, 52 + LINE * len(lines), [text(8, 24, caption.title), *told])


def _points(runs: Sequence[Run]) -> list[Point]:
    return [point for run in runs for points in run.lines for point in points if point is not None]


def _thinned(run: Run, most: int) -> Run:
    lines = [[points[i] for i in some(len(points), most)] for points in run.lines]
    return Run(run.label, run.style, lines, [run.limits[i] for i in some(len(run.limits), most)])


def _placeable_part(run: Run, axes: Axes) -> Run:
    lines = [[_placeable(point, axes) for point in points] for points in run.lines]
    limits = [pair for pair in run.limits if pair[0] > 0 or not axes.log_x]
    return Run(run.label, run.style, lines, limits)


def _placeable(point: Point | None, axes: Axes) -> Point | None:
    """Return a point that has a place on the axes; an end without one moves to the end of the axis later."""
    if point is None or (axes.log_x and point.x <= 0):
        return None
    if not axes.log_y:
        return point
    decides = point.upper if point.value is None else point.value
    return point if decides is not None and decides > 0 else None


@dataclass(frozen=True)
class _Frame:
    """Both scales, with their ticks."""

    x: Scale | LogScale
    y: Scale | LogScale
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]

    @classmethod
    def about(cls, points: Sequence[Point], limits: Sequence[float], axes: Axes, limit: float | None) -> _Frame:
        heights = [end for point in points for end in point.ends()] + list(limits)
        heights += [] if limit is None else [limit]
        across = [point.x for point in points]
        y, y_ticks = _scale(heights, _BOTTOM, _TOP, is_log=axes.log_y, margin=0.06)
        x, x_ticks = _scale(across, _left(y_ticks), _RIGHT, is_log=axes.log_x, margin=0.03)
        if all(value == round(value) for value in across):  # there is no epoch 1.5
            x_ticks = [tick for tick in x_ticks if tick[0] == round(tick[0])] or [(across[0], number(across[0]))]
        return cls(x, y, x_ticks, y_ticks)

    def drawn(self, axes: Axes) -> Markup:
        x, y, parts = self.x, self.y, list[Markup]()
        for value, label in self.y_ticks:
            parts.append(line(x.start, y(value), x.end, y(value), "grid"))
            parts.append(text(x.start - 6, y(value) + 4, label, anchor="end"))
        room, last = 8.0, -math.inf
        for value, label in self.x_ticks:
            parts.append(line(x(value), y.start, x(value), y.start + 4, "axis"))
            at, half = inside(x(value), label), len(label) * CHARACTER / 2
            if at - half >= last + room:
                parts.append(text(at, y.start + 17, label, anchor="middle"))
                last = at + half
        parts.append(line(x.start, y.start, x.end, y.start, "axis"))
        parts.append(text(x.end, y.start + 34, axes.x_label, anchor="end", kind="quiet"))
        parts.append(text(8, y.end - 13, axes.y_label, kind="quiet"))
        return Markup("").join(parts)


def _scale(
    values: Sequence[float], start: float, end: float, *, is_log: bool, margin: float
) -> tuple[Scale | LogScale, Sequence[tuple[float, str]]]:
    if not is_log:
        linear = Scale(*span_of(values, margin=margin), start, end)
        return linear, linear.ticks()
    found = [math.log10(value) for value in values if value > 0]
    room = margin * (max(found) - min(found)) or margin
    low, high = (10.0 ** min(308.0, max(-307.0, power)) for power in (min(found) - room, max(found) + room))
    scale = LogScale(low, high, start, end)
    return scale, _log_ticks(scale)


def _log_ticks(scale: LogScale) -> Sequence[tuple[float, str]]:
    """Return powers of ten, with their doubles and fives if there are few, or else round numbers."""
    first, last = math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high))
    step = max(1, math.ceil((last - first) / 6))
    factors = ("1",) if last - first > 3 else ("1", "2", "5")
    found = [float(f"{factor}e{k}") for k in range(first, last + 1, step) for factor in factors]
    ticks = [(value, number(value)) for value in found if scale.low <= value <= scale.high]
    if len(ticks) >= 2:
        return ticks
    return [tick for tick in Scale(scale.low, scale.high, scale.start, scale.end).ticks() if tick[0] > 0]


def _left(ticks: Iterable[tuple[float, str]]) -> float:
    longest = max((len(label) for _, label in ticks), default=0)
    return min(_MOST_LEFT, max(_LEAST_LEFT, longest * CHARACTER + 12))


def _run(run: Run, frame: _Frame) -> Iterator[Markup]:
    for rank, points in enumerate(run.lines):
        kind = f"s{run.style}" + (" faint" if rank else "")
        is_marked = len(points) <= MAX_MARKED and not rank
        for has_value, group in groupby(points, key=lambda point: point is not None and point.value is not None):
            present = [point for point in group if point is not None]
            if has_value:
                yield from _joined(run, present, kind, frame, is_marked=is_marked)
            else:
                yield from _bounds(present, kind, frame)
        for point in points:
            if point is not None and point.is_doubtful and not rank:
                yield marker(frame.x(point.x), _height(point, frame), "doubt", size=7)


def _joined(run: Run, points: Sequence[Point], kind: str, frame: _Frame, *, is_marked: bool) -> Iterator[Markup]:
    """Draw known numbers: a line, a band where they are enclosed, markers."""
    placed = [(frame.x(point.x), frame.y(point.value or 0.0)) for point in points]
    for is_enclosed, group in groupby(points, key=lambda point: point.lower is not None and point.upper is not None):
        enclosed = list(group)
        if is_enclosed and len(enclosed) > 1:
            upper = [(frame.x(point.x), frame.y(point.upper or 0.0)) for point in enclosed]
            lower = [(frame.x(point.x), frame.y(point.lower or 0.0)) for point in reversed(enclosed)]
            yield path([*upper, *lower], f"area {kind}")
    if len(placed) > 1:
        yield path(placed, f"line {kind}")
    for point, (x, y) in zip(points, placed, strict=True):
        if not (is_marked or len(placed) == 1):
            continue
        if point.lower is not None and point.upper is not None:
            low, high = frame.y(point.lower), frame.y(point.upper)
            if low - high > _VISIBLE:
                yield line(x, low, x, high, f"thin {kind}")
        yield _dot(run.style, x, y, kind)


def _bounds(points: Sequence[Point], kind: str, frame: _Frame) -> Iterator[Markup]:
    """Draw bounds as bars without a marker: nothing is known of where in them the number lies."""
    for point in points:
        if point.lower is None or point.upper is None:
            continue
        x, low, high = frame.x(point.x), frame.y(point.lower), frame.y(point.upper)
        yield line(x, low, x, high, f"bound {kind}")
        for end in (low, high):
            yield line(x - 4, end, x + 4, end, f"bound {kind}")


def _limits(run: Run, frame: _Frame) -> Iterator[Markup]:
    if run.limits:
        placed = [(frame.x(x), frame.y(value)) for x, value in run.limits]
        if len({value for _, value in run.limits}) == 1:
            placed = [(frame.x.start, placed[0][1]), (frame.x.end, placed[0][1])]
        yield path(placed, f"limit s{run.style}")


def _common_limit(limit: float, frame: _Frame) -> Iterator[Markup]:
    y = frame.y(limit)
    yield line(frame.x.start, y, frame.x.end, y, "limit")
    at = y - 5 if y - 5 - LINE > _TOP else y + 14
    yield text(_RIGHT, at, "2/η", anchor="end", kind="limit")


def _height(point: Point, frame: _Frame) -> float:
    return frame.y(point.value if point.value is not None else point.upper or 0.0)


def _dot(style: int, x: float, y: float, kind: str) -> Markup:
    hollow = " hollow" if style > len(_SHAPES) else ""
    return marker(x, y, f"dot {kind}{hollow}", shape=_SHAPES[(style - 1) % len(_SHAPES)], size=2.75)


def _legend(runs: Sequence[Run], points: Sequence[Point]) -> tuple[list[Markup], float]:
    """Explain lines and signs below the axes, in two columns if they fit; also return the height of the picture."""
    entries: list[tuple[str, Run | str]] = [(run.label, run) for run in runs if _points([run])]
    if any(run.limits for run in runs):
        entries.append(("2/η of the run", "limit"))
    if any(point.value is None for point in points):
        entries.append(("only bounded", "bound"))
    if any(point.is_doubtful for point in points):
        entries.append(("a check has failed", "doubt"))
    is_paired = all(len(label) * CHARACTER < WIDTH / 2 - _SWATCH - 20 for label, _ in entries)
    wide, parts, top = (WIDTH - 16) / (2 if is_paired else 1), list[Markup](), _BOTTOM + 54
    for i, (label, sign) in enumerate(entries):
        row, column = divmod(i, 2) if is_paired else (i, 0)
        x, y = 8 + wide * column, top + (LINE + 2) * row
        parts += [_sample(sign, x, y - 4), text(x + _SWATCH, y, fitted(label, wide - _SWATCH - 8))]
    rows = math.ceil(len(entries) / (2 if is_paired else 1))
    return parts, top + (LINE + 2) * (rows - 1) + 8


def _sample(sign: Run | str, x: float, y: float) -> Markup:
    middle = x + 9
    if isinstance(sign, Run):
        kind = f"s{sign.style}"
        return Markup("").join([line(x, y, x + 18, y, f"line {kind}"), _dot(sign.style, middle, y, kind)])
    if sign == "limit":
        return line(x, y, x + 18, y, "limit neutral")
    if sign == "doubt":
        return marker(middle, y, "doubt", size=6)
    ends = [line(middle - 4, end, middle + 4, end, "bound neutral") for end in (y - 6, y + 6)]
    return Markup("").join([line(middle, y - 6, middle, y + 6, "bound neutral"), *ends])


def _ramp(x: float, y: float, ramp: tuple[str, str], levels: int) -> Markup:
    """Explain the shades of a heat map."""
    first, last = ramp
    start, wide = x + len(first) * CHARACTER + 8, 14.0
    cells = [
        element("rect", x=start + wide * i, y=y, width=wide, height=10.0, class_="cells", fill_opacity=(i + 1) / levels)
        for i in range(levels)
    ]
    return Markup("").join([text(x, y + 9, first), *cells, text(start + wide * levels + 8, y + 9, last)])
