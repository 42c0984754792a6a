"""Python's side of TorchScript: numbers, strings and containers, computed while the graph is walked.

A graph may ask for absurd work with a few operators (a list repeated, a string doubled, a number squared, again and
again), so results are bounded: integers to the 64 bits that TorchScript has, strings and containers to a length.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from wsb_engine.formats.torchscript import problems

LENGTH = 1 << 20
"""Characters of a string, items of a container."""
_INTEGERS = range(-(2**63), 2**63)


class UnsupportedScalarError(Exception):
    """The table's function does not take these arguments."""


def compute(name: str, arguments: tuple[Any, ...]) -> Any:
    """Return the result of a scalar or container operator.

    Args:
        name: Without its namespace; must be in ``TABLE``.
        arguments: Python values. Containers may be changed in place, as in Python.

    Raises:
        UnsupportedScalarError: if the arguments are of the wrong kind or number.
        ModelError: ``model_too_complex`` past a bound.
    """
    _check_growth(name, arguments)
    try:
        result = TABLE[name](*arguments)
    except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
        raise UnsupportedScalarError(str(error)) from error
    return _bounded(result)


def _bounded(result: Any) -> Any:
    if isinstance(result, int) and result not in _INTEGERS:
        raise problems.too_complex("bits in an integer", result.bit_length(), 64)
    if isinstance(result, (str, list, tuple, dict)) and len(result) > LENGTH:
        raise problems.too_complex("items in a container or string", len(result), LENGTH)
    return result


def _check_growth(name: str, arguments: tuple[Any, ...]) -> None:
    """Before the work is done: repetition and powers grow by more than the sizes of their arguments."""
    sizes = [len(each) for each in arguments if isinstance(each, (list, str))]
    if name == "mul" and sizes:
        times = max(int(each) for each in arguments if isinstance(each, (int, float)))
        sizes.append(max(times, 0) * sizes[0])
    if sum(sizes) > 4 * LENGTH:
        raise problems.too_complex("items in a container or string", sum(sizes), LENGTH)


def _division(a: float, b: float) -> float:
    return math.nan if b == 0 and a == 0 else math.copysign(math.inf, a) if b == 0 else a / b


def _format(template: str, *values: Any) -> str:
    """Only ever a message: what is filled in is kept short."""
    pieces = template.split("{}")
    texts = [str(value)[:200] if isinstance(value, (int, float, str, list)) else "…" for value in values]
    texts += [""] * len(pieces)
    return "".join(piece + text for piece, text in zip(pieces, texts, strict=False))


def _append(items: list[Any], item: Any) -> list[Any]:
    if len(items) >= LENGTH:
        raise problems.too_complex("items in a container or string", len(items) + 1, LENGTH)
    items.append(item)
    return items


def _set_item(items: Any, key: Any, item: Any) -> Any:
    items[key] = item
    return items


def _same(a: Any, b: Any) -> bool:
    return a is b or (isinstance(a, bool) and isinstance(b, bool) and a == b)


def _rounded(function: Callable[[float], int]) -> Callable[[float], Any]:
    return lambda a: a if isinstance(a, int) else function(a)


MUTATING = frozenset({"append", "clear", "extend", "insert", "pop", "remove", "reverse", "_set_item"})
"""Operators that change a container."""

TABLE: Mapping[str, Callable[..., Any]] = {
    **{name: getattr(math, name) for name in ("cos", "exp", "log", "pow", "sin", "sqrt", "tanh")},
    **{name: getattr(operator, name) for name in ("add", "eq", "floordiv", "ge", "gt", "le", "lt", "mul", "ne")},
    "neg": operator.neg,
    "sub": operator.sub,
    "Bool": bool,
    "Float": float,
    "FloatImplicit": float,
    "Int": int,
    "IntImplicit": int,
    "ScalarImplicit": lambda a: a,
    "__and__": operator.and_,
    "__contains__": lambda items, item: item in items,
    "__derive_index": lambda index, start, step: start + index * step,
    "__getitem__": operator.getitem,
    "__is__": _same,
    "__isnot__": lambda a, b: not _same(a, b),
    "__not__": operator.not_,
    "__or__": operator.or_,
    "__range_length": lambda low, high, step: len(range(low, high, step)),
    "__xor__": operator.xor,
    "_set_item": _set_item,
    "abs": abs,
    "all": all,
    "any": any,
    "append": _append,
    "ceil": _rounded(math.ceil),
    "clear": lambda items: items.clear(),
    "copy": lambda items: items.copy(),
    "dict": dict,
    "div": _division,
    "extend": lambda items, more: items.extend(list(more)),
    "floor": _rounded(math.floor),
    "format": _format,
    "get": lambda items, key, default=None: items.get(key, default),
    "insert": lambda items, index, item: items.insert(index, item),
    "items": lambda items: list(items.items()),
    "keys": list,
    "len": len,
    "list": list,
    "max": max,
    "min": min,
    "pop": lambda items, *index: items.pop(*index),
    "remainder": operator.mod,
    "reverse": lambda items: items.reverse(),
    "round": round,
    "slice": lambda items, start=None, end=None, step=1: items[start:end:step],
    "str": str,
    "truediv": _division,
    "values": lambda items: list(items.values()),
}
"""Operators of ``aten`` and ``prim`` on Python values."""
