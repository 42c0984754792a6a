"""Decisions about numbers that are known between two ends: yes, no, or not decided.

A rule holds if it holds for every value that the number can have, and does not hold if it holds for none. All
arithmetic is exact.
"""

from __future__ import annotations

from fractions import Fraction

from service.policies.metrics import Measurement
from service.policies.verdict import Operator


def satisfies(number: Measurement, op: Operator, limit: Fraction) -> bool | None:
    """Whether the number compares like this with the limit; None where the limit is between its ends."""
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
    """Whether number − baseline ≤ most."""
    return _decided(number.high - baseline.low <= most, number.low - baseline.high > most)


def increases_relatively_at_most(number: Measurement, baseline: Measurement, most: Fraction) -> bool | None:
    """Whether number − baseline ≤ most · |baseline|.

    Over a baseline of 0 no increase at all is allowed; below 0 the share is of the baseline's size.
    """
    # b + most |b| is linear on both sides of 0, so its extremes are at the ends or at 0.
    places = [baseline.low, baseline.high]
    if baseline.low < 0 < baseline.high:
        places.append(Fraction(0))
    allowed = [b + most * abs(b) for b in places]
    return _decided(number.high <= min(allowed), number.low > max(allowed))


def _decided(always: bool, never: bool) -> bool | None:
    return True if always else False if never else None
