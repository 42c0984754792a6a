"""An ONNX file as a Classifier."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor

from wsb_engine.curvature.tracing.operators import traits
from wsb_engine.errors import ModelError
from wsb_engine.formats.digest import model_digest
from wsb_engine.formats.graph import head as heads
from wsb_engine.formats.graph import operators
from wsb_engine.formats.graph.batching import BatchProgram
from wsb_engine.formats.graph.branches import resolve_branches
from wsb_engine.formats.graph.conventions import follow_conventions
from wsb_engine.formats.graph.graph import Graph, Node
from wsb_engine.formats.graph.logits import Head, logits_of
from wsb_engine.formats.graph.mlp import activation_names, find_mlp
from wsb_engine.formats.graph.once import is_made_up, looked_up, stored_once
from wsb_engine.formats.graph.parameters import find_parameters
from wsb_engine.formats.graph.plan import Shapes
from wsb_engine.formats.graph.problems import require_dependence, require_finite
from wsb_engine.formats.graph.program import Program
from wsb_engine.formats.graph.provenance import folded
from wsb_engine.formats.graph.simplify import simplify
from wsb_engine.formats.onnx.build import build
from wsb_engine.formats.onnx.doubts import doubts
from wsb_engine.formats.onnx.external import DataFiles
from wsb_engine.formats.onnx.lowering import lower
from wsb_engine.formats.onnx.proto import parse
from wsb_engine.formats.onnx.provenance import provenance
from wsb_engine.formats.onnx.reference import NAME, Reference, Source, make_reference
from wsb_engine.model import MLP, Classifier, Form, LogitModel, Tensors
from wsb_engine.options import Head as HeadOption

_PROBED = 16
"""Random samples on which a head that the graph does not show is recognised."""
_SHAPE_PROBLEMS = ("evaluation_failed", "data_dependent_shape")
_SHORT = {onnx.TensorProto.FLOAT16: "float16", onnx.TensorProto.BFLOAT16: "bfloat16"}
_SAMPLES = 3
"""Batch size for inferring shapes if the file leaves it free."""


class OnnxClassifier(Classifier):
    """A classifier read from an ONNX file and its data files; nothing in them has been executed.

    Args:
        data: The file's bytes.
        folder: Folder of the data files; None if there is none.
        own: Status of the file, if the bytes are from one.
        most: Largest number of bytes of all data files together.

    Raises:
        ModelError: with a code for everything that can be wrong with the files; see ``proto``, ``external``,
            ``build``, ``parameters``, and ``unsupported_operator``.
    """

    format = "onnx"

    def __init__(self, data: bytes, folder: Path | None, *, own: os.stat_result | None, most: int) -> None:
        model, tensors = parse(data)
        files = DataFiles(tensors, folder, own, most)
        parts = files.map()
        model = lower(model)
        built = build(model, files.elements)
        self._keeps_names = model.producer_name == "pytorch"
        self._source = Source(model, built.constants, files.elements)
        graph = follow_conventions(simplify(resolve_branches(built)))
        graph, self._told, self._doubts = stored_once(graph, provenance(model))
        _require_an_output(graph)
        self._graph = looked_up(graph, find_parameters(graph, self._told).tensors)
        self._found = find_parameters(self._graph, self._told)
        self.sha256 = model_digest((len(data), hashlib.sha256(data).hexdigest()), parts)
        self.inputs = self._graph.inputs
        self.parameters: Tensors = self._found.tensors
        self.constants: Tensors = {
            name: tensor
            for name, tensor in self._graph.constants.items()
            if tensor.is_floating_point() and name not in self.parameters
        }
        self.derived = self._told.derived
        self._stored: Tensors = {**self.parameters, **self.constants}
        self._programs: dict[str, Program] = {}

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
            head: What the output means; ``auto`` reads it off the graph.
            output: Name of the output; None takes the only one, or the one that leads to logits.
            include: Names of ``constants`` to take for parameters.
            form: What the loss takes for logits.

        Raises:
            ModelError: ``unknown_output``, ``ambiguous_output``, ``ambiguous_head``, ``unsupported_head``,
                ``multilabel_unsupported``, ``single_class``, ``unsupported_operator``, ``model_no_parameters``.
        """
        oracle = heads.Oracle(columns=self._columns, sample=self._sample)
        chosen = heads.find_head(self._graph, head, output, oracle, form)
        program = self._program(chosen.tensor)
        if include:
            program = Program(self._graph, (chosen.tensor,), (*program.parameters, *include))
        require_dependence(chosen.tensor, on_parameters=bool(program.parameters), on_inputs=bool(program.inputs))
        used = {name: self._stored[name] for name in program.parameters}
        require_finite({name: self._stored[name] for name in include})
        tied = self._found.tied(program.nodes)
        mlp = self._mlp(program, chosen, used) if not tied else None
        trained = self._graph.depends_on(set(used), shapes=False)
        others = (
            node.operator.lower()
            for node in program.nodes
            if traits(node.operator).activation and trained.intersection(node.reads)
        )
        reference = self._reference(program, chosen)
        batched = BatchProgram(program, used)
        reads = {name for node in program.nodes for name in node.reads}
        left_out = {
            name: tensor
            for name, tensor in self.constants.items()
            if name in reads and name not in used and (tensor.numel() > 1 or self._may_be_trained(name))
        }
        return LogitModel(
            function=lambda parameters, inputs: logits_of(chosen, batched(parameters, inputs)),
            parameters=used,
            mlp=mlp,
            activations=activation_names(mlp, others),
            tied=tied,
            head=chosen.name,
            classes=chosen.classes,
            class_axis=chosen.axis,
            reference=reference,
            reference_name=NAME if reference is not None else None,
            rounds_to=_rounds_to(program.nodes),
            left_out=left_out,
            warnings=tuple(self._warnings(program, used, left_out)),
        )

    def _may_be_trained(self, name: str) -> bool:
        """Return whether a constant may be a parameter by the file's record, or else has a name of the module's own.

        Without a record, torch gives parameters and buffers the names that they have in the module.
        """
        if not self._told.recorded:
            return self._keeps_names and not is_made_up(name)
        return name in self._told.learned or name in self._told.derived

    def _warnings(self, program: Program, used: Tensors, left_out: Tensors) -> Iterator[tuple[str, str]]:
        """Yield warnings about parameters that the file may hold twice, folded, or not as such."""
        yield from (("tied_copies", doubt) for doubt in self._doubts)
        yield from folded(self._told, used, left_out)
        if self._keeps_names and not self._told.recorded:
            statistics = {
                name for node in program.nodes if node.operator == "BatchNormalization" for name in node.inputs
            }
            yield from doubts(
                used,
                left_out,
                auxiliary=self._told.auxiliary,
                literals=self._found.literals,
                statistics=statistics,
            )

    def _program(self, value: str) -> Program:
        """Return the program of one value; it is kept, since it keeps its plans."""
        if value not in self._programs:
            self._programs[value] = Program(self._graph, (value,), self.parameters)
        return self._programs[value]

    def _columns(self, value: str) -> int | None:
        """Return the elements of a value for each sample; None if the file's shapes do not determine it."""
        shapes = self._shapes(self._program(value))
        if shapes is None or not shapes.get(value):
            return None
        return int(np.prod(shapes[value][1:], dtype=np.int64))

    def _sample(self, value: str) -> Tensor | None:
        """Return a value for random inputs; None if the file does not declare their shapes."""
        batched = BatchProgram(self._program(value), self.parameters)
        inputs = batched.random_inputs(_PROBED)
        if not inputs:
            return None
        try:
            return batched(self.parameters, inputs, working=torch.float64)
        except ModelError as error:
            if error.code in _SHAPE_PROBLEMS:
                return None
            raise

    def _shapes(self, program: Program) -> Shapes | None:
        """Shapes of a program's values for the declared inputs; None if some feature size is not declared."""
        inputs: dict[str, Tensor] = {}
        for entry in program.inputs:
            if not entry.shape or None in entry.shape[1:]:
                return None
            sizes = [entry.shape[0] or _SAMPLES, *(size or 1 for size in entry.shape[1:])]
            dtype = torch.float64 if entry.dtype is None or entry.dtype.is_floating_point else entry.dtype
            inputs[entry.name] = torch.empty(sizes, dtype=dtype, device="meta")
        parameters = {
            name: torch.empty(self._stored[name].shape, dtype=torch.float64, device="meta")
            for name in program.parameters
        }
        try:
            return program.plan(parameters, inputs, torch.float64, torch.device("cpu")).shapes
        except ModelError as error:
            if error.code in _SHAPE_PROBLEMS:
                return None
            raise

    def _mlp(self, program: Program, chosen: Head, used: Tensors) -> MLP | None:
        if chosen.finish != "none":
            return None

        def features(value: str) -> Callable[[Tensors], Tensor]:
            part = BatchProgram(Program(self._graph, (value,), ()), {})
            return lambda inputs: part({}, inputs)

        return find_mlp(self._graph, chosen.tensor, used, self._shapes(program), features)

    def _reference(self, program: Program, chosen: Head) -> Reference | None:
        """Return the logits by onnxruntime; None for a value within a function, which a runtime does not expose."""
        if not self._source.computes(chosen.tensor):
            return None
        run = make_reference(self._source, program.inputs, chosen.tensor)

        return lambda inputs: logits_of(chosen, torch.from_numpy(run(inputs))).numpy()


def _rounds_to(nodes: Iterable[Node]) -> tuple[str, ...]:
    targets = (node.attributes.get("to") for node in nodes if (node.domain, node.operator) == ("", "Cast"))
    return tuple(dict.fromkeys(_SHORT[target] for target in targets if target in _SHORT))


def _require_an_output(graph: Graph) -> None:
    """Some output must be computable with the operator table; a label sibling need not be."""
    failures = []
    for output in graph.outputs:
        missing = [node for node in graph.needed((output,)) if not _known(node)]
        if not missing:
            return
        failures.append(missing[0])
    operators.require(failures[0])


def _known(node: Node) -> bool:
    return operators.find(node) is not None or (node.domain, node.operator) in heads.NOT_EXECUTED
