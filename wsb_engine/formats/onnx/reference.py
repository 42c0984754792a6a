"""The same logits by onnxruntime, for a parity check on every load."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx

from wsb_engine.errors import ModelError
from wsb_engine.model import Input

NAME = "onnxruntime"
Reference = Callable[[Mapping[str, np.ndarray]], np.ndarray]


def make_reference(model: onnx.ModelProto, inputs: tuple[Input, ...], tensor: str) -> Reference:
    """Return a function that computes one value of the graph with onnxruntime.

    Args:
        model: The file; it is not changed. Only the nodes that the value depends on are given to the runtime, so
            that nothing runs that has not been read and checked.
        inputs: The inputs that the value depends on.
        tensor: The value's name.
    """
    session: Any = None

    def reference(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        nonlocal session
        session = session or _session(_extract(model, inputs, tensor))
        return _run(session, inputs, tensor, arrays)

    return reference


def _extract(model: onnx.ModelProto, inputs: tuple[Input, ...], tensor: str) -> onnx.ModelProto:
    nodes, names = _needed(model.graph, tensor)
    part = onnx.ModelProto()
    part.ir_version = model.ir_version
    part.opset_import.extend(model.opset_import)
    part.functions.extend(model.functions)
    part.graph.name = model.graph.name or "classifier"
    part.graph.node.extend(nodes)
    part.graph.initializer.extend(each for each in model.graph.initializer if each.name in names)
    wanted = {entry.name for entry in inputs}
    part.graph.input.extend(value for value in model.graph.input if value.name in wanted)
    output = onnx.ValueInfoProto()  # the type is inferred
    output.name = tensor
    part.graph.output.append(output)
    return part


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


def _run(session: Any, inputs: tuple[Input, ...], tensor: str, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    dtypes = {entry.name: str(entry.dtype).removeprefix("torch.") for entry in inputs}
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
            slices.append(session.run([tensor], part)[0])
    except Exception as error:  # as above
        raise _failure(error) from error
    return np.concatenate(slices)[:samples]


def _failure(error: Exception) -> ModelError:
    return ModelError(
        f"onnxruntime can't run the model: {str(error).splitlines()[0][:500]}",
        code="reference_failed",
        advice="The analysis does not need onnxruntime; its logits are just not compared.",
    )
