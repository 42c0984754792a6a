"""A plot as an SVG file: with its colours and fonts in it, so that any viewer shows it as the page does."""

from __future__ import annotations

import re
from functools import cache

from markupsafe import Markup

from service.rendering.html import stylesheet
from service.rendering.svg import WIDTH

MEDIA_TYPE = "image/svg+xml"
HEADERS = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
"""For a plot that is opened as a document: it has a style sheet, and nothing else to load or run."""
SCALE = 2
"""Pixels per unit of the plot."""

_COLOUR = re.compile(r"--([\w-]+): (#[0-9a-f]{6});")
_PLOT_RULE = re.compile(r"^\.plot[ {].*$", re.MULTILINE)
_HEIGHT = re.compile(r'viewBox="0 0 [\d.]+ ([\d.]+)"')


def document(plot: Markup) -> str:
    """Return the plot with what it takes from the page that it is on; colours are those of the light theme."""
    found = _HEIGHT.search(plot)
    height = float(found[1]) if found else WIDTH
    size = f'xmlns="http://www.w3.org/2000/svg" width="{SCALE * WIDTH:g}" height="{SCALE * height:g}"'
    head, _, body = plot.removeprefix("<svg").partition(">")
    background = f'<rect width="{WIDTH:g}" height="{height:g}" fill="{_colours()["surface"]}"/>'
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<svg {size}{head}><style>{_style()}</style>{background}{body}\n'


@cache
def _style() -> str:
    # Many viewers know no variables of CSS.
    rules = "\n".join(_PLOT_RULE.findall(stylesheet()))
    rules = re.sub(r"var\(--([\w-]+)\)", lambda found: _colours()[found[1]], rules)
    return f"{rules}\n.plot {{ font-family: system-ui, 'Segoe UI', Roboto, 'Noto Sans', Arial, sans-serif; }}"


@cache
def _colours() -> dict[str, str]:
    """Return the colours of the light theme, which the style sheet defines first."""
    colours: dict[str, str] = {}
    for name, value in _COLOUR.findall(stylesheet()):
        colours.setdefault(name, value)
    return colours
