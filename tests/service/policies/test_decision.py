"""Decisions between two ends: never a pass that could be wrong, never a failure that could be."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from service.policies.decision import increases_at_most, increases_relatively_at_most, satisfies
from service.policies.metrics import Measurement
from service.policies.schemas import Operator
from wsb_engine.presentation.numbers import exact

# Small grids make equal ends, limits on an end and zeros frequent.
numbers = st.one_of(
    st.integers(-4, 4).map(Fraction), st.floats(-1e6, 1e6, allow_nan=False).map(exact), st.just(Fraction(0))
)
operators = st.sampled_from(["<", "<=", ">", ">=", "=="])
shares = st.one_of(st.integers(-2, 2).map(Fraction), st.floats(-3, 3).map(exact))
places = st.fractions(0, 1, max_denominator=64)


@st.composite
def measurements(draw: st.DrawFn) -> Measurement:
    low, high = sorted((draw(numbers), draw(numbers)))
    return Measurement(value=None, low=low, high=high, enclosed=True)


def inside(number: Measurement, place: Fraction) -> Fraction:
    return number.low + place * (number.high - number.low)


def compares(value: Fraction, op: Operator, limit: Fraction) -> bool:
    return {"<": value < limit, "<=": value <= limit, ">": value > limit, ">=": value >= limit, "==": value == limit}[
        op
    ]


@settings(deadline=None)
@given(measurements(), operators, numbers, places)
def test_a_decision_about_a_limit_holds_for_every_value_inside(
    number: Measurement, op: Operator, limit: Fraction, place: Fraction
) -> None:
    decision = satisfies(number, op, limit)
    assume(decision is not None)
    assert decision == compares(inside(number, place), op, limit)


@settings(deadline=None)
@given(measurements(), operators, numbers)
def test_what_is_left_undecided_about_a_limit_can_be_either(number: Measurement, op: Operator, limit: Fraction) -> None:
    assume(satisfies(number, op, limit) is None)
    candidates = {number.low, number.high, (number.low + number.high) / 2}
    if number.low <= limit <= number.high:
        candidates.add(limit)
    assert {compares(value, op, limit) for value in candidates} == {True, False}


@pytest.mark.slow
@settings(deadline=None)
@given(measurements(), measurements(), numbers, places, places)
def test_a_decision_about_an_increase_holds_for_every_pair_inside(
    number: Measurement, baseline: Measurement, most: Fraction, here: Fraction, there: Fraction
) -> None:
    decision = increases_at_most(number, baseline, most)
    assume(decision is not None)
    assert decision == (inside(number, here) - inside(baseline, there) <= most)


@pytest.mark.slow
@settings(deadline=None)
@given(measurements(), measurements(), shares, places, places)
def test_a_decision_about_a_relative_increase_holds_for_every_pair_inside(
    number: Measurement, baseline: Measurement, most: Fraction, here: Fraction, there: Fraction
) -> None:
    decision = increases_relatively_at_most(number, baseline, most)
    assume(decision is not None)
    value = inside(number, here)
    bases = [inside(baseline, there), *([Fraction(0)] if baseline.low <= 0 <= baseline.high else [])]
    assert [decision == (value - base <= most * abs(base)) for base in bases] == [True] * len(bases)


@pytest.mark.parametrize(("value", "share", "holds"), [(0.5, 2.0, None), (-0.1, 2.0, True), (-0.5, -2.0, None)])
def test_a_baseline_that_may_be_zero_allows_no_increase_there(value: float, share: float, holds: bool | None) -> None:
    baseline = Measurement(value=None, low=Fraction(-1), high=Fraction(1), enclosed=True)
    assert increases_relatively_at_most(known(value), baseline, exact(share)) is holds


@settings(deadline=None)
@given(measurements(), measurements(), shares)
def test_what_is_left_undecided_about_a_relative_increase_can_be_either(
    number: Measurement, baseline: Measurement, most: Fraction
) -> None:
    assume(increases_relatively_at_most(number, baseline, most) is None)
    bases = [baseline.low, baseline.high, *([Fraction(0)] if baseline.low <= 0 <= baseline.high else [])]
    found = {value - base <= most * abs(base) for value in (number.low, number.high) for base in bases}
    assert found == {True, False}


@settings(deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False), operators, st.floats(allow_nan=False, allow_infinity=False))
def test_a_plain_number_is_always_decided_as_floats_compare(value: float, op: Operator, limit: float) -> None:
    number = Measurement(value=value, low=exact(value), high=exact(value))
    native = {"<": value < limit, "<=": value <= limit, ">": value > limit, ">=": value >= limit, "==": value == limit}
    assert satisfies(number, op, exact(limit)) == native[op]


def known(value: float) -> Measurement:
    return Measurement(value=value, low=exact(value), high=exact(value))


@pytest.mark.parametrize(
    ("value", "baseline", "share", "holds"),
    [
        (13.0, 10.0, 0.3, True),  # three tenths are three tenths, though 0.3 in binary is less
        (3.3, 3.0, 0.1, True),
        (3.3000001, 3.0, 0.1, False),
        (0.0, 0.0, 0.0, True),
        (1e-300, 0.0, 1e6, False),
        (-0.9, -1.0, 0.1, True),
        (-0.89, -1.0, 0.1, False),
        (0.9, 1.0, -0.1, True),
        (0.91, 1.0, -0.1, False),
    ],
)
def test_a_relative_increase_is_a_share_of_the_baselines_size(
    value: float, baseline: float, share: float, holds: bool
) -> None:
    assert increases_relatively_at_most(known(value), known(baseline), exact(share)) is holds
