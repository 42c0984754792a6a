"""The arguments of the program's JSON graph that are no values of it: numbers, texts, dtypes, and lists of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from wsb_engine.formats.pt2.fields import integer, names, number, take, variant
from wsb_engine.formats.pt2.weights import STRIDED, dtype_of
from wsb_engine.formats.torchscript.problems import unsupported
from wsb_engine.formats.torchscript.values import NUMBERS

LIMITED_TEXT = 200
"""Characters of the file's own text in a message."""
LISTS = frozenset({"as_tensors"})
"""Kinds of arguments and outputs that are lists of tensors."""


def plain(kind: str, given: Any) -> Any:
    """Return a number, a text, or a list of them; dtypes by TorchScript's numbers.

    Raises:
        ModelError: ``model_invalid``, ``unsupported_operator`` for objects and complex numbers, ``unsupported_dtype``.
    """
    if kind.endswith("s") and kind.removesuffix("s") in _SCALARS and isinstance(given, list):
        return [_SCALARS[kind.removesuffix("s")](each) for each in given]
    if kind in _SCALARS:
        return _SCALARS[kind](given)
    raise unsupported(f"an argument of kind {kind[:LIMITED_TEXT]}", "")


def _text(value: Any) -> str:
    return take({"text": value}, "text", str)


def _boolean(value: Any) -> bool:
    return take({"boolean": value}, "boolean", bool)


def _layout(value: Any) -> None:
    if value != STRIDED:
        raise unsupported("a sparse tensor", "")


_SCALARS: Mapping[str, Callable[[Any], Any]] = {
    "as_bool": _boolean,
    "as_device": lambda _: None,
    "as_float": number,
    "as_int": integer,
    "as_layout": _layout,
    "as_memory_format": lambda _: None,
    "as_none": lambda _: None,
    "as_scalar_type": lambda value: NUMBERS[dtype_of(value, "an operator")],
    "as_string": _text,
}


def probability(argument: Any) -> float:
    """Return a number that an argument states; 0 for one that is left out or computed."""
    kind, given = variant(argument) if argument is not None else ("as_none", True)
    return number(given) if kind in ("as_float", "as_int") else 0.0


def leaves(unions: Iterable[Any]) -> list[str]:
    """Return the names of values in arguments or outputs, lists laid out one after another."""
    found = []
    for union in unions:
        kind, given = variant(union)
        if kind in LISTS:
            found += names({"list": given}, "list")
        elif kind == "as_tensor":
            found.append(take(given, "name", str))
        elif kind in ("as_sym_int", "as_sym_float", "as_sym_bool") and isinstance(given, dict) and "as_name" in given:
            found.append(take(given, "as_name", str))
    return found
