"""Pieces of SVG: elements, scales from numbers to pixels, and axes. Text and attributes are escaped."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup, escape

from wsb_engine.presentation.numbers import number
from wsb_engine.presentation.text import clean, name

WIDTH = 400.0
"""Width of every plot in its units; text is 12 of them high, so that it is readable on a phone."""
LINE = 16.0
"""Height of a line of text."""
CHARACTER = 7.0
"""Approximate width of a character in our labels."""
_WIDE = 7.8
"""Width of a wider character, of which untrusted text may consist."""

_INDEXED = re.compile(r"λ_(max|min)([^λ]*)")
_LOWERED = r'λ<tspan dy="3" font-size="9">\1</tspan><tspan dy="-3">\2</tspan>'
_LARGEST = 1e290
_SMALLEST = 1e-290


def element(tag: str, *children: Markup | str, **attributes: object) -> Markup:
    """Build an element; ``_`` in the name of an attribute stands for ``-``, except at its end."""
    written = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _value(value))
        for key, value in attributes.items()
        if value is not None
    )
    content = Markup("").join(child if isinstance(child, Markup) else escape(clean(child)) for child in children)
    return Markup("<{0}{1}>{2}</{0}>").format(tag, written, content)


def text(x: float, y: float, content: str, *, anchor: str = "start", kind: str | None = None) -> Markup:
    written = _INDEXED.sub(_LOWERED, str(escape(clean(content))))
    anchored = None if anchor == "start" else anchor
    return element("text", Markup(written), x=x, y=y, text_anchor=anchored, class_=kind)  # noqa: S704 - escaped above


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=kind)


def path(points: Iterable[tuple[float, float]], kind: str) -> Markup:
    return element("path", d="M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in points), class_=kind)


def marker(x: float, y: float, kind: str, *, shape: str = "circle", size: float = 3.5) -> Markup:
    """Draw a circle, a triangle, a diamond or a square, so that points differ in more than colour."""
    if shape == "circle":
        return element("circle", cx=x, cy=y, r=size, class_=kind)
    if shape == "square":
        return element("rect", x=x - size, y=y - size, width=2 * size, height=2 * size, class_=kind)
    corners = [(x, y - size - 1), (x + size + 1, y), (x, y + size + 1), (x - size - 1, y)]
    if shape == "triangle":
        corners = [(x, y - size - 1), (x + size + 1, y + size), (x - size - 1, y + size)]
    return element("polygon", points=" ".join(f"{a:.2f},{b:.2f}" for a, b in corners), class_=kind)


class Caption(NamedTuple):
    """What a plot shows, for readers who don't see it."""

    key: str
    """Unique on its page."""
    title: str
    description: str


def picture(caption: Caption, height: float, children: Iterable[Markup]) -> Markup:
    """Build the whole SVG."""
    key = caption.key
    return element(
        "svg",
        element("title", caption.title, id=f"{key}-title"),
        element("desc", caption.description, id=f"{key}-desc"),
        *children,
        class_="plot",
        role="img",
        aria_labelledby=f"{key}-title",
        aria_describedby=f"{key}-desc",
        viewBox=f"0 0 {WIDTH:g} {height:g}",
    )


def fitted(label: str, width: float) -> str:
    """Cut a name to the width."""
    shown = name(label)
    return shown if len(shown) * CHARACTER <= width else name(label, max(1, int(width / _WIDE) - 1))


def inside(x: float, label: str) -> float:
    """Move the middle of a text so that it stays inside the picture."""
    half = len(label) * CHARACTER / 2 + 2
    return min(max(x, half), WIDTH - half)


def some(count: int, most: int) -> Sequence[int]:
    """Select all of 0 … count − 1, or ``most`` of them evenly spread, with the first and the last."""
    if count <= most:
        return range(count)
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


@dataclass(frozen=True)
class Scale:
    """Maps numbers from ``low`` to ``high``, any finite ones, to pixels from ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        size = max(abs(self.low), abs(self.high)) or 1.0
        span = self.high / size - self.low / size
        share = (value / size - self.low / size) / span if span > 0 else 0.5
        return self.start + min(1.0, max(0.0, share)) * (self.end - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        """Return round numbers, each with its label."""
        size = max(abs(self.low), abs(self.high))
        span = self.high - self.low
        if not _SMALLEST < size < _LARGEST or span < 1e-13 * size:
            return [(value, number(value, 3)) for value in (self.low, self.high)]
        digits = math.ceil(math.log10(size / span)) + 2
        step = _round_up(span / (5 if digits < 6 else 2))
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [(k * step, number(k * step, digits + 2)) for k in range(first, last + 1)]


@dataclass(frozen=True)
class LogScale:
    """Maps positive numbers to pixels by logarithm; numbers below ``low`` count as ``low``."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        low, high = math.log10(self.low), math.log10(self.high)
        share = (math.log10(max(value, self.low)) - low) / (high - low) if high > low else 0.5
        return self.start + min(1.0, share) * (self.end - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
        step = max(1, math.ceil((last - first) / 6))
        return [(float(f"1e{k}"), number(float(f"1e{k}"))) for k in range(first, last + 1, step)]


def span_of(values: Iterable[float], *, margin: float = 0.05) -> tuple[float, float]:
    """Return the ends of an axis that shows all values, with a margin on both sides."""
    found = list(values)
    low, high = min(found), max(found)
    room = margin * (high / 2 - low / 2) * 2 or abs(low) * margin or 1.0
    return max(low - room, -1.7e308), min(high + room, 1.7e308)


def decades_of(values: Iterable[float], *, most: int) -> tuple[float, float]:
    """Return powers of ten that enclose the positive values, at most ``most`` decades apart."""
    positive = [value for value in values if value > 0] or [1.0]
    high = min(308, max(-300, math.ceil(math.log10(max(positive)) + 1e-12)))
    low = max(math.floor(math.log10(min(positive))), high - most, -307)
    return float(f"1e{min(low, high - 1)}"), float(f"1e{high}")


def axes(x: Scale | LogScale, y: Scale | LogScale, *, x_label: str, y_label: str) -> Markup:
    """Draw a grid with numbers and the labels of both axes."""
    left, right, bottom, top = x.start, x.end, y.start, y.end
    parts = []
    for value, label in y.ticks():
        parts += [line(left, y(value), right, y(value), "grid"), text(left - 6, y(value) + 4, label, anchor="end")]
    for value, label in x.ticks():
        parts += [
            line(x(value), bottom, x(value), bottom + 4, "axis"),
            text(x(value), bottom + 17, label, anchor="middle"),
        ]
    parts.append(line(left, bottom, right, bottom, "axis"))
    parts.append(text(right, bottom + 34, x_label, anchor="end", kind="quiet"))
    parts.append(text(8, top - 10, y_label, kind="quiet"))
    return Markup("").join(parts)


def _round_up(step: float) -> float:
    """Round up to 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10, 20) if factor * power >= step)


def _value(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
