"""Figures as files, and a quantity along several reports."""

from __future__ import annotations

import re

import pytest
from support.stored import require_matplotlib, stored_report

from wsb_engine.presentation.figures import FORMS, Curve, Form, Point, along, encoded, style
from wsb_engine.presentation.plots import new_axes

require_matplotlib()

import matplotlib as mpl  # noqa: E402

FIRST_BYTES = {"pdf": b"%PDF-", "png": b"\x89PNG", "svg": b"<?xml"}


def drawn(form: Form) -> bytes:
    with style():
        return encoded(stored_report("perceptron").plot(), form)


@pytest.fixture(scope="module")
def images() -> dict[Form, bytes]:
    return {form: drawn(form) for form in FORMS}


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_the_same_report_gives_the_same_bytes(images: dict[Form, bytes], form: Form) -> None:
    first = images[form]
    assert first.startswith(FIRST_BYTES[form])
    assert drawn(form) == first
    assert not re.search(rb"CreationDate|ModDate|<dc:date>|tIME", first)


def test_fonts_are_embedded_as_truetype(images: dict[Form, bytes]) -> None:
    content = images["pdf"]
    assert b"/Type3" not in content
    assert re.search(rb"/FontFile2\b", content)


def test_a_vector_image_names_no_font_of_the_reader(images: dict[Form, bytes]) -> None:
    assert b"font-family" not in images["svg"]


def test_the_settings_of_the_user_neither_matter_nor_change(images: dict[Form, bytes]) -> None:
    expected = images["svg"]
    with mpl.rc_context({"font.size": 30, "lines.linewidth": 9, "svg.fonttype": "none"}):
        before = dict(mpl.rcParams)
        assert drawn("svg") == expected
        assert dict(mpl.rcParams) == before


def test_each_point_has_a_bar_over_its_interval() -> None:
    axes = new_axes()
    along([Curve("a", [Point(1, 2.0, 4.0), Point(3, 5.0, 5.0)])], axes, x_label="step", y_label="q")
    [bars] = axes.collections
    assert [segment.tolist() for segment in bars.get_segments()] == [[[1, 2], [1, 4]], [[3, 5], [3, 5]]]


def test_a_bound_in_place_of_an_enclosure_is_hollow() -> None:
    axes = new_axes()
    along([Curve("", [Point(0, 1.0, 1.0), Point(1, 0.0, 4.0, is_bound=True)])], axes, x_label="", y_label="q")
    filled, hollow = axes.get_lines()[-3:-1]
    assert (list(filled.get_xdata()), list(hollow.get_xdata())) == ([0], [1])
    assert (filled.get_markerfacecolor(), hollow.get_markerfacecolor()) == ("C0", "white")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a bound, not an enclosure"]


def test_a_logarithmic_axis_leaves_out_what_is_not_positive_and_counts_it() -> None:
    points = [Point(0, 1.0, 1.0), Point(1, 0.0, 0.0), Point(2, -3.0, -2.0), Point(3, -1.0, 3.0)]
    axes = new_axes()
    assert along([Curve("", points)], axes, x_label="step", y_label="q", log=True) == 2
    assert axes.get_yscale() == "log"
    axes.figure.draw_without_rendering()
    assert along([Curve("", points)], new_axes(), x_label="step", y_label="q") == 0


def test_numbers_beyond_an_axis_are_drawn_at_its_end() -> None:
    largest = 1.7976931348623157e308
    for log in (False, True):
        axes = new_axes()
        points = [Point(0, -largest, largest), Point(1, largest, largest), Point(2, 5e-324, 5e-324)]
        along([Curve("", points)], axes, x_label="", y_label="q", names=("a", "b", "c"), log=log)
        with style():
            assert encoded(axes, "png")


@pytest.mark.parametrize("number", [1e90, 1e-90, 1e-12, 1.0])
def test_one_number_alone_has_a_logarithmic_axis(number: float) -> None:
    axes = new_axes()
    along([Curve("", [Point(0, number, number)])], axes, x_label="", y_label="q", log=True)
    axes.figure.draw_without_rendering()
    low, high = axes.get_ylim()
    assert low < number < high
