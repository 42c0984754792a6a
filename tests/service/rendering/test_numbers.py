from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.rendering.numbers import ends, interval, number, percent

finite = st.floats(allow_nan=False, allow_infinity=False)


@dataclass(frozen=True)
class Interval:
    lower: float
    upper: float


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-0.0, "0"),
        (1234567, "1,234,567"),
        (1.23456789, "1.23457"),
        (1e-9, "1e-9"),
        (-2.5e20, "-2.5e20"),
        (None, "—"),
    ],
)
def test_numbers_have_six_digits(value: float | None, text: str) -> None:
    assert number(value) == text


def test_shares_are_in_percent() -> None:
    assert percent(0.12752) == "12.8 %"


def test_an_interval_shows_where_its_ends_differ() -> None:
    assert interval(Interval(0.883691790931055, 0.8836917909312685)) == "[0.883691790931054, 0.883691790931269]"


def test_a_wide_interval_is_short() -> None:
    assert interval(Interval(-2.0758920433, 0.003013865857)) == "[-2.0759, 0.00301387]"


@given(finite, finite)
def test_what_is_shown_holds_the_interval(one: float, other: float) -> None:
    lower, upper = sorted((one, other))
    shown = [float(text.replace(",", "")) for text in ends(Interval(lower, upper))]
    assert shown[0] <= lower
    assert shown[1] >= upper


@given(st.floats(1e-300, 1e300), st.floats(1e-15, 1))
def test_ends_that_differ_are_shown_to_differ(value: float, gap: float) -> None:
    lower, upper = ends(Interval(value, value * (1 + gap)))
    assert (lower != upper) == (value != value * (1 + gap))
