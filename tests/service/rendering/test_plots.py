from __future__ import annotations

import re
import sys
from collections.abc import Callable
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import Markup
from support.forms import thinned

from service.rendering import overlay, plots
from service.rendering.overlay import Axes, Point, Run
from service.rendering.plots import LabelledInterval, Limit, Line
from service.rendering.svg import Caption

finite = st.floats(allow_nan=False, allow_infinity=False)
named = {"caption": Caption("k", "A title", "What it shows.")}

LOGARITHMIC = Axes("x", "y", log_x=True, log_y=True)


def interval_at(x: int, value: float) -> Point:
    return Point(x, value, value - abs(value) / 2, value + abs(value) / 2, is_doubtful=x % 2 == 1)


def drawn(runs: list[Run], axes: Axes, limit: float | None = None) -> Markup:
    """The plot of runs, or what stands for one that has nothing in it."""
    found = overlay.overlay(runs, axes, limit=limit, **named).svg
    return overlay.nothing(named["caption"]) if found is None else found


PLOTS: dict[str, Callable[[list[float]], Markup]] = {
    "number_line": lambda v: plots.number_line(
        [LabelledInterval("<a>", min(v), max(v))], [Limit("limit", v[0])], **named
    ),
    "stem": lambda v: plots.stem(sorted(v, reverse=True), **named),
    "curve": lambda v: plots.curve(sorted(v), v, x_label="x", y_label="y", **named),
    "lines": lambda v: plots.lines([Line("<a>", list(enumerate(v)))], x_label="x", y_label="y", **named),
    "bars": lambda v: plots.bars([("<a>", each) for each in v], **named),
    "bars with an end": lambda v: plots.bars([("<a>", each) for each in v], maximum=1.0, **named),
    "heat_map": lambda v: plots.heat_map(["<a>"] * len(v), [v] * len(v), **named),
    "overlay": lambda v: drawn([Run("<a>", 1, [list(map(interval_at, range(len(v)), v))])], Axes("x", "y"), v[0]),
    "overlay of bounds": lambda v: drawn(
        [Run("<a>", 8, [[Point(x, None, -abs(x), abs(x)) for x in v]])], Axes("x", "y")
    ),
    "overlay on logarithmic axes": lambda v: drawn([Run("<a>", 2, [[Point(x, x) for x in v]])], LOGARITHMIC),
    "columns": lambda v: overlay.columns(
        ["<a>"] * len(v), [v] * len(v), (min(v) - 1, max(v) + 1), Axes("x", "y"), ramp=("0", "1"), **named
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("plot", thinned(PLOTS.values(), 4), ids=PLOTS)
@settings(max_examples=40, deadline=None)
@given(values=st.lists(finite, min_size=1, max_size=12))
def test_any_finite_numbers_are_drawn_inside_the_picture(
    plot: Callable[[list[float]], Markup], values: list[float]
) -> None:
    assert_inside(plot(values))


@pytest.mark.parametrize("plot", PLOTS.values(), ids=PLOTS)
@pytest.mark.parametrize(
    "values",
    [
        [0.0],
        [0.0, 0.0],
        [-1.0, -1.0],
        [sys.float_info.max, -sys.float_info.max],
        [5e-324, 0.0, -5e-324],
        [1.0, 1.0 + 1e-15],
    ],
    ids=str,
)
def test_awkward_numbers_are_drawn_inside_the_picture(
    plot: Callable[[list[float]], Markup], values: list[float]
) -> None:
    assert_inside(plot(values))


def assert_inside(svg: Markup) -> None:
    root = ElementTree.fromstring(svg)  # noqa: S314 - ours
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    for element in root.iter():
        for name, value in element.attrib.items():
            if name in ("x", "x1", "x2", "cx"):
                assert -1 <= float(value) <= width + 1
            elif name in ("y", "y1", "y2", "cy"):
                assert -1 <= float(value) <= height + 1
            elif name in ("width", "height", "r"):
                assert 0 <= float(value) <= max(width, height)
            elif name in ("d", "points"):
                assert re.fullmatch(r"[ML0-9 .,-]+", value)


@pytest.mark.parametrize("plot", PLOTS.values(), ids=PLOTS)
def test_labels_are_escaped_and_the_plot_names_itself(plot: Callable[[list[float]], Markup]) -> None:
    root = ElementTree.fromstring(plot([1.0, 2.0, 3.0]))  # noqa: S314 - ours
    assert (root.findtext("title"), root.findtext("desc")) == ("A title", "What it shows.")
    assert (root.attrib["aria-labelledby"], root.attrib["aria-describedby"]) == ("k-title", "k-desc")
    assert root.find(".//a") is None


def test_a_scale_has_round_ticks() -> None:
    svg = plots.number_line([LabelledInterval("a", -2.07, 2.11)], **named)
    texts = [element.text for element in ElementTree.fromstring(svg).iter("text")]  # noqa: S314 - ours
    assert texts[-5:] == ["-2", "-1", "0", "1", "2"]


def test_a_long_spectrum_keeps_both_ends_and_stays_small() -> None:
    svg = plots.stem([1 / (i + 1) for i in range(100_000)], **named)
    assert svg.count("<circle") == plots.MAX_STEMS + 1  # and one in the legend
    assert len(svg) < 100_000


def test_negative_eigenvalues_have_another_shape() -> None:
    svg = plots.stem([2.0, 1.0, -1.0], **named)
    assert svg.count("<circle") == 3
    assert svg.count("<polygon") == 2
