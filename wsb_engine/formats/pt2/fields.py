"""The archive's JSON, parsed within bounds, and typed access to its fields."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from wsb_engine.errors import ModelError
from wsb_engine.formats.pt2 import problems
from wsb_engine.formats.pt2.archive import Archive

JSON_BYTES = 1 << 27
"""Largest size of one JSON document; a program takes some kilobytes for each operator."""
_INTEGERS = range(-(2**63), 2**63)
_NUMBERS = {"Infinity": float("inf"), "-Infinity": float("-inf"), "NaN": float("nan")}

T = TypeVar("T")
Object = Mapping[str, Any]


def document(archive: Archive, name: str) -> Object:
    """Parse a member of the archive.

    Raises:
        ModelError: ``model_invalid``, ``model_too_large``, ``model_too_complex`` for absurd nesting.
    """
    text = archive.read(name, JSON_BYTES)
    try:
        parsed = json.loads(text)
    except RecursionError as error:
        raise ModelError(
            f"{name} is nested too deeply", code="model_too_complex", advice="Export the classifier alone."
        ) from error
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are among these
        raise problems.invalid(f"{name} is not JSON: {str(error)[:200]}") from error
    return _checked(parsed, dict, name)


def take(owner: Any, key: str, kind: type[T]) -> T:
    """Return a field of an object.

    Raises:
        ModelError: ``model_invalid`` if it is missing or of another type.
    """
    if not isinstance(owner, dict) or key not in owner:
        raise problems.invalid(f"the program's JSON lacks a field {key!r}")
    return _checked(owner[key], kind, key)


def names(owner: Any, key: str) -> list[str]:
    """Return the names in a list of objects that each have one."""
    return [take(each, "name", str) for each in take(owner, key, list)]


def variant(union: Any) -> tuple[str, Any]:
    """Return the one field of a union.

    Raises:
        ModelError: ``model_invalid`` if it has none or several.
    """
    given: Iterator[tuple[str, Any]] = iter(union.items() if isinstance(union, dict) and len(union) == 1 else ())
    for kind, value in given:
        return kind, value
    raise problems.invalid("the program's JSON has a union without one field")


def integer(value: Any) -> int:
    """Return a 64-bit integer."""
    number = _checked(value, int, "integer")
    if number not in _INTEGERS:
        raise problems.invalid("the program's JSON has an integer of more than 64 bits")
    return number


def number(value: Any) -> float:
    """Return a float; infinite ones are stored as text."""
    if isinstance(value, str) and value in _NUMBERS:
        return _NUMBERS[value]
    return float(integer(value) if isinstance(value, int) else _checked(value, float, "number"))


def _checked(value: Any, kind: type[T], what: str) -> T:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise problems.invalid(f"the program's JSON has {type(value).__name__} for {what[:100]!r}")
    return value
