"""Decisions about numbers that are known to lie between two ends: yes, no, or undecided.

A rule holds if it holds for every value that the number can have, and does not hold if it holds for none. All
arithmetic is exact.
"""

from __future__ import annotations

from fractions import Fraction

from service.policies.metrics import Measurement
from service.policies.policy import Rule
from service.policies.schemas import Operator
from wsb_engine.presentation.numbers import exact


def holds(rule: Rule, number: Measurement, baseline: Measurement | None = None) -> bool | None:
    """Return whether a rule holds; None if that is undecided.

    Args:
        rule: The rule.
        number: The number that it is about.
        baseline: The baseline's number, for a rule about an increase.
    """
    if rule.op is not None and rule.limit is not None:
        return satisfies(number, rule.op, exact(rule.limit))
    if baseline is None:
        raise ValueError("an increase needs a baseline")
    if rule.max_increase is not None:
        return increases_at_most(number, baseline, exact(rule.max_increase))
    return increases_relatively_at_most(number, baseline, exact(rule.max_relative_increase or 0.0))


def satisfies(number: Measurement, op: Operator, limit: Fraction) -> bool | None:
    """Return whether the number compares like this with the limit; None if that is undecided."""
    low, high = number.low, number.high
    match op:
        case "<=":
            return _decided(high <= limit, low > limit)
        case "<":
            return _decided(high < limit, low >= limit)
        case ">=":
            return _decided(low >= limit, high < limit)
        case ">":
            return _decided(low > limit, high <= limit)
        case "==":
            return _decided(low == high == limit, not low <= limit <= high)


def increases_at_most(number: Measurement, baseline: Measurement, most: Fraction) -> bool | None:
    """Return whether number − baseline ≤ most; None if that is undecided."""
    return _decided(number.high - baseline.low <= most, number.low - baseline.high > most)


def increases_relatively_at_most(number: Measurement, baseline: Measurement, most: Fraction) -> bool | None:
    """Return whether number − baseline ≤ most · |baseline|; None if that is undecided.

    A baseline of 0 allows no increase at all; below 0 the share is one of the baseline's magnitude.
    """
    # b + most |b| is linear on both sides of 0, so its extremes are at the ends or at 0.
    places = [baseline.low, baseline.high]
    if baseline.low < 0 < baseline.high:
        places.append(Fraction(0))
    allowed = [b + most * abs(b) for b in places]
    return _decided(number.high <= min(allowed), number.low > max(allowed))


def _decided(always: bool, never: bool) -> bool | None:
    return True if always else False if never else None
