"""A TorchScript archive as a Classifier."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wsb_engine.curvature.tracing.operators import traits
from wsb_engine.errors import ModelError
from wsb_engine.formats.graph import head as heads
from wsb_engine.formats.graph.batching import BatchProgram, declared_batch
from wsb_engine.formats.graph.graph import Graph
from wsb_engine.formats.graph.logits import Head, logits_of, one_number
from wsb_engine.formats.graph.mlp import activation_names, find_mlp
from wsb_engine.formats.graph.plan import CPU, META, Shapes, Step, needed
from wsb_engine.formats.graph.problems import require_dependence
from wsb_engine.formats.torchscript import control
from wsb_engine.formats.torchscript.archive.scan import checked_archive
from wsb_engine.formats.torchscript.interpreter import Walk
from wsb_engine.formats.torchscript.loading import Script, load
from wsb_engine.formats.torchscript.parameters import ParameterSet, doubts, parameters
from wsb_engine.formats.torchscript.program import (
    Program,
    arguments,
    input_values,
    inputs_of,
    outputs_of,
)
from wsb_engine.formats.torchscript.structure import structure
from wsb_engine.formats.torchscript.values import Value
from wsb_engine.model import MLP, Classifier, Form, LogitModel, Tensors
from wsb_engine.options import Head as HeadOption

_SHORT = {5: "float16", 15: "bfloat16"}
"""Types shorter than float32, by the numbers that files use."""
_SAMPLES = 3
"""Batch size for inferring the shapes of a perceptron."""


@dataclass(frozen=True)
class _Opened:
    """A module with its parameters, before the shapes of the inputs are known."""

    found: ParameterSet
    walk: Walk
    graph: Graph

    def value(self, name: str) -> str:
        """Return the value behind an output's label."""
        node = self.graph.producers.get(name)
        return node.inputs[0] if name in self.graph.outputs and node is not None else name


class ScriptClassifier(Classifier):
    """A classifier whose graph the interpreter walks.

    Args:
        script: Graph, arguments and parameters.
        sha256: Digest of the file.

    Raises:
        ModelError: see ``interpreter`` and ``parameters``.
    """

    def __init__(self, script: Script, sha256: str) -> None:
        self._script = script
        self.inputs = inputs_of(script)
        self._opened = _open(script, _parameters(script))
        self.sha256 = sha256
        self.parameters: Tensors = self._opened.found.tensors
        self.constants: Tensors = self._opened.found.left_out

    def resolve(
        self,
        *,
        head: HeadOption = "auto",
        output: str | None = None,
        include: tuple[str, ...] = (),
        form: Form = "row",
    ) -> LogitModel:
        """Pick the output, strip its head and return the logits as a pure function.

        Args:
            head: What the output means; ``auto`` reads it off the graph, and takes an output that the graph tells
                nothing about for logits.
            output: Key of the output in a dictionary, or its position in a tuple: ``"0"``, ``"1"``, ….
            include: Names of ``constants`` to take for parameters.
            form: What the loss takes for logits.

        Raises:
            ModelError: ``unknown_output``, ``ambiguous_output``, ``unsupported_head``, ``multilabel_unsupported``,
                ``model_no_parameters``, ``model_not_finite``, ``logits_constant``.
        """
        opened = _open(self._script, self._opened.found.including(include)) if include else self._opened
        found, walk = opened.found, opened.walk
        chosen, told = _chosen(opened.graph, head, output, form)
        value = opened.value(chosen.tensor)
        steps = needed(walk.steps, (value,))
        reads = {name for step in steps for name in step.reads} | {value}
        used = {name: tensor for name, tensor in found.tensors.items() if name in reads}
        on_inputs = bool(reads.intersection(input_values(self._script)))
        require_dependence(chosen.tensor, on_parameters=bool(used), on_inputs=on_inputs)
        tied = tuple(name for name in used if walk.uses[name] > 1 or name in self._script.shared)
        mlp = self._mlp(opened, chosen, used) if not tied else None
        left_out = {name: tensor for name, tensor in found.left_out.items() if name in reads}
        return LogitModel(
            function=_logits(BatchProgram(Program(self._script, found, tuple(used), value), used), chosen, told),
            parameters=used,
            mlp=mlp,
            activations=activation_names(mlp, _activations(steps, used)),
            tied=tied,
            head=chosen.name,
            head_known=told,
            class_axis=chosen.axis,
            rounds_to=_rounds_to(steps),
            left_out=left_out,
            warnings=tuple(doubts(self._script, found, left_out)),
        )

    def _mlp(self, opened: _Opened, chosen: Head, used: Tensors) -> MLP | None:
        if chosen.finish != "none" or len(self.inputs) != 1:
            return None

        def features(value: str) -> Callable[[Tensors], Tensor]:
            part = BatchProgram(Program(self._script, opened.found, (), opened.value(value)), {})
            return lambda inputs: part({}, inputs)

        return find_mlp(opened.graph, chosen.tensor, used, self._perceptron_shapes(opened, used), features)

    def _perceptron_shapes(self, opened: _Opened, used: Tensors) -> Shapes | None:
        """Shapes of all values, if this is a perceptron: for the declared shape, else rows as wide as its first layer.

        A network that takes images and flattens them first takes rows just as well.
        """
        width = next(_first_widths(opened.graph, used), None)
        if width is None:
            return None
        sizes = self.inputs[0].shape or (None, None)
        features = [width] if None in sizes[1:] else sizes[1:]
        program = Program(self._script, opened.found, (), opened.value(opened.graph.outputs[0]))
        (name,) = input_values(self._script)
        rows = torch.empty(_SAMPLES, *features, dtype=torch.float64, device=META)
        try:
            shapes = dict(program.plan({}, {name: rows}, torch.float64, CPU, declared_batch(self.inputs)).shapes)
        except ModelError:
            return None
        for label in opened.graph.outputs:
            if opened.value(label) in shapes:
                shapes[label] = shapes[opened.value(label)]
        return shapes


class TorchScriptClassifier(ScriptClassifier):
    """A classifier read from the bytes of a TorchScript archive; nothing in it has been executed.

    Args:
        data: The file's bytes.

    Raises:
        ModelError: with a code for everything that can be wrong with the file; see ``archive``, ``loading``,
            ``interpreter`` and ``parameters``.
    """

    format = "torchscript"

    def __init__(self, data: bytes) -> None:
        super().__init__(load(checked_archive(data)), hashlib.sha256(data).hexdigest())


def _parameters(script: Script) -> ParameterSet:
    declared = ParameterSet(script.parameters, {}, {}, frozen=False)
    opened = _open(script, declared)
    return parameters(script, opened.walk, opened.graph)


def _open(script: Script, found: ParameterSet) -> _Opened:
    """Walk through a module without the shapes of the inputs."""
    walk = Walk(
        script=script,
        parameters=frozenset(found.tensors),
        constants=found.constants,
        control=control.TABLE,
        candidates=True,
    )
    given = [Value(name, None) for name in input_values(script)]
    outputs = outputs_of(script, walk.run(arguments(script, given)))
    return _Opened(found, walk, structure(walk, input_values(script), outputs))


def _chosen(graph: Graph, head: HeadOption, output: str | None, form: Form) -> tuple[Head, bool]:
    """Return the head, and whether it follows from the graph or the caller's option."""
    oracle = heads.Oracle(columns=lambda _: None, sample=lambda _: None)
    try:
        return heads.find_head(graph, head, output, oracle, form), True
    except ModelError as error:
        if error.code != "ambiguous_head":
            raise
        # Without shapes nothing can be tried out here; the batch tells probabilities from logits later.
        return Head(tensor=str(error.details["output"]), form=form), False


def _logits(program: BatchProgram, chosen: Head, told: bool) -> Callable[[Tensors, Tensors], Tensor]:
    def logits(parameters: Tensors, inputs: Tensors) -> Tensor:
        z = logits_of(chosen, program(parameters, inputs))
        if not told and chosen.form == "row" and z.shape[1] == 1:
            raise one_number()
        return z

    return logits


def _first_widths(graph: Graph, used: Tensors) -> Iterator[int]:
    """Input widths of the layers that a perceptron may begin with, in the order of the graph."""
    for node in graph.nodes:
        if node.domain != "" or node.operator not in ("Gemm", "MatMul"):
            continue
        for name in node.inputs[:2]:
            source, swapped = name, bool(node.attributes.get("transB"))
            before = graph.producers.get(source)
            while before is not None and before.operator in ("Identity", "Transpose"):
                swapped ^= before.operator == "Transpose"
                source = before.inputs[0]
                before = graph.producers.get(source)
            if source in used and used[source].ndim == 2:
                yield used[source].shape[1 if swapped else 0]


def _activations(steps: Sequence[Step], parameters: Iterable[str]) -> Iterator[str]:
    """Names of the nonlinearities through which a value depends on parameters."""
    trained = set(parameters)
    for step in steps:
        if trained.intersection(step.reads):
            trained.update(step.outputs)
            yield from _nonlinearities(step)


def _rounds_to(steps: Sequence[Step]) -> tuple[str, ...]:
    """Return the types shorter than float32 to which values are cast."""
    casts = [step for step in steps if step.call.node.name in ("to", "half")]
    numbers = [5 if step.call.node.name == "half" else each for step in casts for each in step.arguments[:3]]
    return tuple(dict.fromkeys(_SHORT[each] for each in numbers if type(each) is int and each in _SHORT))


def _nonlinearities(step: Step) -> tuple[str, ...]:
    """Return the names that a report gives to the nonlinearities in a step."""
    name = step.call.node.name.removesuffix("_")
    if name == "_transformer_encoder_layer_fwd":
        return ("scaled_dot_product_attention", "gelu" if step.arguments[7] else "relu")
    return (name,) if traits(name).activation else ()
