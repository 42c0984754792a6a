"""A graph as a function: what depends on shapes alone is computed while planning, the rest runs as kernel calls.

Exporters write subgraphs to compute a target shape; these are folded, in integers, once the input shapes are given.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wsb_engine.errors import ModelError
from wsb_engine.formats.graph import operators, problems
from wsb_engine.formats.graph.graph import SAMPLES, Graph, Node
from wsb_engine.formats.graph.operators import Call, Operator
from wsb_engine.formats.graph.plan import CPU, META, Plan, Planned, Planner, Shapes, Specs, Value, needed, tensors_of
from wsb_engine.formats.graph.tensors import dtype_of

_JUMPS = frozenset(
    {"ArgMax", "ArgMin", "Cast", "Ceil", "Equal", "Floor", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Round",
     "Sign", "TopK"}
)  # fmt: skip
"""Operators whose results change by leaps: another rounding of their inputs can change them altogether."""


class Program(Planned):
    """Some values of a graph as a pure function of parameters and inputs.

    Args:
        graph: The graph, of which only what the outputs need is run.
        outputs: Names of the values to compute.
        parameters: Names of the constants that are parameters.

    Raises:
        ModelError: ``unsupported_operator`` for a node that the outputs need and the operator table lacks. Planning
            raises ``data_dependent_shape``.
    """

    def __init__(self, graph: Graph, outputs: tuple[str, ...], parameters: Iterable[str]) -> None:
        self.graph = graph
        self.outputs = outputs
        self.nodes = graph.needed(outputs)
        for node in self.nodes:
            operators.require(node)
        self.decisive = _decisive(self.nodes)
        reads = {name for node in self.nodes for name in node.reads} | set(outputs)
        self.inputs = tuple(entry for entry in graph.inputs if entry.name in reads)
        super().__init__(
            tuple(name for name in parameters if name in reads), {entry.name: entry.name for entry in self.inputs}
        )

    def _make_plan(
        self, fixed: Specs, given: Specs, working: torch.dtype, device: torch.device, declared: int | None
    ) -> Plan:
        exported = None
        if declared is not None:
            batch = {name: ((declared, *shape[1:]), dtype) for name, (shape, dtype) in given.items()}
            exported = _Planner(program=self, working=working, device=device).plan({**fixed, **batch}).shapes
        return _Planner(program=self, working=working, device=device, exported=exported).plan({**fixed, **given})


@dataclass(kw_only=True)
class _Planner(Planner):
    program: Program
    exported: Shapes | None = None
    """Shapes of the values for the number of samples that the graph was exported for, if it is another one."""
    values: dict[str, Value] = field(default_factory=dict)
    stored: dict[str, Tensor] = field(default_factory=dict)
    """Known values that decide on leaps, in the file's precision."""

    def plan(self, specs: Specs) -> Plan:
        for name, (shape, dtype) in specs.items():
            self.values[name] = Value(name, torch.empty(shape, dtype=dtype, device=META))
        for node in self.program.nodes:
            self._node(node)
        results = [self._value(name) for name in self.program.outputs]
        found = tuple(value.name if value.known is None else value.known for value in results)
        shapes = {
            name: tuple(value.shadow.shape)
            for name, value in self.values.items()
            if value.known is None and value.shadow is not None
        }
        return Plan(needed(self.steps, found), found, shapes)

    def _node(self, node: Node) -> None:
        entry = operators.require(node)
        call = Call(node=node, working=self.working, device=self.device)
        inputs = [self._value(name) if name else None for name in node.inputs]
        if node.domain == "" and node.operator in ("Shape", "Size"):
            made, known = call.run(entry.kernel, [each and each.shadow for each in inputs]), True
        else:
            arguments = self._arguments(call, entry, inputs)
            made, known = self.evaluate(call, entry.kernel, arguments, concrete=entry.concrete)
            if known and (_is_jump(node) or not self.program.decisive.isdisjoint(node.outputs)):
                made = self._as_stored(call, entry, inputs)
            if not known:
                self.emit(call, entry.kernel, arguments, node.outputs)
        tensors = tensors_of(made)
        if any(node.outputs[len(tensors) :]):
            raise call.unsupported(f"output {len(tensors)} of this operator")
        for name, tensor in zip(node.outputs, tensors, strict=False):
            if name:
                self.values[name] = Value(name, tensor.to(META), tensor if known else None)

    def _as_stored(self, call: Call, entry: Operator, inputs: list[Value | None]) -> Sequence[Tensor]:
        """Return a node's known results, computed in the file's precision and widened, and keep them as computed.

        An embedding of positions by the logarithm of a distance, cut off to an integer, is another one in float64.
        """
        given = [each and replace(each, known=self._in_file(each)) for each in inputs]
        floating = (each.known.dtype for each in given if each and each.known is not None)
        working = next((dtype for dtype in floating if dtype.is_floating_point), torch.float32)
        if (call.node.domain, call.node.operator) == ("", "Cast"):
            target = dtype_of(call.get("to", 0), call.node.label)
            working = target if target.is_floating_point else working
        arguments = self._arguments(call, entry, given)
        made = tensors_of(self.run_kernel(replace(call, working=working), entry.kernel, arguments, CPU))
        self.stored.update(zip(call.node.outputs, made, strict=False))
        return [each.to(self.working) if each.is_floating_point() else each for each in made]

    def _in_file(self, value: Value) -> Tensor | None:
        """Return a known value in the file's precision."""
        return self.stored.get(value.name, self.program.graph.constants.get(value.name, value.known))

    def _value(self, name: str) -> Value:
        if name not in self.values:
            if name not in self.program.graph.constants:
                raise problems.invalid(f"value {name!r} is not a tensor that can be computed with", name=name)
            stored = self.program.graph.constants[name]
            known = stored.to(self.working) if stored.is_floating_point() else stored
            self.values[name] = Value(name, known.to(META), known)
        return self.values[name]

    def _arguments(self, call: Call, entry: Operator, inputs: list[Value | None]) -> list[Any]:
        """Return the inputs, with an array for each static one."""
        dynamic = {position for position, each in enumerate(inputs) if each is not None and each.known is None}
        if dynamic and (entry.concrete or entry.static & dynamic):
            raise ModelError(
                f"{call.node.label}: a shape depends on the values of parameters or inputs",
                code="data_dependent_shape",
                advice="Export the model with fixed shapes (a fixed number of classes, tokens and pixels).",
                **call.node.details,
            )
        arguments: list[Any] = [
            each.known.numpy() if each is not None and each.known is not None and position in entry.static else each
            for position, each in enumerate(inputs)
        ]
        node, source = call.node, inputs[0] if inputs else None
        if self.exported is not None and (node.domain, node.operator) == ("", "Reshape") and 0 in dynamic:
            shape = tuple(source.shadow.shape) if source is not None and source.shadow is not None else ()
            target = rescaled(self.exported[node.inputs[0]], self.exported[node.outputs[0]], shape)
            arguments[1] = arguments[1] if target is None else np.array(target, dtype=np.int64)
        if self.exported is not None and SAMPLES in node.attributes:
            rows = self.values[self.program.inputs[0].name].shadow
            arguments[1] = arguments[1].copy()
            arguments[1][node.attributes[SAMPLES]] = 1 if rows is None else rows.shape[0]
        return arguments


def rescaled(source: tuple[int, ...], target: tuple[int, ...], actual: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the target of a Reshape from ``actual``, given that ``source`` was reshaped to ``target``.

    The one axis in which ``actual`` differs from ``source`` holds the samples. It is found again in the target by the
    number of elements before it, since both shapes lay out the same elements in the same order. None if the
    shapes are the same, or if no axis of the target can hold the samples.
    """
    differing = [axis for axis, (a, b) in enumerate(zip(source, actual, strict=True)) if a != b]
    if len(differing) != 1:
        return None
    axis = differing[0]
    before = math.prod(source[:axis])
    for position, size in enumerate(target):
        ahead = math.prod(target[:position])
        if ahead == before or ahead < before < ahead * size:
            scaled, rest = divmod(size * actual[axis], source[axis])
            return (*target[:position], scaled, *target[position + 1 :]) if rest == 0 else None
    return None


def _decisive(nodes: Sequence[Node]) -> frozenset[str]:
    """Return the names of the values that results which change by leaps are computed from."""
    found: set[str] = set()
    for node in reversed(nodes):
        if _is_jump(node) or not found.isdisjoint(node.outputs):
            found.update(node.reads)
    return frozenset(found)


def _is_jump(node: Node) -> bool:
    return node.domain == "" and node.operator in _JUMPS
