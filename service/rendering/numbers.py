"""Numbers for people, with as many digits as are meaningful."""

from __future__ import annotations

import math
import sys
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from typing import Protocol

DIGITS = 6
"""Significant digits of a number, and the fewest of the ends of an interval."""
MAX_DIGITS = 17
"""Significant digits that distinguish any two float64 numbers."""


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


def percent(share: float) -> str:
    return f"{number(100 * share, 3)} %"


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


def ends(interval: Ends) -> tuple[str, str]:
    """Format both ends with enough digits to show their difference, rounded outwards."""
    lower, upper = interval.lower, interval.upper
    digits = _digits(lower, upper)
    return _rounded(lower, digits, ROUND_FLOOR), _rounded(upper, digits, ROUND_CEILING)


def interval(value: Ends) -> str:
    lower, upper = ends(value)
    return f"[{lower}, {upper}]"


def middle(value: Ends) -> float:
    return value.lower / 2 + value.upper / 2


def width(value: Ends) -> float:
    return min(value.upper - value.lower, sys.float_info.max)


def _digits(lower: float, upper: float) -> int:
    """Count two digits more than the ends have in common."""
    largest = max(abs(lower), abs(upper))
    gap = abs(upper / largest - lower / largest) if largest > 0 else 0.0
    if gap == 0:
        return DIGITS
    return min(MAX_DIGITS, max(DIGITS, math.ceil(-math.log10(gap)) + 2))


def _rounded(value: float, digits: int, rounding: str) -> str:
    rounded = float(Context(prec=digits, rounding=rounding).create_decimal(Decimal(value)))
    if not math.isfinite(rounded):  # the largest float64 numbers, rounded upwards
        return number(value, MAX_DIGITS)
    # Trailing zeros give long ends one length, so that they compare at a glance.
    return _tidy(f"{rounded:#.{digits}g}") if digits > DIGITS else number(rounded, digits)


def _tidy(text: str) -> str:
    """Write 1e-09 as 1e-9."""
    mantissa, mark, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}" if mark else text
