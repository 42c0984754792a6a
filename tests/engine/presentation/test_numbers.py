from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsb_engine.presentation.numbers import amount, duration, ends, interval, number, percent

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


@pytest.mark.parametrize(
    ("size", "text"),
    [(3, "3 B"), (2048, "2 KiB"), (5 << 20, "5 MiB"), ((1 << 30) - 1, "1,024 MiB"), (3 << 30, "3 GiB")],
)
def test_an_amount_has_a_unit_that_suits_it(size: int, text: str) -> None:
    assert amount(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0012, "1.2 ms"), (0.238, "238 ms"), (12, "12 s"), (90, "1.5 min"), (7200, "2 h"), (4.5e6, "1,250 h")],
)
def test_a_duration_has_a_unit_that_suits_it(seconds: float, text: str) -> None:
    assert duration(seconds) == text
