"""Operators that write in place: which one each is without writing, and how a write to a view reaches its base."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from wsb_engine.formats.torchscript.values import Value, View

_AUGMENTED = {f"__i{name}__": f"__{name}__" for name in ("and", "lshift", "or", "rshift", "xor")}


def out_of_place(name: str) -> tuple[str, bool]:
    """Return the operator that computes what a name computes without writing in place, and whether the name writes.

    Args:
        name: Without its namespace: ``add_``, ``__iand__``, ``add``.
    """
    if name in _AUGMENTED:
        return _AUGMENTED[name], True
    in_place = name.endswith("_") and not name.endswith("__")
    return (name.removesuffix("_") if in_place else name), in_place


def scattered(view: View, new: Value) -> tuple[str, tuple[Any, ...]]:
    """Return the operator, and its arguments, that computes a base from new elements of a view."""
    return SCATTERS[view.operator](view.base, new, *view.arguments)


_Scatter = Callable[..., tuple[str, tuple[Any, ...]]]


def _reshaped(base: Value, new: Value, *_: Any) -> tuple[str, tuple[Any, ...]]:
    return "view_as", (new, base)


def _transposed(base: Value, new: Value, *axes: Any) -> tuple[str, tuple[Any, ...]]:
    return "transpose", (new, *(axes or (0, 1)))


SCATTERS: Mapping[str, _Scatter] = {
    **dict.fromkeys(("alias", "squeeze", "unsqueeze", "view", "view_as"), _reshaped),
    **dict.fromkeys(("swapaxes", "swapdims", "t", "transpose"), _transposed),
    "select": lambda base, new, *arguments: ("select_scatter", (base, new, *arguments)),
    "slice": lambda base, new, *arguments: ("slice_scatter", (base, new, *arguments)),
}
"""Operator that always makes a view → how its base follows from new elements."""
OVERLOADS: Mapping[str, str] = {"transpose": "int"}
"""Overloads of the operators that these functions return, if they have several or a named one."""
