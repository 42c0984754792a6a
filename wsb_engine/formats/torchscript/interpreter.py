"""Walks a graph with shapes instead of elements, and writes down the kernel calls on the way.

Numbers, strings and containers are computed as they are met; so are branches and loops, which may depend on constants
and shapes only. What is left is a list of calls on tensors. If the shapes of the inputs are given, that list is
a plan to run; if they are not, decisions stay open, and the list shows the structure of the network.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from wsb_engine.formats.graph import plan
from wsb_engine.formats.graph.limits import LIMITS
from wsb_engine.formats.graph.plan import META, Kernel, Name, Planner, flattened, tensors_of
from wsb_engine.formats.torchscript import problems, queries, scalars
from wsb_engine.formats.torchscript.graph import Block, Operation
from wsb_engine.formats.torchscript.loading import Script, require_dense
from wsb_engine.formats.torchscript.operators import TABLE, Operator
from wsb_engine.formats.torchscript.values import Call, Value, View
from wsb_engine.formats.torchscript.views import OVERLOADS, SCATTERS, out_of_place, scattered
from wsb_engine.internals import schema_of

_ITEMS = 10_000_000
"""Looked at in one walk."""
_STRUCTURAL = frozenset(
    {
        *("__getitem__", "_set_item", "append", "clear", "copy", "dict", "extend", "get", "insert", "items", "keys"),
        *("len", "list", "pop", "reverse", "slice", "values"),
    }
)
"""Operators on containers that do not read the items."""
_INDEXING = frozenset({"__getitem__", "pop", "slice"})
"""Those of them that read their other arguments."""


@dataclass(kw_only=True)
class Walk(Planner):
    """One walk through the graph of forward.

    Args:
        script: The loaded module.
        parameters: Names of the tensors that are parameters.
        constants: Name of a constant of the graph → the name that it has as a parameter.
        candidates: True to keep constants that may turn out to be parameters as values, not fold them.
    """

    script: Script
    parameters: frozenset[str]
    constants: Mapping[str, str]
    control: Handlers
    """Handlers of operations that are no tensor operators, or that treat their arguments first, by kind."""
    candidates: bool = False
    stored: dict[str, Tensor] = field(default_factory=dict)
    """Tensors of the file that steps use, by name."""
    literals: dict[str, Tensor] = field(default_factory=dict)
    """Floating constants of the graph that the walk has met, by name."""
    defined: dict[str, tuple[str, tuple[int, ...] | None]] = field(default_factory=dict)
    """Value of the graph → its name among the steps when it was defined, and its shape."""
    uses: Counter[str] = field(default_factory=Counter)
    """How often a parameter is used on the longest of the paths."""
    _values: dict[str, Any] = field(default_factory=dict)
    _tensors: dict[str, Value] = field(default_factory=dict)
    suffix: str = ""
    """Which iterations of which loops the walk is in; makes the names of values unique."""
    undecided: int = 0
    """How many open branches deep the walk is."""
    _containers: dict[int, tuple[object, int]] = field(default_factory=dict)
    """Containers made so far, with how many open branches deep the walk was."""
    _changed: dict[int, Value] = field(default_factory=dict)
    """What stands for a container that an open branch has changed."""
    _operations: int = 0
    _items: int = 0

    def run(self, arguments: Iterable[Any]) -> Any:
        """Walk the graph of forward.

        Args:
            arguments: Those of forward, the module left out.

        Returns:
            What forward returns, with a ``Value`` for each tensor.

        Raises:
            ModelError: ``unsupported_operator``, ``data_dependent_control_flow``, ``evaluation_failed``,
                ``tensor_too_large``, ``model_too_complex``, ``unsupported_dtype``.
        """
        block = self.script.block
        self.bind(block.inputs, (self.script.root, *arguments))
        return self.block(block)[0]

    def block(self, block: Block) -> tuple[Any, ...]:
        for operation in block.operations:
            self.spend()
            self.bind(operation.outputs, self._operation(operation))
        outputs = tuple(self._values[name] for name in block.outputs)
        _require_fresh(outputs, "return", "")
        return outputs

    def spend(self) -> None:
        self._operations += 1
        problems.limit("operations, once its loops are unrolled,", self._operations, LIMITS.nodes)

    def bind(self, names: tuple[str, ...], values: Iterable[Any]) -> None:
        for name, value in zip(names, values, strict=True):
            self._values[name] = value
            if isinstance(value, Value):
                shape = None if value.shadow is None else tuple(value.shadow.shape)
                self.defined[name + self.suffix] = (value.name, shape)
            elif isinstance(value, (list, dict)) and id(value) not in self._containers:
                self._containers[id(value)] = (value, self.undecided)

    def _operation(self, operation: Operation) -> tuple[Any, ...]:
        inputs = tuple(self._contents(self._values[name]) for name in operation.inputs)
        self._items += _require_fresh(inputs, operation.kind, operation.location)
        problems.limit("items in the containers that its operations read", self._items, _ITEMS)
        if operation.kind in self.control:
            return self.control[operation.kind](self, operation, inputs)
        if operation.kind in queries.TABLE:
            return self._query(operation, inputs)
        name = operation.name
        container = bool(inputs) and isinstance(inputs[0], (list, tuple, dict, str))
        numbers = name not in TABLE or not any(isinstance(each, Value) for each in inputs)
        if name in scalars.TABLE and (container or numbers):
            return self._scalar(operation, inputs)
        if operation.kind.startswith("aten::"):
            return self.tensor_operation(operation, inputs)
        raise problems.unsupported(operation.kind, operation.location)

    def tensor(self, tensor: Tensor, path: str, position: int = 0) -> Value:
        """Return a tensor of the file; the same value each time."""
        where = path if position == 0 else f"{path}.{position}"
        name = self.constants.get(where) or self.script.name_of(tensor, where)
        if name in self._tensors:
            return self._tensors[name]
        require_dense(tensor, name)
        plain = tensor.detach()
        shadow = torch.empty(plain.shape, dtype=self.working if plain.is_floating_point() else plain.dtype, device=META)
        literal = where.startswith("%") and plain.is_floating_point() and name not in self.script.parameters
        if literal:
            self.literals[name] = plain
        candidate = self.candidates and literal
        if name in self.parameters or candidate:
            value = Value(name, shadow, trained=name in self.parameters)
        else:
            value = Value(name, shadow, known=plain.to(self.working) if plain.is_floating_point() else plain)
        self._tensors[name] = value
        self.stored[name] = plain
        return value

    def reads(self, block: Block) -> list[Value]:
        """Return the values made so far that a block reads."""
        found: dict[int, Value] = {}
        pending = [block]
        while pending:
            current = pending.pop()
            names = [name for operation in current.operations for name in operation.inputs] + list(current.outputs)
            for item in flattened([self._contents(self._values[name]) for name in names if name in self._values]):
                if isinstance(item, Value):
                    found[id(item)] = item
            pending += [inner for operation in current.operations for inner in operation.blocks]
        return list(found.values())

    def _contents(self, value: Any) -> Any:
        """Return a container, or what stands for it once an open branch has changed it."""
        return self._changed.get(id(value), value) if self._changed else value

    # Numbers

    def _query(self, operation: Operation, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Something about a tensor other than its elements, or the number in a tensor that is known."""
        opaque = any(isinstance(each, Value) and each.opaque for each in inputs)
        if opaque and operation.kind not in queries.OF_ANYTHING:
            return (self.note(operation, operation.outputs[0], inputs),)
        result = queries.TABLE[operation.kind](operation, self.working, *inputs)
        if result is NotImplemented:
            return self._scalar(operation, inputs)
        if isinstance(result, Tensor):
            result = self._known(result, operation.outputs[0])
        return (result,) * len(operation.outputs)

    def _scalar(self, operation: Operation, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        name = operation.name
        if name in ("__is__", "__isnot__") and any(isinstance(each, Value) and each.merged for each in inputs):
            return (self.note(operation, operation.outputs[0], inputs),)
        looked_at: Iterable[Any] = flattened(inputs)
        if name in ("__is__", "__isnot__"):
            looked_at = ()
        elif name in _STRUCTURAL:
            looked_at = inputs if name in _INDEXING else inputs[:1]
        opaque = any(isinstance(item, Value) and item.opaque for item in looked_at)
        if name in scalars.MUTATING:
            container = self._values[operation.inputs[0]]
            if opaque or self._containers.get(id(container), (None, 0))[1] < self.undecided:
                changed = self.note(operation, f"{operation.kind} {self._operations}", inputs)
                self._changed[id(container)] = changed
                return (changed,) * len(operation.outputs)
        if opaque:
            return (self.note(operation, operation.outputs[0], inputs),)
        try:
            result = scalars.compute(name, inputs)
        except scalars.UnsupportedScalarError as error:
            raise problems.unsupported(operation.kind, operation.location, f"can't be computed: {error}") from error
        return (result,) if operation.outputs else ()

    # Tensors

    def tensor_operation(self, operation: Operation, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Apply an operator on tensors."""
        name, in_place = out_of_place(operation.name)
        entry = TABLE.get(name)
        if entry is None:
            raise problems.unsupported(operation.kind, operation.location)
        if name.startswith("detach") and any(isinstance(each, Value) and each.trained for each in inputs):
            raise problems.hides_parameters(operation.kind, operation.location)
        made = self._apply(operation, entry, inputs)
        if in_place:
            target: Value = inputs[0]
            self._overwrite(operation, target, made[0])
            return (target,)
        if inputs and isinstance(inputs[0], Value) and (entry.keeps or _is_view(name, operation.overload)):
            for value in flattened(made):
                value.memory, value.seen = inputs[0].memory, inputs[0].memory.writes
            if len(made) == 1 and isinstance(made[0], Value) and name in SCATTERS:
                made[0].view = View(inputs[0], name, inputs[1:])
        return made

    def _overwrite(self, operation: Operation, target: Value, made: Value) -> None:
        """Give new elements to a tensor that is written in place, and to those that it is a view of."""
        target.memory.writes += 1
        # A base that misses an earlier write through another view stays stale, and so do its own bases.
        while target.seen == target.memory.writes - 1:
            if target.shadow is not None and made.shadow is not None:
                if target.shadow.shape != made.shadow.shape:
                    raise problems.unsupported(operation.kind, operation.location, "in place would change the shape")
                if target.shadow.dtype != made.shadow.dtype:
                    made = self._further(operation, "type_as", (made, target))
            target.name, target.shadow, target.known, target.trained = made.name, made.shadow, made.known, made.trained
            target.seen = target.memory.writes
            if target.view is None:
                break
            view, target = target.view, target.view.base
            made = self._further(operation, *scattered(view, made))

    def _further(self, operation: Operation, name: str, inputs: tuple[Any, ...]) -> Value:
        """Apply one more operator as part of an operation."""
        self.spend()
        outputs = (f"{operation.outputs[0]}~{self._operations}",)
        further = replace(operation, kind=f"aten::{name}", overload=OVERLOADS.get(name, ""), outputs=outputs)
        made: Value = self._apply(further, TABLE[name], inputs)[0]
        return made

    def _apply(self, operation: Operation, entry: Operator, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        values = [item for item in flattened(inputs) if isinstance(item, Value)]
        if any(value.opaque for value in values):
            # One step for all outputs: each parameter counts as used once.
            self._emit(operation, entry.kernel, inputs, tuple(name + self.suffix for name in operation.outputs))
            trained = any(value.trained for value in values)
            return tuple(self.opaque(name, trained=trained) for name in operation.outputs)
        call = Call(node=operation, working=self.working, device=self.device)
        made, known = self.evaluate(call, entry.kernel, inputs)
        tensors = tensors_of(made)
        if known:
            results = [self._known(each, operation.outputs[0]) for each in tensors]
        else:
            trained = any(value.trained for value in values)
            names = self._output_names(operation, len(tensors))
            results = [Value(name, each, trained=trained) for name, each in zip(names, tensors, strict=True)]
            self._emit(operation, entry.kernel, inputs, names)
        if isinstance(made, list) or (isinstance(made, tuple) and len(operation.outputs) == 1):
            return (results,)
        if len(results) < len(operation.outputs):
            raise problems.unsupported(operation.kind, operation.location, "has outputs that are not supported")
        return tuple(results[: len(operation.outputs)])

    def _output_names(self, operation: Operation, count: int) -> tuple[str, ...]:
        own = [name + self.suffix for name in operation.outputs]
        return tuple(own) if len(own) == count else tuple(f"{own[0]}#{index}" for index in range(count))

    def _known(self, tensor: Tensor, name: str) -> Value:
        plain = tensor.to(self.working) if tensor.is_floating_point() else tensor
        return Value(name + self.suffix, plain.to(META), known=plain)

    def operand(self, value: plan.Value) -> Any:
        if value.known is None or not self.candidates:
            return super().operand(value)
        self.stored.setdefault(value.name, value.known)
        return Name(value.name)

    def _emit(self, operation: Operation, kernel: Kernel, inputs: tuple[Any, ...], outputs: tuple[str, ...]) -> None:
        call = Call(node=operation, working=self.working, device=self.device)
        step = self.emit(call, kernel, inputs, outputs)
        self.uses.update(name for name in step.reads if name in self.parameters)

    def note(
        self, operation: Operation, name: str, inputs: Iterable[Any], entry: Operator | None = None, *,
        merged: bool = False,
    ) -> Value:  # fmt: skip
        """Write down an operator whose result is not known yet, not even its shape."""
        arguments = tuple(inputs)
        trained = any(isinstance(item, Value) and item.trained for item in flattened(arguments))
        self._emit(operation, _undecided if entry is None else entry.kernel, arguments, (name + self.suffix,))
        return self.opaque(name, trained=trained, merged=merged)

    def opaque(self, name: str, *, trained: bool = False, merged: bool = False) -> Value:
        return Value(name + self.suffix, None, trained=trained, merged=merged)


Handlers = Mapping[str, Callable[[Walk, Operation, tuple[Any, ...]], tuple[Any, ...]]]


def _require_fresh(values: Any, kind: str, location: str) -> int:
    """Reject values that miss a change of their memory; return the number of items."""
    items = list(flattened(values))
    if any(isinstance(item, Value) and item.stale for item in items):
        raise problems.unsupported(kind, location, "reads a tensor after a view of it was changed in place")
    return len(items)


def _undecided(call: Call, *arguments: Any) -> Any:
    """Stands for a decision that is open; a walk with all shapes given leaves none."""
    raise AssertionError(f"{call.node.kind} was left open")


@functools.cache
def _is_view(name: str, overload: str) -> bool:
    """Return whether torch's schema says that the result shares memory with the first argument."""
    packet = getattr(torch.ops.aten, name, None)
    function = getattr(packet, overload or "default", None)
    return function is not None and "(a" in str(schema_of(function)).partition("->")[2]
