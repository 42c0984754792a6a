"""Sizes that a program states for the number of samples that it was exported for, rescaled to another number.

Where the samples are in a result follows from a comparison with the same walk on the exported number of samples, or is
guessed: a leading size of that number. ``BatchProgram`` uses the outcome only if it agrees with the program run on
slices of the exported size.
"""

from __future__ import annotations

from typing import Any

from wsb_engine.formats.graph.program import rescaled
from wsb_engine.formats.torchscript.graph import Operation
from wsb_engine.formats.torchscript.interpreter import Handlers, Walk
from wsb_engine.formats.torchscript.values import Value

_RESHAPING = ("_unsafe_view", "reshape", "view")
_FILLING = {"aten::full": 0, "aten::ones": 0, "aten::zeros": 0, "aten::new_full": 1, "aten::new_ones": 1,
            "aten::new_zeros": 1, "aten::repeat": 1, "aten::tile": 1}  # fmt: skip
"""Operator → position of the sizes that it is given."""


def rescaling(exported: Walk, declared: int, actual: int) -> Handlers:
    """Return handlers of the operators that are given sizes.

    Args:
        exported: A walk for ``declared`` samples.
        declared: The number of samples that it was exported for.
        actual: The number of samples at hand.
    """
    shapes = {value: shape for value, shape in exported.defined.values() if shape is not None}

    def reshape(walk: Walk, operation: Operation, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x, (_, made) = inputs[0], exported.defined.get(operation.outputs[0] + walk.suffix, ("", None))
        if isinstance(x, Value) and x.shadow is not None and x.name in shapes and made is not None:
            target = rescaled(shapes[x.name], made, tuple(x.shadow.shape))
            if target is not None:
                inputs = (x, list(target), *inputs[2:])
        return walk.tensor_operation(operation, inputs)

    def expand(walk: Walk, operation: Operation, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x, target, *rest = inputs
        if isinstance(x, Value) and x.shadow is not None and isinstance(target, list):
            now, then = list(x.shadow.shape), list(shapes.get(x.name, x.shadow.shape))
            added = len(target) - len(now)
            if now == then:
                target = _leading(target, declared, actual)
            else:
                target = target[:added] + [
                    size if a == b or size < 0 else a for size, a, b in zip(target[added:], now, then, strict=True)
                ]
        return walk.tensor_operation(operation, (x, target, *rest))

    def fill(walk: Walk, operation: Operation, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        position = _FILLING[operation.kind]
        given = list(inputs)
        if isinstance(given[position], list):
            given[position] = _leading(given[position], declared, actual)
        return walk.tensor_operation(operation, tuple(given))

    return {
        **dict.fromkeys((f"aten::{name}" for name in _RESHAPING), reshape),
        **dict.fromkeys(_FILLING, fill),
        "aten::expand": expand,
    }


def _leading(sizes: list[Any], declared: int, actual: int) -> list[Any]:
    """Return sizes with the first one that is the declared number of samples replaced."""
    position = sizes.index(declared) if declared in sizes else None
    return [actual if index == position else size for index, size in enumerate(sizes)]
