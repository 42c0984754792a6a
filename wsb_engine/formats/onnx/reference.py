"""The same logits by onnxruntime, for a parity check on every load."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from google.protobuf.message import Message  # type: ignore[import-untyped]
from onnx import helper, numpy_helper
from torch import Tensor

from wsb_engine.errors import ModelError
from wsb_engine.formats.graph.tensors import External, to_torch
from wsb_engine.model import Input, Tensors

NAME = "onnxruntime"
Reference = Callable[[Mapping[str, np.ndarray]], np.ndarray]
_EMBEDDED = 1 << 20
"""Bytes of the largest constant that is written into the model that the runtime gets."""
_SHORT = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


@dataclass(frozen=True)
class Source:
    """What a file says, without the elements of its larger initialisers, which the graph holds already.

    Args:
        model: The file; it is not changed.
        constants: The elements of its initialisers, by name.
        external: Finds the elements of tensors that are in other files.
    """

    model: onnx.ModelProto
    constants: Tensors
    external: External

    def __post_init__(self) -> None:
        kept = onnx.ModelProto(ir_version=self.model.ir_version)
        kept.opset_import.extend(self.model.opset_import)
        kept.functions.extend(self.model.functions)
        kept.graph.name = self.model.graph.name or "classifier"
        kept.graph.node.extend(self.model.graph.node)
        kept.graph.input.extend(self.model.graph.input)
        for each in self.model.graph.initializer:
            if each.name in self.constants:
                kept.graph.initializer.add(name=each.name)
            else:  # strings
                kept.graph.initializer.append(each)
        object.__setattr__(self, "model", kept)

    def computes(self, name: str) -> bool:
        """Return whether a value is one of the graph itself, not of a function or a subgraph in it."""
        return any(name in node.output for node in self.model.graph.node)


def make_reference(source: Source, inputs: tuple[Input, ...], tensor: str) -> Reference:
    """Return a function that computes one value of the graph with onnxruntime.

    Tensors of float16 and bfloat16 are widened to float32, as the engine computes with their values, and runtimes lack
    many operators in these types.

    Args:
        source: The file. Only the nodes that the value depends on are given to the runtime, so that nothing runs that
            has not been read and checked.
        inputs: The inputs that the value depends on.
        tensor: The value's name.
    """
    session: Any = None
    given: dict[str, np.ndarray] = {}

    def reference(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        nonlocal session
        if session is None:
            part, constants = _extract(source, inputs, tensor)
            session = _session(part)
            given.update(constants)
        return _run(session, inputs, tensor, arrays, given)

    return reference


def _extract(
    source: Source, inputs: tuple[Input, ...], tensor: str
) -> tuple[onnx.ModelProto, Mapping[str, np.ndarray]]:
    """Return the part of a model that computes a value, and the large constants that are given to it as inputs.

    The runtime reads an input where it is, and copies an initialiser at least once.
    """
    model = source.model
    nodes, names = _needed(model.graph, tensor)
    part = onnx.ModelProto(ir_version=model.ir_version)
    part.opset_import.extend(model.opset_import)
    part.functions.extend(model.functions)
    part.graph.name = model.graph.name
    part.graph.node.extend(nodes)
    wanted = {entry.name for entry in inputs}
    part.graph.input.extend(value for value in model.graph.input if value.name in wanted)
    _widen(part, source.external)
    given = {}
    for each in model.graph.initializer:
        if each.name not in names:
            continue
        if each.name not in source.constants:
            part.graph.initializer.append(each)
            continue
        array = _widened(source.constants[each.name]).numpy()
        if array.nbytes <= _EMBEDDED:
            part.graph.initializer.append(numpy_helper.from_array(array, each.name))
        else:
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            part.graph.input.append(helper.make_tensor_value_info(each.name, kind, array.shape))
            given[each.name] = array
    part.graph.output.add(name=tensor)  # the type is inferred
    return part, given


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _widen(model: onnx.ModelProto, external: External) -> None:
    """Write float32 wherever a model names a shorter type, and elements into tensors that keep them elsewhere."""
    pending: list[Message] = [model]
    while pending:
        current = pending.pop()
        if isinstance(current, onnx.TensorProto):
            if current.data_type in _SHORT or current.data_location == onnx.TensorProto.EXTERNAL:
                tensor = _widened(to_torch(current, f"tensor {current.name!r}", external))
                current.CopyFrom(numpy_helper.from_array(tensor.numpy(), current.name))
            continue
        if isinstance(current, onnx.AttributeProto) and current.name in ("to", "dtype", "stash_type"):
            current.i = onnx.TensorProto.FLOAT if current.i in _SHORT else current.i
        if isinstance(current, onnx.TypeProto.Tensor) and current.elem_type in _SHORT:
            current.elem_type = onnx.TensorProto.FLOAT
        for field, value in current.ListFields():
            if field.type == field.TYPE_MESSAGE:
                pending += [value] if isinstance(value, Message) else value


def _needed(graph: onnx.GraphProto, tensor: str) -> tuple[list[onnx.NodeProto], set[str]]:
    """Return the nodes that a value depends on, in order, and the names of all values that they use."""
    names = {tensor}
    nodes = []
    for node in reversed(graph.node):
        if names.intersection(node.output):
            nodes.append(node)
            names.update(_used(node))
    return nodes[::-1], names


def _used(node: onnx.NodeProto) -> Iterator[str]:
    """Names that a node reads, in its subgraphs too."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            yield from (value.name for value in graph.output)
            for inner in graph.node:
                yield from _used(inner)


def _session(model: onnx.ModelProto) -> Any:
    # Read on import: without it onnxruntime starts a thread that reports on the models it loads.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # failures are raised, and nothing else is news
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common base class
        raise _failure(error) from error


def _run(
    session: Any,
    inputs: tuple[Input, ...],
    tensor: str,
    arrays: Mapping[str, np.ndarray],
    constants: Mapping[str, np.ndarray],
) -> np.ndarray:
    dtypes = {entry.name: str(_type(entry)).removeprefix("torch.") for entry in inputs}
    given = {name: np.ascontiguousarray(arrays[name], dtype=dtype) for name, dtype in dtypes.items()}
    samples = next(iter(given.values())).shape[0]
    fixed = next((entry.shape[0] for entry in inputs if entry.shape and entry.shape[0] is not None), None)
    slices = []
    try:
        for start in range(0, samples, fixed or max(samples, 1)):
            part = {name: array[start : start + (fixed or samples)] for name, array in given.items()}
            short = (fixed or 0) - next(iter(part.values())).shape[0]
            if short > 0:  # a file with a fixed batch takes nothing less
                part = {name: np.concatenate([a, np.repeat(a[-1:], short, axis=0)]) for name, a in part.items()}
            slices.append(session.run([tensor], {**part, **constants})[0])
    except Exception as error:  # as above
        raise _failure(error) from error
    return np.concatenate(slices)[:samples]


def _type(entry: Input) -> torch.dtype | None:
    return torch.float32 if entry.dtype in (torch.float16, torch.bfloat16) else entry.dtype


def _failure(error: Exception) -> ModelError:
    return ModelError(
        f"onnxruntime can't run the model: {str(error).splitlines()[0][:500]}",
        code="reference_failed",
        advice="The analysis does not need onnxruntime; its logits are just not compared.",
    )
