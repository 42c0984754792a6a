"""Plots as SVG, from plain numbers. Colours are those of ``templates/plots.css``, which follows the page's theme.

Each function returns an ``<svg role="img">`` that names and describes itself by its caption. The numbers belong in a
table next to it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from service.rendering.svg import (
    CHARACTER,
    LINE,
    WIDTH,
    Caption,
    LogScale,
    Scale,
    axes,
    decades_of,
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
from wsb_engine.presentation.numbers import interval, middle, number

MAX_STEMS = 300
"""Most eigenvalues to draw; of more, evenly spread ones."""
MAX_POINTS = 1000
"""Most points of a curve or a line."""
MAX_NAMED_ROWS = 16
"""Most rows that a heat map names; if there are more, it numbers them."""
MOST_DECADES = 14
"""Most decades of a logarithmic axis; numbers that much smaller than the largest are rounding."""

CURVE_DECADES = 6
"""Most decades of the logarithmic axis of a curve."""

Shape = Literal["circle", "triangle", "diamond"]

_SMALL_CHARACTER = 6.4
"""Width of a digit in a cell."""
_VISIBLE = 6.0
"""Length below which an interval is drawn as a diamond."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, WIDTH - 16.0, 28.0, 44.0
"""Room for the numbers of the axes."""


@dataclass(frozen=True)
class LabelledInterval:
    """A labelled interval. ``style`` 1 to 3 is its colour."""

    label: str
    lower: float
    upper: float
    style: int = 1


@dataclass(frozen=True)
class Limit:
    """A labelled number to compare others with."""

    label: str
    value: float


@dataclass(frozen=True)
class Line:
    """Labelled points, in the order of x. ``style`` 1 to 3 is their colour."""

    label: str
    points: Sequence[tuple[float, float]]
    style: int = 1
    shape: Shape = "circle"


def number_line(ranges: Sequence[LabelledInterval], limits: Sequence[Limit] = (), *, caption: Caption) -> Markup:
    """Draw intervals one below the other on one axis that includes 0, with limits across them."""
    values = [0.0, *(end for r in ranges for end in (r.lower, r.upper)), *(limit.value for limit in limits)]
    x = Scale(*span_of(values, margin=0.03), 16, WIDTH - 16)
    top = LINE * len(limits) + 6
    bottom = top + 46 * len(ranges) + 4
    parts = [line(x(0), top, x(0), bottom, "grid")]
    for i, limit in enumerate(limits):
        at, y = x(limit.value), LINE * (i + 1)
        side = "start" if at < WIDTH / 2 else "end"
        parts.append(line(at, y - 11, at, bottom, "limit"))
        parts.append(text(at + (5 if side == "start" else -5), y, limit.label, anchor=side, kind="limit"))
    for i, r in enumerate(ranges):
        y = top + 46 * i
        parts.append(text(16, y + 16, r.label))
        left, right = x(r.lower), x(r.upper)
        shown = f"≈ {number(middle(r))}" if right - left < _VISIBLE else interval(r)
        parts.append(text(WIDTH - 16, y + 16, shown, anchor="end", kind="quiet"))
        parts.append(_bar(left, right, y + 32, r.style))
    for value, label in x.ticks():
        parts.append(line(x(value), bottom, x(value), bottom + 4, "axis"))
        parts.append(text(inside(x(value), label), bottom + 17, label, anchor="middle"))
    parts.append(line(x.start, bottom, x.end, bottom, "axis"))
    return picture(caption, bottom + 24, parts)


def stem(values: Sequence[float], *, caption: Caption) -> Markup:
    """Draw magnitudes of descending numbers by rank on a logarithmic axis; negative ones are hollow triangles."""
    size = decades_of((abs(value) for value in values), most=MOST_DECADES)
    height = 260.0
    y = LogScale(*size, height - _BOTTOM, _TOP)
    x = Scale(1 - 0.02 * len(values), len(values) * 1.02, _LEFT, _RIGHT)
    parts = [axes(x, y, x_label="rank, largest eigenvalue first", y_label="|λ|")]
    for i in some(len(values), MAX_STEMS):
        at, value = (x(i + 1), y(abs(values[i]))), values[i]
        style = 2 if value < 0 else 1
        parts.append(line(at[0], y.start, *at, f"stem s{style}"))
        parts.append(marker(*at, f"dot s{style}" + (" hollow" if value < 0 else ""), shape=_SIGNS[value < 0], size=3))
    parts.append(_legend([("λ > 0", "s1", "circle"), ("λ < 0", "s2 hollow", "triangle")]))
    return picture(caption, height, parts)


def curve(
    x_values: Sequence[float], y_values: Sequence[float], *, x_label: str, y_label: str, caption: Caption
) -> Markup:
    """Draw a filled curve over a logarithmic axis."""
    chosen = some(len(x_values), MAX_POINTS)
    height = 240.0
    y = LogScale(*decades_of(y_values, most=CURVE_DECADES), height - _BOTTOM, _TOP)
    x = Scale(min(x_values), max(x_values), _LEFT, _RIGHT)
    points = [(x(x_values[i]), y(y_values[i])) for i in chosen]
    area = [(points[0][0], y.start), *points, (points[-1][0], y.start)]
    parts = [axes(x, y, x_label=x_label, y_label=y_label), path(area, "area s1"), path(points, "line s1")]
    return picture(caption, height, parts)


def lines(drawn: Sequence[Line], *, x_label: str, y_label: str, caption: Caption) -> Markup:
    """Draw lines with markers over a logarithmic axis; numbers that are not positive lie at its bottom."""
    height = 260.0
    points = [point for each in drawn for point in each.points]
    y = LogScale(*decades_of((b for _, b in points), most=MOST_DECADES), height - _BOTTOM, _TOP)
    x = Scale(*span_of((a for a, _ in points), margin=0.02), _LEFT, _RIGHT)
    parts = [axes(x, y, x_label=x_label, y_label=y_label)]
    for each in drawn:
        placed = [(x(a), y(b)) for a, b in (each.points[i] for i in some(len(each.points), MAX_POINTS))]
        parts.append(path(placed, f"line s{each.style}"))
        parts += [marker(a, b, f"dot s{each.style}", shape=each.shape, size=2.5) for a, b in placed]
    parts.append(_legend([(each.label, f"s{each.style}", each.shape) for each in drawn]))
    return picture(caption, height, parts)


def bars(
    items: Sequence[tuple[str, float]],
    *,
    caption: Caption,
    maximum: float | None = None,
    written: Sequence[str] | None = None,
) -> Markup:
    """Draw a horizontal bar for each item; negative ones extend to the left of 0.

    Args:
        items: Labels and numbers.
        caption: What it shows, for readers who don't see it.
        maximum: End of the axis, such as 1 for a share of a whole.
        written: Text at the end of each bar; by default its number.
    """
    values = [value for _, value in items]
    numbers = written or [number(value, 3) for value in values]
    label_width = min(170.0, max(len(label) for label, _ in items) * CHARACTER + 8)
    room = max(len(label) for label in numbers) * CHARACTER + 14
    negative = room if min(values) < 0 else 0.0
    x = Scale(
        min(0.0, *values) if min(values) < 0 else 0.0,
        maximum if maximum is not None else max(0.0, *values) or 1.0,
        label_width + 8 + negative,
        WIDTH - room,
    )
    parts = []
    for i, (label, value) in enumerate(items):
        y = 4 + 24.0 * i
        parts.append(text(label_width, y + 15, fitted(label, label_width), anchor="end"))
        left, right = sorted((x(0), x(value)))
        parts.append(
            element(
                "rect",
                x=left,
                y=y + 2,
                width=max(1.0, right - left),
                height=16.0,
                class_=f"bar s{1 if value >= 0 else 2}",
            )
        )
        at = (right + 6, "start") if value >= 0 else (left - 6, "end")
        parts.append(text(at[0], y + 15, numbers[i], anchor=at[1]))
    height = 4 + 24.0 * len(items) + 4
    parts.append(line(x(0), 2, x(0), height - 2, "axis"))
    if maximum is not None:
        parts.append(line(x.end, 2, x.end, height - 2, "grid"))
    return picture(caption, height, parts)


def heat_map(
    names: Sequence[str], values: Sequence[Sequence[float]], *, caption: Caption, ranks: Sequence[int] | None = None
) -> Markup:
    """Draw a square of cells, the darker the larger their number, from 0 to the largest.

    Columns and rows are numbered (``ranks``, by default from 1); rows also have names, and cells numbers, if they fit.
    """
    count = len(names)
    numbers = [str(rank) for rank in ranks or range(1, count + 1)]
    labels = [f"{n} {label}" for n, label in zip(numbers, names, strict=True)] if count <= MAX_NAMED_ROWS else numbers
    left = min(120.0, max(len(label) for label in labels) * CHARACTER + 4) + 8
    side = min(64.0, (WIDTH - left - 4) / count)
    tall = min(side, 40.0) if count <= MAX_NAMED_ROWS else side
    top, largest = LINE + 6, max(max(row) for row in values) or 1.0
    written = _written(values, side)
    parts = []
    for i in range(0, count, math.ceil(LINE / tall)):
        parts.append(text(left - 8, top + tall * (i + 0.5) + 4, fitted(labels[i], left - 8), anchor="end"))
    for k in range(0, count, math.ceil(22 / side)):
        parts.append(text(left + side * (k + 0.5), LINE, numbers[k], anchor="middle", kind="quiet"))
    for i, row in enumerate(values):
        for k, value in enumerate(row):
            x, y, shade = left + side * k, top + tall * i, round(max(0.0, min(1.0, value / largest)), 3)
            size = {"width": max(1.0, side - 1), "height": max(1.0, tall - 1)}
            parts.append(element("rect", x=x, y=y, **size, class_="heat", fill_opacity=shade))
            if written is not None:
                parts.append(text(x + side / 2, y + tall / 2 + 4, written[i][k], anchor="middle", kind="cell"))
    bottom = top + tall * count
    return picture(caption, bottom + 30, [*parts, _ramp(left, bottom + 12, largest)])


def _written(values: Sequence[Sequence[float]], side: float) -> list[list[str]] | None:
    """Format the numbers of a heat map with as many digits as fit; None if one does not fit."""
    for digits in (3, 2):
        written = [[number(value, digits) for value in row] for row in values]
        if max(len(shown) for row in written for shown in row) * _SMALL_CHARACTER <= side - 4:
            return written
    return None


_SIGNS: dict[bool, Shape] = {False: "circle", True: "triangle"}


def _bar(left: float, right: float, y: float, style: int) -> Markup:
    """Draw a thick line with ends, or a diamond if it would be too short to see."""
    if right - left < _VISIBLE:
        return marker((left + right) / 2, y, f"dot s{style}", shape="diamond", size=5)
    ends = [line(at, y - 6, at, y + 6, f"whisker s{style}") for at in (left, right)]
    return Markup("").join([line(left, y, right, y, f"whisker s{style}"), *ends])


def _legend(entries: Sequence[tuple[str, str, Shape]]) -> Markup:
    """Explain the markers, right-aligned in the line above the plot."""
    parts, at = [], _RIGHT
    for label, kind, shape in reversed(entries):
        at -= len(label) * CHARACTER
        parts += [text(at, 16, label), marker(at - 9, 12, f"dot {kind}", shape=shape, size=3)]
        at -= 28
    return Markup("").join(parts)


def _ramp(x: float, y: float, largest: float) -> Markup:
    """Explain the shades of a heat map."""
    cells = [
        element("rect", x=x + 16 + 6.0 * i, y=y, width=6.0, height=10.0, class_="heat", fill_opacity=i / 19)
        for i in range(20)
    ]
    return Markup("").join([text(x, y + 9, "0"), *cells, text(x + 142, y + 9, number(largest, 3))])
