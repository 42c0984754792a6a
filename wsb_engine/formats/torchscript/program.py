"""The graph of forward as a function: walked once for given shapes, then run as plain torch calls."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wsb_engine.curvature.tracing.dispatch import Running
from wsb_engine.errors import ModelError
from wsb_engine.formats.graph.roots import Roots
from wsb_engine.formats.torchscript import control
from wsb_engine.formats.torchscript.interpreter import Walk
from wsb_engine.formats.torchscript.loading import Argument, Script
from wsb_engine.formats.torchscript.values import Name, Step, Value, flattened, replaced
from wsb_engine.model import Input, Tensors

_PLANS = 16
"""Plans kept by a program; a ragged last chunk and a few batch sizes are all that an analysis uses."""
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Plan:
    """What a program does for inputs of given shapes."""

    steps: tuple[tuple[Step, tuple[str, ...]], ...]
    """Each with the values that no later step needs."""
    result: str
    shapes: Shapes
    """Of the values of the graph."""

    def run(self, values: dict[str, Tensor]) -> Tensor:
        """Runs the steps on parameters and inputs by name; ``values`` is used up."""

        def element(item: Any) -> Any:
            return values[item] if isinstance(item, Name) else item

        rooted = any(step.call.operation.name.removesuffix("_") in ("pow", "sqrt") for step, _ in self.steps)
        with Roots() if rooted else nullcontext():
            for step, finished in self.steps:
                if step.kernel is None:  # a walk with all shapes given decides everything
                    raise RuntimeError(f"{step.call.operation.kind} was left open")
                with Running(step.call.operation.public_name):
                    made = step.call.run(step.kernel, replaced(step.arguments, element))
                values.update(zip(step.outputs, made if isinstance(made, (tuple, list)) else (made,), strict=False))
                for name in finished:
                    values.pop(name, None)
        return values[self.result]


class Program:
    """One value of the graph as a pure function of parameters and inputs.

    Args:
        script: The loaded module.
        constants: Name of a constant of the graph → name of the parameter that it is.
        parameters: Names of the parameters that the value depends on.
        value: Its name, as a walk without shapes gives it.
    """

    def __init__(self, script: Script, constants: Mapping[str, str], parameters: tuple[str, ...], value: str) -> None:
        self._script = script
        self._constants = constants
        self._all = frozenset(script.parameters) | frozenset(constants.values())
        self.parameters = parameters
        self._value = value
        self._plans: OrderedDict[object, Plan] = OrderedDict()

    def __call__(self, parameters: Tensors, inputs: Tensors) -> Tensor:
        """The value, in the dtype and on the device of the parameters (of the inputs where there are none).

        Raises:
            ModelError: ``missing_input``, ``logits_constant``, and as for ``Walk.run``.
        """
        used = {name: parameters[name] for name in self.parameters}
        given = dict(zip(input_values(self._script), _inputs(self._script, inputs), strict=True))
        floating = [tensor for tensor in (*used.values(), *given.values()) if tensor.is_floating_point()]
        working = floating[0].dtype if floating else torch.float64
        device = (floating or list(given.values()))[0].device
        given = {name: x.to(working) if x.is_floating_point() else x for name, x in given.items()}
        shapes = tuple((tuple(x.shape), x.dtype) for x in given.values())
        return self.plan(shapes, working, device).run({**used, **given})

    def plan(
        self, shapes: tuple[tuple[tuple[int, ...], torch.dtype], ...], working: torch.dtype, device: torch.device
    ) -> Plan:
        """The plan for inputs of these shapes and dtypes, made or remembered."""
        key = (working, device, shapes)
        if key not in self._plans:
            # In a thread of its own: transforms and modes are per thread, and must not see the meta tensors.
            with ThreadPoolExecutor(max_workers=1) as pool:
                self._plans[key] = pool.submit(self._make_plan, shapes, working, device).result()
            if len(self._plans) > _PLANS:
                self._plans.popitem(last=False)
        self._plans.move_to_end(key)
        return self._plans[key]

    def _make_plan(
        self, shapes: tuple[tuple[tuple[int, ...], torch.dtype], ...], working: torch.dtype, device: torch.device
    ) -> Plan:
        names = input_values(self._script)
        values = [
            Value(name, torch.empty(shape, dtype=dtype, device="meta"))
            for name, (shape, dtype) in zip(names, shapes, strict=True)
        ]
        walk = Walk(self._script, self._all, self._constants, control.TABLE, working=working, device=device)
        walk.run(arguments(self._script, values))
        result, _ = walk.defined.get(self._value, (self._value, None))
        made = {name for step in walk.steps for name in step.outputs} | set(names) | set(self.parameters)
        if result not in made:
            raise ModelError(
                f"output {self._value!r} does not depend on the samples",
                code="logits_constant",
                advice="Name the output that the classifier's layers lead to.",
            )
        found = {name: shape for name, (_, shape) in walk.defined.items() if shape is not None}
        return Plan(released(walk.steps, result), result, found)


def released(steps: list[Step], result: str) -> tuple[tuple[Step, tuple[str, ...]], ...]:
    """The steps that a result needs, each with the values that can go after it."""
    needed = {result}
    kept = []
    for step in reversed(steps):
        if needed.intersection(step.outputs):
            names = {*step.reads, *step.outputs}
            kept.append((step, tuple(names - needed)))
            needed |= names
    return tuple(reversed(kept))


def input_arguments(script: Script) -> tuple[Argument, ...]:
    """The arguments that a batch must give: tensors without a default.

    Raises:
        ModelError: ``unsupported_input`` for an argument without a default that is no tensor.
    """
    required = tuple(argument for argument in script.arguments if not argument.has_default)
    for argument in required:
        if argument.type not in ("Tensor", "Optional[Tensor]"):
            raise ModelError(
                f"argument {argument.name!r} of forward is of type {argument.type}, not a tensor",
                code="unsupported_input",
                advice="Wrap the module so that forward takes tensors only, and save that.",
                argument=argument.name,
            )
    return required


def inputs_of(script: Script) -> tuple[Input, ...]:
    """As ``Classifier.inputs`` has them; a TorchScript file declares neither shapes nor dtypes."""
    return tuple(Input(name=argument.name, shape=None, dtype=None) for argument in input_arguments(script))


def input_values(script: Script) -> tuple[str, ...]:
    """Names of the values that are inputs."""
    pairs = zip(script.block.inputs[1:], script.arguments, strict=True)
    return tuple(name for name, argument in pairs if not argument.has_default)


def arguments(script: Script, values: list[Value]) -> list[Any]:
    """All arguments of forward: the inputs, and defaults for the rest."""
    given = iter(values)
    return [argument.default if argument.has_default else next(given) for argument in script.arguments]


def _inputs(script: Script, inputs: Tensors) -> list[Tensor]:
    found = []
    for argument in input_arguments(script):
        if argument.name not in inputs:
            raise ModelError(
                f"input {argument.name!r} is missing",
                code="missing_input",
                advice="Give an array for every input of the model, by its name.",
                input=argument.name,
            )
        found.append(inputs[argument.name])
    return found


def outputs_of(script: Script, result: Any) -> dict[str, str]:
    """Label → value for each tensor that forward returns: keys of a dictionary, else positions from 0.

    Raises:
        ModelError: ``no_logits`` if there is none.
    """
    labels: dict[str, str] = {}

    def collect(value: Any, prefix: str) -> None:
        if isinstance(value, Value):
            labels[prefix or "0"] = value.name
        elif isinstance(value, dict):
            for key, item in value.items():
                collect(item, f"{prefix}.{key}" if prefix else str(key))
        elif isinstance(value, (list, tuple)):
            for index, item in enumerate(value):
                collect(item, f"{prefix}.{index}" if prefix else str(index))

    collect(result, "")
    if not labels:
        raise ModelError(
            "forward returns no tensor that depends on its inputs",
            code="no_logits",
            advice="Save a module whose forward returns logits or probabilities.",
            returned=len(list(flattened(result))),
        )
    return labels
