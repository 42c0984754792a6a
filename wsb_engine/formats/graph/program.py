"""A graph as a function: planned once for given input shapes, then run as plain torch calls.

Planning runs every operator on meta tensors, which have shapes but no memory: what depends on shapes alone (the
subgraphs that exporters write to compute a target shape) is computed there and then, in integers; sizes are checked
before anything is allocated; what depends on constants alone is folded. What remains is a list of kernel calls with
no Python decision on values, which is what ``torch.func`` needs.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from wsb_engine.curvature.tracing.dispatch import Running
from wsb_engine.errors import ModelError
from wsb_engine.formats.graph import operators, problems
from wsb_engine.formats.graph.graph import Graph, Node
from wsb_engine.formats.graph.limits import LIMITS
from wsb_engine.formats.graph.operators import Call, Operator
from wsb_engine.memory import ran_out
from wsb_engine.model import Tensors

_META = torch.device("meta")
_CPU = torch.device("cpu")
_PLANS = 16
"""Plans kept by a program; a ragged last chunk and a few batch sizes are all that an analysis uses."""
_KERNEL_FAILURES = (RuntimeError, ValueError, IndexError, TypeError, ArithmeticError, NotImplementedError)

T = TypeVar("T")
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class _Step:
    """One kernel call; an argument that is a string names a value made before."""

    kernel: Callable[..., Any]
    call: Call
    arguments: tuple[Any, ...]
    outputs: tuple[str, ...]
    finished: tuple[str, ...] = ()
    """Values that no later step needs."""


@dataclass(frozen=True)
class Plan:
    """What a program does for inputs of given shapes."""

    steps: tuple[_Step, ...]
    results: tuple[str | Tensor, ...]
    shapes: Shapes
    """Of every value that is computed from parameters or inputs."""

    def run(self, values: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Runs the steps on parameters and inputs by name; ``values`` is used up."""
        for step in self.steps:
            arguments = [values[a] if isinstance(a, str) else a for a in step.arguments]
            try:
                with Running(step.call.node.operator):
                    made = step.kernel(step.call, *arguments)
            except _KERNEL_FAILURES as error:
                if ran_out(error):
                    raise
                raise _evaluation_error(step.call.node, arguments, error) from error
            values.update(zip(step.outputs, made if isinstance(made, tuple) else (made,), strict=False))
            for name in step.finished:
                values.pop(name, None)
        return tuple(values[each] if isinstance(each, str) else each for each in self.results)


class Program:
    """Some values of a graph as a pure function of parameters and inputs.

    Args:
        graph: The graph, of which only what the outputs need is run.
        outputs: Names of the values to compute.
        parameters: Names of the constants that are parameters.

    Raises:
        ModelError: ``unsupported_operator`` for a node that the outputs need and the operator table lacks.
    """

    def __init__(self, graph: Graph, outputs: tuple[str, ...], parameters: Iterable[str]) -> None:
        self.graph = graph
        self.outputs = outputs
        self.nodes = graph.needed(outputs)
        for node in self.nodes:
            operators.require(node)
        reads = {name for node in self.nodes for name in node.reads} | set(outputs)
        self.parameters = tuple(name for name in parameters if name in reads)
        self.inputs = tuple(entry for entry in graph.inputs if entry.name in reads)
        self._plans: OrderedDict[object, Plan] = OrderedDict()

    def __call__(self, parameters: Tensors, inputs: Tensors, *, declared: int | None = None) -> tuple[Tensor, ...]:
        """The outputs, in the dtype and on the device of the parameters (of the inputs where there are none).

        Args:
            parameters: Parameters by name; unused ones are ignored.
            inputs: Inputs by name; unused ones are ignored.
            declared: The number of samples that the graph's Reshape targets are written for, where the inputs have
                another one; the targets are then rescaled.

        Raises:
            ModelError: ``missing_input``, ``evaluation_failed`` (shapes that don't fit, with the node),
                ``tensor_too_large``, ``data_dependent_shape``.
        """
        used = {name: parameters[name] for name in self.parameters}
        given = {entry.name: _given(inputs, entry.name) for entry in self.inputs}
        working, device = _setting([*used.values(), *given.values()])
        given = {name: x.to(working) if x.is_floating_point() else x for name, x in given.items()}
        return self.plan(used, given, working, device, declared).run({**used, **given})

    def plan(
        self,
        parameters: Tensors,
        inputs: Tensors,
        working: torch.dtype,
        device: torch.device,
        declared: int | None = None,
    ) -> Plan:
        """The plan for these shapes, made or remembered."""
        key = (working, device, declared, tuple((name, tuple(x.shape), x.dtype) for name, x in inputs.items()))
        if key not in self._plans:
            fixed = {name: (tuple(x.shape), x.dtype) for name, x in parameters.items()}
            given = {name: (tuple(x.shape), x.dtype) for name, x in inputs.items()}
            self._plans[key] = _aside(lambda: _plan(self, working, device, fixed, given, declared))
            if len(self._plans) > _PLANS:
                self._plans.popitem(last=False)
        self._plans.move_to_end(key)
        return self._plans[key]


def _evaluation_error(node: Node, arguments: Sequence[Any], error: Exception) -> ModelError:
    shapes = [list(a.shape) for a in arguments if a is not None]
    return ModelError(
        f"{node.label} can't be applied to shapes {shapes}: {(str(error).splitlines() or [''])[0]}",
        code="evaluation_failed",
        advice="Check that the batch has the shape that the model was exported for, and that the model runs in "
        "onnxruntime.",
        shapes=shapes,
        **operators.facts(node),
    )


def _given(inputs: Tensors, name: str) -> Tensor:
    if name not in inputs:
        raise ModelError(
            f"input {name!r} is missing",
            code="missing_input",
            advice="Give an array for every input of the model, by its name.",
            input=name,
        )
    return inputs[name]


def _setting(tensors: list[Tensor]) -> tuple[torch.dtype, torch.device]:
    """The working dtype and device: those of the first floating tensor."""
    for tensor in tensors:
        if tensor.is_floating_point():
            return tensor.dtype, tensor.device
    return torch.float64, tensors[0].device if tensors else _CPU


def _aside(work: Callable[[], T]) -> T:
    """Runs work in a thread of its own: function transforms and dispatch modes are per thread, so that planning in
    the middle of a vmap or a trace sees plain tensors and leaves no trace."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(work).result()


_Known = Mapping[str, tuple[tuple[int, ...], torch.dtype]]


def _plan(
    program: Program, working: torch.dtype, device: torch.device, fixed: _Known, given: _Known, declared: int | None
) -> Plan:
    if declared is None:
        return _Planner(program, working, device).plan({**fixed, **given})
    exported = {name: ((declared, *shape[1:]), dtype) for name, (shape, dtype) in given.items()}
    shapes = _Planner(program, working, device).plan({**fixed, **exported}).shapes
    return _Planner(program, working, device, exported=shapes).plan({**fixed, **given})


@dataclass
class _Planner:
    program: Program
    working: torch.dtype
    device: torch.device
    exported: Shapes | None = None
    """Shapes of the values for the number of samples that the graph was exported for, where it is another one."""
    shadows: dict[str, Tensor] = field(default_factory=dict)
    """Meta tensors of what depends on parameters or inputs."""
    known: dict[str, Tensor] = field(default_factory=dict)
    """Values of what depends on neither, on the CPU."""
    steps: list[_Step] = field(default_factory=list)
    folded: int = 0

    def plan(self, known: _Known) -> Plan:
        for name, (shape, dtype) in known.items():
            self.shadows[name] = torch.empty(shape, dtype=dtype, device=_META)
        for node in self.program.nodes:
            self._node(node)
        results = tuple(name if name in self.shadows else self._constant(name) for name in self.program.outputs)
        shapes = {name: tuple(shadow.shape) for name, shadow in self.shadows.items()}
        return Plan(_release(self.steps, results), results, shapes)

    def _node(self, node: Node) -> None:
        entry = operators.require(node)
        inputs = [(position, name) for position, name in enumerate(node.inputs)]
        shape_only = node.domain == "" and node.operator in ("Shape", "Size")
        if not shape_only and any(name in self.shadows for _, name in inputs):
            self._step(node, entry)
            return
        if not entry.concrete:
            for shadow in self._run(entry, node, _META):
                self._check_size(node, shadow, LIMITS.folded_elements)
        made = self._run(entry, node, _CPU)
        self.folded += sum(value.numel() for value in made)
        if self.folded > 4 * LIMITS.folded_elements:
            raise problems.too_large(node.label, self.folded, 4 * LIMITS.folded_elements)
        self.known.update((name, value) for name, value in zip(node.outputs, made, strict=False) if name)

    def _step(self, node: Node, entry: Operator) -> None:
        """Plans a node whose value is known only when the program runs."""
        dynamic = [position for position, name in enumerate(node.inputs) if name in self.shadows]
        if entry.concrete or any(position in entry.static for position in dynamic):
            raise ModelError(
                f"{node.label}: a shape depends on the values of parameters or inputs",
                code="data_dependent_shape",
                advice="Export the model with fixed shapes (a fixed number of classes, tokens and pixels).",
                **operators.facts(node),
            )
        made = self._run(entry, node, _META)
        for name, shadow in zip(node.outputs, made, strict=False):
            self._check_size(node, shadow, LIMITS.tensor_elements)
            if name:
                self.shadows[name] = shadow
        call = Call(node=node, working=self.working, device=self.device)
        self.steps.append(_Step(entry.kernel, call, self._arguments(entry, node, self.device), node.outputs))

    def _argument(self, entry: Operator, position: int, name: str, device: torch.device) -> Any:
        """A step's argument: None, a name, an array for a static input, or a constant on the device."""
        if not name:
            return None
        if name in self.shadows:
            return name
        constant = self._constant(name)
        return constant.numpy() if position in entry.static else constant.to(device)

    def _arguments(self, entry: Operator, node: Node, device: torch.device) -> tuple[Any, ...]:
        arguments = [self._argument(entry, position, name, device) for position, name in enumerate(node.inputs)]
        if self.exported is not None and (node.domain, node.operator) == ("", "Reshape"):
            name = node.inputs[0]
            if name in self.shadows:
                target = rescaled(self.exported[name], self.exported[node.outputs[0]], tuple(self.shadows[name].shape))
                arguments[1] = arguments[1] if target is None else np.array(target, dtype=np.int64)
        return tuple(arguments)

    def _run(self, entry: Operator, node: Node, device: torch.device) -> tuple[Tensor, ...]:
        arguments = list(self._arguments(entry, node, device))
        arguments = [self.shadows[a] if isinstance(a, str) else a for a in arguments]
        try:
            made = entry.kernel(Call(node=node, working=self.working, device=device), *arguments)
        except _KERNEL_FAILURES as error:
            if ran_out(error):
                raise
            raise _evaluation_error(node, arguments, error) from error
        values = made if isinstance(made, tuple) else (made,)
        if any(node.outputs[len(values) :]):
            raise Call(node=node, working=self.working, device=device).unsupported(
                f"output {len(values)} of this operator"
            )
        return values

    def _constant(self, name: str) -> Tensor:
        if name not in self.known:
            constants = self.program.graph.constants
            if name not in constants:
                raise problems.invalid(f"value {name!r} is not a tensor that can be computed with", name=name)
            value = constants[name]
            self.known[name] = value.to(self.working) if value.is_floating_point() else value
        return self.known[name]

    def _check_size(self, node: Node, shadow: Tensor, limit: int) -> None:
        if shadow.numel() > limit:
            raise problems.too_large(node.label, shadow.numel(), limit)


def rescaled(source: tuple[int, ...], target: tuple[int, ...], actual: tuple[int, ...]) -> tuple[int, ...] | None:
    """The target of a Reshape from ``actual``, given that ``source`` was reshaped to ``target``.

    The one axis in which ``actual`` differs from ``source`` holds the samples. It is found again in the target by the
    number of elements before it, since both shapes lay out the same elements in the same order. None where the
    shapes are the same, or where no axis of the target can hold the samples.
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


def _release(steps: list[_Step], results: tuple[str | Tensor, ...]) -> tuple[_Step, ...]:
    """Says after which step each intermediate value can go."""
    needed = {each for each in results if isinstance(each, str)}
    released: list[_Step] = []
    for step in reversed(steps):
        names = {a for a in step.arguments if isinstance(a, str)} | {name for name in step.outputs if name}
        released.append(_Step(step.kernel, step.call, step.arguments, step.outputs, tuple(names - needed)))
        needed |= names
    return tuple(reversed(released))
