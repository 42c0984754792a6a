"""Operators that ask something about a tensor, or about the mode that the module runs in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from wsb_engine.formats.torchscript import problems
from wsb_engine.formats.torchscript.graph import Operation
from wsb_engine.formats.torchscript.values import NUMBERS, Value

_Query = Callable[..., Any]
"""(operation, working dtype, *arguments) → the answer, or NotImplemented if no argument is a tensor."""


def _about(answer: Callable[..., Any]) -> _Query:
    """Return the handler of a query about the shape or type of a tensor."""

    def query(operation: Operation, working: torch.dtype, value: Any, *arguments: Any) -> Any:
        if not isinstance(value, Value):
            return NotImplemented
        try:
            return answer(value.shadow, *arguments)
        except (IndexError, RuntimeError, TypeError) as error:
            shape = [] if value.shadow is None else list(value.shadow.shape)
            raise problems.evaluation_failed(
                operation.label, f"asks for an axis that shape {shape} does not have", **operation.details
            ) from error

    return query


def _always(answer: Any) -> _Query:
    return lambda operation, working, *arguments: answer


def _number(kind: Callable[[Any], Any]) -> _Query:
    """Return the handler of a query for the number in a tensor, which must be known."""

    def query(operation: Operation, working: torch.dtype, value: Any, *_: Any) -> Any:
        if not isinstance(value, Value):
            return NotImplemented
        if value.known is None or value.known.numel() != 1:
            raise problems.data_dependent(operation.kind, operation.location)
        return kind(value.known.item())

    return query


def _size(shadow: Any, *dim: int) -> Any:
    return shadow.shape[dim[0]] if dim else list(shadow.shape)


_FALSE = (
    *("aten::is_autocast_enabled", "aten::is_complex", "prim::is_cuda", "prim::is_mkldnn", "prim::is_nested"),
    *("prim::is_quantized", "prim::is_sparse"),
)
_TRUE = ("aten::is_contiguous", "aten::is_grad_enabled", "prim::is_cpu")
TABLE: Mapping[str, _Query] = {
    **dict.fromkeys(_FALSE, _always(False)),
    **dict.fromkeys(_TRUE, _always(True)),
    "aten::Bool": _number(bool),
    "aten::Float": _number(float),
    "aten::FloatImplicit": _number(float),
    "aten::Int": _number(int),
    "aten::IntImplicit": _number(int),
    "aten::ScalarImplicit": _number(lambda number: number),
    "aten::_shape_as_tensor": _about(lambda shadow: torch.tensor(list(shadow.shape))),
    "aten::dim": _about(lambda shadow: shadow.ndim),
    "aten::is_floating_point": _about(lambda shadow: shadow.is_floating_point()),
    "aten::item": _number(lambda number: number),
    "aten::len": _about(lambda shadow: shadow.shape[0]),
    "aten::numel": _about(lambda shadow: shadow.numel()),
    "aten::size": _about(_size),
    "prim::NumToTensor": lambda _, working, value: torch.tensor(
        value, dtype=working if isinstance(value, float) else None
    ),
    "prim::device": _always(torch.device("cpu")),
    "prim::dtype": _about(lambda shadow: NUMBERS[shadow.dtype]),
    "prim::layout": _always(0),
    # As while training, for all that depends on a parameter.
    "prim::requires_grad": lambda *arguments: isinstance(arguments[2], Value) and arguments[2].trained,
    "prim::type": lambda _, working, device: str(getattr(device, "type", "cpu")),
}

OF_ANYTHING = frozenset({*_FALSE, *_TRUE, "prim::device", "prim::layout", "prim::requires_grad", "prim::type"})
"""Queries whose answer does not depend on the shape."""
