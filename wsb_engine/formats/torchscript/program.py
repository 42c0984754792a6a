"""The graph of forward as a function: walked once for given shapes, then run as plain torch calls."""

from __future__ import annotations

from typing import Any

import torch

from wsb_engine.errors import ModelError
from wsb_engine.formats.graph.plan import META, Plan, Planned, Specs, flattened, needed
from wsb_engine.formats.graph.roots import Roots
from wsb_engine.formats.torchscript import control, sizes
from wsb_engine.formats.torchscript.interpreter import Handlers, Walk
from wsb_engine.formats.torchscript.loading import Argument, Script
from wsb_engine.formats.torchscript.parameters import ParameterSet
from wsb_engine.formats.torchscript.values import Value
from wsb_engine.model import Input


class Program(Planned):
    """One value of the graph as a pure function of parameters and inputs.

    Args:
        script: The loaded module.
        found: The module's parameters.
        parameters: Names of the parameters that the value depends on.
        value: Its name, as a walk without shapes gives it.

    Planning raises ``logits_constant``, and as ``Walk.run`` does.
    """

    def __init__(self, script: Script, found: ParameterSet, parameters: tuple[str, ...], value: str) -> None:
        self._script = script
        self._constants = found.constants
        self._all = frozenset(found.tensors)
        self._value = value
        self.inputs = inputs_of(script)
        names = [entry.name for entry in self.inputs]
        super().__init__(parameters, dict(zip(names, input_values(script), strict=True)))

    def _make_plan(
        self, fixed: Specs, given: Specs, working: torch.dtype, device: torch.device, declared: int | None
    ) -> Plan:
        handlers = control.TABLE
        if declared is not None:
            batch = {name: ((declared, *shape[1:]), dtype) for name, (shape, dtype) in given.items()}
            exported = self._walk(batch, working, device, control.TABLE)
            actual = next(iter(given.values()))[0][0]
            handlers = {**control.TABLE, **sizes.rescaling(exported, declared, actual)}
        walk = self._walk(given, working, device, handlers)
        result, _ = walk.defined.get(self._value, (self._value, None))
        if result not in {*(name for step in walk.steps for name in step.outputs), *given, *self.parameters}:
            raise ModelError(
                f"output {self._value!r} does not depend on the samples",
                code="logits_constant",
                advice="Name the output that the classifier's layers lead to.",
            )
        steps = needed(walk.steps, (result,))
        shapes = {name: shape for name, (_, shape) in walk.defined.items() if shape is not None}
        if any(step.call.node.name.removesuffix("_") in ("pow", "sqrt") for step in steps):
            return Plan(steps, (result,), shapes, Roots)
        return Plan(steps, (result,), shapes)

    def _walk(self, given: Specs, working: torch.dtype, device: torch.device, handlers: Handlers) -> Walk:
        walk = Walk(
            script=self._script,
            parameters=self._all,
            constants=self._constants,
            control=handlers,
            working=working,
            device=device,
        )
        values = [Value(name, torch.empty(shape, dtype=dtype, device=META)) for name, (shape, dtype) in given.items()]
        walk.run(arguments(self._script, values))
        return walk


def input_arguments(script: Script) -> tuple[Argument, ...]:
    """Return the arguments that a batch must give: tensors without a default.

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
    return tuple(
        Input(name=argument.name, shape=argument.shape, dtype=argument.dtype) for argument in input_arguments(script)
    )


def input_values(script: Script) -> tuple[str, ...]:
    """Names of the values that are inputs."""
    pairs = zip(script.block.inputs[1:], script.arguments, strict=True)
    return tuple(name for name, argument in pairs if not argument.has_default)


def arguments(script: Script, values: list[Value]) -> list[Any]:
    """Return all arguments of forward: the inputs, and defaults for the rest."""
    given = iter(values)
    return [argument.default if argument.has_default else next(given) for argument in script.arguments]


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
