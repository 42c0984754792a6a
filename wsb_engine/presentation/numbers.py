"""Numbers for people, with as many digits as are meaningful."""

from __future__ import annotations

import math
import sys
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from fractions import Fraction
from typing import NamedTuple, Protocol

DIGITS = 6
"""Significant digits of a number, and the fewest of the ends of an interval."""
MAX_DIGITS = 17
"""Significant digits that distinguish any two float64 numbers."""


FEWEST_CERTAIN = 3
"""Significant digits that both ends of an interval must share for it to be shown as one number."""

_SMALLEST = -4
"""Smallest decimal exponent of a number that is shown without a power of ten."""


class Ends(Protocol):
    """Anything with a lower and an upper end."""

    @property
    def lower(self) -> float: ...

    @property
    def upper(self) -> float: ...


def number(value: float | None, digits: int = DIGITS) -> str:
    """Format a number to ``digits`` significant digits; integers in groups of three, None as a dash."""
    if value is None:
        return "—"
    if isinstance(value, int):
        return f"{value:,}"
    return _tidy(f"{value + 0.0:.{digits}g}")


def percent(share: float | None) -> str:
    return "—" if share is None else f"{number(100 * share, 3)} %"


def amount(size: int) -> str:
    """Write bytes in a unit that suits them."""
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 1 << power:
            return f"{_short(size / (1 << power))} {unit}"
    return f"{size} B"


def duration(seconds: float) -> str:
    """Write seconds in a unit that suits them."""
    for unit, length in (("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if seconds >= length:
            return f"{_short(seconds / length)} {unit}"
    return f"{_short(1000 * seconds)} ms"


def _short(value: float) -> str:
    """Write a positive number with three digits, or as an integer if it has more before the point."""
    return number(value, 3) if value < 100 else number(round(value))


def at_least(value: float, digits: int = DIGITS) -> str:
    """Format a number to ``digits`` significant digits, rounded down."""
    return _rounded(value, digits, ROUND_FLOOR)


def at_most(value: float, digits: int = DIGITS) -> str:
    """Format a number to ``digits`` significant digits, rounded up."""
    return _rounded(value, digits, ROUND_CEILING)


def ends(interval: Ends, *, fewest: int = DIGITS) -> tuple[str, str]:
    """Format both ends with enough digits to show their difference, at least ``fewest``, rounded outwards."""
    digits = _digits(interval.lower, interval.upper, fewest)
    return _rounded(interval.lower, digits, ROUND_FLOOR), _rounded(interval.upper, digits, ROUND_CEILING)


class Certain(NamedTuple):
    """A number that stands for an interval."""

    value: str
    """Every number of the interval rounds to this."""
    radius: str
    """The interval is within this distance of ``value``; empty if the interval is that number alone."""


def certain(interval: Ends, *, most: int = MAX_DIGITS) -> Certain | None:
    """Write an interval as the digits that all of it shares, at most ``most``; None if fewer than ``FEWEST_CERTAIN``.

    Both ends round to the same number with so many digits, and to different ones with one more.
    """
    lower, upper = Decimal(interval.lower), Decimal(interval.upper)
    exact = Context(prec=most).create_decimal(lower)
    if exact == lower == upper:
        return Certain(number(interval.lower, most), "")
    largest = max(abs(lower), abs(upper)).adjusted()
    for digits in range(most, FEWEST_CERTAIN - 1, -1):
        unit, context = Decimal((0, (1,), largest - digits + 1)), Context(prec=MAX_DIGITS + 1)
        value = lower.quantize(unit, context=context)
        if value == upper.quantize(unit, context=context):
            upwards = Context(prec=1, rounding=ROUND_CEILING)
            radius = max(upwards.subtract(upper, value), upwards.subtract(value, lower))
            return Certain(
                _written(value), f"{radius:f}" if 0 < radius.adjusted() < FEWEST_CERTAIN else _written(radius)
            )
    return None


def interval(value: Ends) -> str:
    lower, upper = ends(value)
    return f"[{lower}, {upper}]"


def within(value: Ends) -> str:
    """Write an interval in the few characters of a table's cell: the digits that are certain, else both ends."""
    shown = certain(value, most=DIGITS)
    return " to ".join(ends(value, fewest=FEWEST_CERTAIN)) if shown is None else shown.value


def middle(value: Ends) -> float:
    return value.lower / 2 + value.upper / 2


def width(value: Ends) -> float:
    return min(value.upper - value.lower, sys.float_info.max)


def exact(number: float) -> Fraction:
    """Convert a number as its decimal digits read: 0.3 is three tenths, without rounding later."""
    return Fraction(repr(float(number)))


def rounded(number: Fraction) -> float:
    """Round to the nearest finite float."""
    try:
        return float(number)
    except OverflowError:
        return sys.float_info.max if number > 0 else -sys.float_info.max


def _digits(lower: float, upper: float, fewest: int) -> int:
    """Count two digits more than the ends have in common, at least ``fewest``."""
    largest = max(abs(lower), abs(upper))
    gap = abs(upper / largest - lower / largest) if largest > 0 else 0.0
    if gap == 0:
        return DIGITS
    return min(MAX_DIGITS, max(fewest, math.ceil(-math.log10(gap)) + 2))


def _rounded(value: float, digits: int, rounding: str) -> str:
    if value == 0:
        return "0"
    found = Context(prec=digits, rounding=rounding).create_decimal(Decimal(value))
    unit = Decimal((0, (1,), found.adjusted() - digits + 1))
    written = _written(found.quantize(unit, context=Context(prec=digits)))
    # Trailing zeros give long ends one length, so that they compare at a glance.
    return written if digits > DIGITS else _without_zeros(written)


def _written(value: Decimal) -> str:
    """Write all digits of a number and no others, with a power of ten if it is small or they end before the point."""
    size, (_, _, exponent) = value.adjusted(), value.as_tuple()
    if isinstance(exponent, int) and size >= _SMALLEST and exponent <= 0:
        return f"{value:f}"
    return f"{value.scaleb(-size):f}e{size}"


def _without_zeros(text: str) -> str:
    mantissa, mark, exponent = text.partition("e")
    return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}{mark}{exponent}"


def _tidy(text: str) -> str:
    """Write 1e-09 as 1e-9."""
    mantissa, mark, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}" if mark else text
