"""A badge: λ_max of a report in the digits that are certified, as a small SVG."""

from __future__ import annotations

from dataclasses import dataclass

from service.rendering import wording
from service.rendering.svg import element
from wsb_engine.presentation.numbers import DIGITS, Ends, interval, number
from wsb_engine.report import Report

MEDIA_TYPE = "image/svg+xml"

_NAME = "λ_max"
_HEIGHT, _CHARACTER, _MARGIN = 20, 7.0, 6.0
_DARK, _WHITE = "#444", "#fff"


@dataclass(frozen=True)
class Badge:
    """What a badge says, and the colour behind it."""

    text: str
    colour: str


NOTHING = Badge("no report", "#6e6e6e")
"""The badge of a series without a report that can be read."""


def badge_of(report: Report) -> Badge:
    """Choose what the badge of a report says."""
    if wording.doubts(report):
        return Badge("in doubt", "#9a4a00")
    closest = report.lambda_max
    return Badge("not bounded", "#6e6e6e") if closest is None else Badge(certified(closest.interval), "#1f5f99")


def certified(value: Ends) -> str:
    """Write a number in an interval with the digits that are certain; the interval itself if not even one is.

    Rounding is monotone: if both ends round to the same number, so does everything between them.
    """
    for digits in range(DIGITS, 0, -1):
        text = number(value.lower, digits)
        if text == number(value.upper, digits):
            return text
    return interval(value)


def render_badge(badge: Badge) -> bytes:
    """Render a badge as an SVG image."""
    left, right = (len(text) * _CHARACTER + 2 * _MARGIN for text in (_NAME, badge.text))
    image = element(
        "svg",
        element("title", f"{_NAME}: {badge.text}"),
        element("rect", width=left, height=_HEIGHT, fill=_DARK),
        element("rect", x=left, width=right, height=_HEIGHT, fill=badge.colour),
        *(
            element("text", text, x=middle, y=14, fill=_WHITE, text_anchor="middle", font_size=11)
            for text, middle in ((_NAME, left / 2), (badge.text, left + right / 2))
        ),
        xmlns="http://www.w3.org/2000/svg",
        width=left + right,
        height=_HEIGHT,
        role="img",
        aria_label=f"{_NAME}: {badge.text}",
        font_family="Verdana, DejaVu Sans, sans-serif",
    )
    return str(image).encode()
