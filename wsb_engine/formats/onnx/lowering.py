"""Writes fused classifiers of ai.onnx.ml out as layers, before anything else reads the file.

A LinearClassifier keeps its weights in attributes and its softmax inside. Written as Gemm and Softmax its weights
are parameters like any other, and its scores are values that can be taken as logits and compared with a runtime.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from wsb_engine.errors import ModelError
from wsb_engine.formats.graph import problems
from wsb_engine.formats.graph.operators import ML
from wsb_engine.formats.onnx.signature import check_signature

_DEFAULT_OPSET = 13
_ML_VERSION = 1
"""Version of LinearClassifier, which has not changed since."""
_POST = {"NONE": "Identity", "SOFTMAX": "Softmax", "LOGISTIC": "Sigmoid"}


def lower(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with its LinearClassifier nodes replaced; the model itself if it has none.

    Raises:
        ModelError: ``model_invalid``, or ``unsupported_operator`` for a transform that no exporter writes.
    """
    if not any(_is_linear_classifier(node) for node in model.graph.node):
        return model
    lowered = onnx.ModelProto()
    lowered.CopyFrom(model)
    if not any(entry.domain in ("", "ai.onnx") for entry in lowered.opset_import):
        lowered.opset_import.append(helper.make_opsetid("", _DEFAULT_OPSET))
    names = _Names(lowered.graph)
    del lowered.graph.node[:]
    margins = _margins(model.graph)
    for index, node in enumerate(model.graph.node):
        if _is_linear_classifier(node):
            lowered.graph.node.extend(_linear_classifier(node, index, lowered.graph, names, margins))
        elif node.output[0] not in margins.values():
            lowered.graph.node.append(node)
    return lowered


def _is_linear_classifier(node: NodeProto) -> bool:
    return bool(node.domain == ML and node.op_type == "LinearClassifier")


def _margins(graph: onnx.GraphProto) -> dict[str, str]:
    """Return scores of two classes of which only the second is used → the value that it becomes.

    A binary LinearSVC or RidgeClassifier has one decision function s. skl2onnx writes scores [−s, s] with two rows of
    coefficients, and picks the second column.
    """
    scores = {node.output[1]: node for node in graph.node if _is_linear_classifier(node) and len(node.output) > 1}
    ones = {each.name for each in graph.initializer if _is_one(each)}
    used = [name for node in graph.node for name in node.input] + [value.name for value in graph.output]
    margins = {}
    for node in graph.node:
        if (node.domain, node.op_type) == (ML, "ArrayFeatureExtractor") and len(node.input) == 2 and node.output:
            values, column = node.input
            if column in ones and values in scores and used.count(values) == 1 and _mirror(scores[values]):
                margins[values] = node.output[0]
    return margins


def _is_one(tensor: TensorProto) -> bool:
    if tensor.data_type != TensorProto.INT64 or list(tensor.dims) not in ([], [1]):
        return False
    return list(tensor.int64_data) == [1] or tensor.raw_data == (1).to_bytes(8, "little")


def _mirror(node: NodeProto) -> bool:
    """True for raw scores of two classes, each with the other's coefficients with the sign changed."""
    given = {each.name: helper.get_attribute_value(each) for each in node.attribute if each.type}
    flat = np.array(given.get("coefficients") or (), np.float32)
    bias = np.array(given.get("intercepts") or (), np.float32)
    if _text(given.get("post_transform", b"NONE")) != "NONE" or flat.size % 2 or bias.size not in (0, 2):
        return False
    return _mirrored(flat.reshape(2, -1), bias if bias.size else np.zeros(2, np.float32))


def _mirrored(weight: np.ndarray[Any, Any], bias: np.ndarray[Any, Any]) -> bool:
    return bool(len(weight) == 2 and (weight[0] == -weight[1]).all() and bias[0] == -bias[1])


class _Names:
    """Makes names that the graph does not have yet."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._taken = {value.name for value in (*graph.input, *graph.output, *graph.initializer)}
        self._taken.update(name for node in graph.node for name in node.output)

    def new(self, wanted: str) -> str:
        while wanted in self._taken:
            wanted += "'"
        self._taken.add(wanted)
        return wanted


def _linear_classifier(
    node: NodeProto, index: int, graph: onnx.GraphProto, names: _Names, margins: Mapping[str, str]
) -> Iterator[NodeProto]:
    label = f"node {index} 'LinearClassifier'"
    check_signature(node, {each.name: each for each in node.attribute}, ML, _ML_VERSION, label)
    attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    weight, bias, mirrored = _weights(attributes, label)
    transform = _text(attributes.get("post_transform", b"NONE"))
    if transform not in _POST or (mirrored and transform != "LOGISTIC"):
        raise ModelError(
            f"{label}: post_transform {transform!r} with {weight.shape[0]} rows of coefficients is not supported",
            code="unsupported_operator",
            advice="Export the classifier with skl2onnx.",
            operator="LinearClassifier",
            domain=ML,
            index=index,
        )
    prefix = node.name or "LinearClassifier"

    def constant(name: str, value: np.ndarray[Any, np.dtype[Any]]) -> str:
        unique = names.new(f"{prefix}.{name}")
        graph.initializer.append(numpy_helper.from_array(value, unique))
        return unique

    made = node.output[1] if len(node.output) > 1 and node.output[1] else names.new(f"{prefix}.probabilities")
    margin = margins.get(made)
    if margin is not None:
        weight, bias = weight[1:], bias[1:]
    floats, scores = names.new(f"{prefix}.input"), margin or names.new(f"{prefix}.scores")
    yield helper.make_node("Cast", [node.input[0]], [floats], to=TensorProto.FLOAT)
    inputs = [floats, constant("coefficients", weight), constant("intercepts", bias)]
    yield helper.make_node("Gemm", inputs, [scores], transB=1)
    if margin is not None:
        negative = names.new(f"{prefix}.negative")
        yield helper.make_node("Neg", [scores], [negative])
        yield helper.make_node("Concat", [negative, scores], [made], axis=1)
    elif mirrored:
        positive, negative = names.new(f"{prefix}.positive"), names.new(f"{prefix}.negative")
        yield helper.make_node("Sigmoid", [scores], [positive])
        yield helper.make_node("Sub", [constant("one", np.ones(1, np.float32)), positive], [negative])
        yield helper.make_node("Concat", [negative, positive], [made], axis=1)
    else:
        last = helper.make_node(_POST[transform], [scores], [made])
        if transform == "SOFTMAX":
            last.attribute.append(helper.make_attribute("axis", 1))
        yield last
    if node.output[0]:
        yield from _labels(node, attributes, made, names, graph)


def _weights(
    attributes: dict[str, Any], label: str
) -> tuple[np.ndarray[Any, np.dtype[np.float32]], np.ndarray[Any, np.dtype[np.float32]], bool]:
    """Coefficients (C, d), intercepts (C,), and whether they are one class's, the other being its mirror image."""
    classes = len(attributes.get("classlabels_ints") or attributes.get("classlabels_strings") or ())
    flat = np.array(attributes.get("coefficients", ()), np.float32)
    bias = np.array(attributes.get("intercepts") or [0.0] * max(classes, 1), np.float32)
    if classes < 2 or bias.size not in (1, classes) or not flat.size or flat.size % bias.size:
        raise problems.invalid(f"{label} has coefficients and intercepts that do not fit its {classes} classes")
    weight = flat.reshape(bias.size, -1)
    if bias.size == 1:
        return weight, bias, True
    transform = _text(attributes.get("post_transform", b"NONE"))
    if classes == 2 and transform == "LOGISTIC" and _mirrored(weight, bias):
        return weight[1:], bias[1:], True
    return weight, bias, False


def _labels(
    node: NodeProto, attributes: dict[str, Any], probabilities: str, names: _Names, graph: onnx.GraphProto
) -> Iterator[NodeProto]:
    """Return the label of the most probable class."""
    position, classes = names.new(f"{node.output[0]}.position"), names.new(f"{node.output[0]}.classes")
    labels = attributes.get("classlabels_ints") or attributes.get("classlabels_strings")
    kind = TensorProto.INT64 if attributes.get("classlabels_ints") else TensorProto.STRING
    graph.initializer.append(helper.make_tensor(classes, kind, [len(labels or ())], labels or ()))
    yield helper.make_node("ArgMax", [probabilities], [position], axis=1, keepdims=0)
    yield helper.make_node("ArrayFeatureExtractor", [classes, position], [node.output[0]], domain=ML)


def _text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
