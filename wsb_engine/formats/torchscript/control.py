"""Branches, loops, containers and attributes: what a walk does without looking at tensors.

A branch or a loop that depends on a shape which is not given stays open: each way is walked, and what it makes is
merged into a value of which no more is known than what it depends on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from wsb_engine.errors import ModelError
from wsb_engine.formats.graph.limits import LIMITS
from wsb_engine.formats.graph.plan import flattened, replaced
from wsb_engine.formats.torchscript import problems, scalars
from wsb_engine.formats.torchscript.graph import Block, Operation
from wsb_engine.formats.torchscript.interpreter import Walk
from wsb_engine.formats.torchscript.loading import Submodule
from wsb_engine.formats.torchscript.values import Value
from wsb_engine.internals import ScriptModule

_LEFT_OPEN = frozenset({"unsupported_operator", "data_dependent_control_flow"})
"""What is wrong within a branch that may not be taken."""


class _RaisedError(ModelError):
    """The module's own code raises an exception on the path that is taken."""


def _raised(operation: Operation, message: str) -> ModelError:
    return _RaisedError(
        f"the module raises an exception ({operation.location}): {message[:300]}",
        code="evaluation_failed",
        advice="Check that the batch has the shapes that the module expects.",
        location=operation.location,
    )


def _constant(walk: Walk, operation: Operation, _: tuple[Any, ...]) -> tuple[Any, ...]:
    value = operation.constant
    if isinstance(value, Tensor):
        return (walk.tensor(value, operation.outputs[0]),)
    return (replaced(value, lambda item: item),)  # a copy, since lists may be changed


def _attribute(walk: Walk, operation: Operation, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    owner = inputs[0]
    if not isinstance(owner, Submodule):
        raise problems.unsupported(f"attribute {operation.attribute}", operation.location, "of an object")
    if operation.attribute == "training":
        return (False,)
    path = f"{owner.path}.{operation.attribute}".lstrip(".")
    value = owner.module.getattr(operation.attribute)
    if isinstance(value, ScriptModule):
        return (Submodule(path, value),)
    positions = iter(range(LIMITS.initialisers))
    return (
        replaced(value, lambda item: walk.tensor(item, path, next(positions)) if isinstance(item, Tensor) else item),
    )


def _branch(walk: Walk, operation: Operation, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    condition = inputs[0]
    if not isinstance(condition, Value):
        return walk.block(operation.blocks[0 if condition else 1])
    before = walk.uses.copy()
    outcomes = [_undecided_block(walk, operation, block) for block in operation.blocks]
    reached = [(results, uses) for results, uses in outcomes if results is not None]
    if not reached:
        raise _raised(operation, "both ways")
    walk.uses = before
    for _, uses in reached:
        walk.uses = walk.uses | uses
    if len(reached) == 1:
        return reached[0][0]
    return tuple(
        _merged(walk, operation, name, (a, b))
        for name, a, b in zip(operation.outputs, reached[0][0], reached[1][0], strict=True)
    )


def _undecided_block(walk: Walk, operation: Operation, block: Block) -> tuple[tuple[Any, ...] | None, Counter[str]]:
    """Results of a branch that may be taken, None if it ends in an exception; and uses of parameters with it."""
    before, length = walk.uses.copy(), len(walk.steps)
    read = walk.reads(block)
    results: tuple[Any, ...] | None
    walk.undecided += 1
    try:
        results = walk.block(block)
    except _RaisedError:
        results = None
        del walk.steps[length:]
    except ModelError as error:
        if error.code not in _LEFT_OPEN:
            raise
        results = tuple(walk.note(operation, f"{name}?", read, merged=True) for name in block.outputs)
    finally:
        walk.undecided -= 1
    uses, walk.uses = walk.uses, before
    return results, uses


def _merged(walk: Walk, operation: Operation, name: str, pair: tuple[Any, Any]) -> Any:
    first, second = pair
    plain = not any(isinstance(item, (Value, Submodule)) for item in flattened(pair))
    if first is second or (plain and type(first) is type(second) and first == second):
        return first
    return walk.note(operation, name, pair, merged=True)


def _loop(walk: Walk, operation: Operation, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    trips, condition, *carried = inputs
    body = operation.blocks[0]
    outer, iteration = walk.suffix, 0
    while not isinstance(condition, Value) and not isinstance(trips, Value) and condition and iteration < trips:
        walk.suffix = f"{outer}@{iteration}"
        walk.bind(body.inputs, (iteration, *carried))
        condition, *carried = walk.block(body)
        iteration += 1
        walk.spend()
    walk.suffix = outer
    if isinstance(condition, Value) or isinstance(trips, Value):
        walk.suffix = f"{outer}@…"
        index = walk.opaque(f"{operation.location}@index")
        walk.bind(body.inputs, (index, *(walk.note(operation, name, (each,)) for name, each in
                                          zip(body.inputs[1:], carried, strict=True))))  # fmt: skip
        results, uses = _undecided_block(walk, operation, body)
        walk.uses = walk.uses | uses
        after = results[1:] if results is not None else carried
        walk.suffix = outer
        carried = [
            walk.note(operation, name, pair, merged=True)
            for name, *pair in zip(operation.outputs, carried, after, strict=True)
        ]
    return tuple(carried)


def _exception(walk: Walk, operation: Operation, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    raise _raised(operation, str(inputs[0]) if inputs and isinstance(inputs[0], str) else "")


def _unpack(walk: Walk, operation: Operation, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    items = inputs[0]
    if isinstance(items, Value):
        return tuple(walk.note(operation, name, inputs) for name in operation.outputs)
    if not isinstance(items, (list, tuple)) or len(items) != len(operation.outputs):
        raise _raised(operation, f"a container does not have {len(operation.outputs)} items")
    return tuple(items)


def _index(walk: Walk, operation: Operation, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    if isinstance(inputs[0], Value) or isinstance(inputs[1], Value):
        return (walk.note(operation, operation.outputs[0], inputs),)
    return (scalars.compute("__getitem__", inputs),)


def _passed(walk: Walk, operation: Operation, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return inputs[:1]


def _nothing(walk: Walk, operation: Operation, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (None,) * len(operation.outputs)


_Handler = Callable[[Walk, Operation, tuple[Any, ...]], tuple[Any, ...]]
TABLE: Mapping[str, _Handler] = {
    "aten::_unwrap_optional": _passed,
    "aten::warn": _nothing,
    "prim::Constant": _constant,
    "prim::DictConstruct": lambda walk, operation, inputs: (dict(zip(inputs[::2], inputs[1::2], strict=True)),),
    "prim::GetAttr": _attribute,
    "prim::If": _branch,
    "prim::ListConstruct": lambda walk, operation, inputs: (list(inputs),),
    "prim::ListUnpack": _unpack,
    "prim::Loop": _loop,
    "prim::RaiseException": _exception,
    "prim::TupleConstruct": lambda walk, operation, inputs: (inputs,),
    "prim::TupleIndex": _index,
    "prim::TupleUnpack": _unpack,
    "prim::Uninitialized": _nothing,
    "prim::unchecked_cast": _passed,
    "prim::unchecked_unwrap_optional": _passed,
}
