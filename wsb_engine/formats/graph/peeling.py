"""Recognises the operators that make probabilities of logits at the end of a graph."""

from __future__ import annotations

from wsb_engine.errors import ModelError
from wsb_engine.formats.graph.graph import RESHAPING, Graph, Node
from wsb_engine.formats.graph.logits import Head
from wsb_engine.formats.graph.operators import ML

_LINEAR = frozenset({"Gemm", "MatMul", "Conv"})
_KEEPING = frozenset({"Cast", "Dropout", "Identity"})
"""Wrappers that keep the shape as well."""


def producer(graph: Graph, name: str) -> Node | None:
    """Return the node that makes a value, not counting wrappers that keep its elements."""
    node = graph.producers.get(name)
    while node is not None and node.domain == "" and node.operator in RESHAPING:
        node = graph.producers.get(node.inputs[0])
    return node


def is_affine(graph: Graph, name: str) -> bool:
    """True if a value is the direct result of a layer: nothing squashes it, so it is logits."""
    node = producer(graph, name)
    if node is not None and _is(node, "Add"):
        return any(_is(producer(graph, term), *_LINEAR) for term in node.inputs)
    return _is(node, *_LINEAR)


def peel(graph: Graph, output: str) -> Head | None:
    """Take off the operators that make probabilities; None if the output does not end in any.

    Raises:
        ModelError: ``unsupported_head`` for a softmax over anything but the classes.
    """
    node = producer(graph, output)
    if node is None:
        return None
    if (node.domain, node.operator) == (ML, "Normalizer"):
        return _normalised(graph, node)
    if node.domain != "":
        return None
    if node.operator in ("Softmax", "LogSoftmax"):
        _check_axis(node)
        return Head(tensor=node.inputs[0], name="softmax" if node.operator == "Softmax" else "log_softmax")
    if node.operator == "Sigmoid":
        return Head(tensor=node.inputs[0], name="sigmoid", single=True)
    written_out = {"Log": _logarithm, "Concat": _complement, "Div": _quotient, "Sub": _difference}
    return written_out[node.operator](graph, node) if node.operator in written_out else None


def peel_positions(graph: Graph, output: str) -> Head | None:
    """Take off a softmax of each position of a sample; None if the output does not end in one.

    Only a softmax that makes the output in its final shape: its axis is one of the output's.
    """
    node = graph.producers.get(output)
    while node is not None and _is(node, *_KEEPING):
        node = graph.producers.get(node.inputs[0])
    if node is None or not _is(node, "Softmax", "LogSoftmax"):
        return None
    axis = int(node.attributes.get("axis", 1 if node.version < 13 else -1))
    if node.version < 13 and axis != -1:
        return None  # over this axis and all that follow
    return Head(tensor=node.inputs[0], name="softmax" if node.operator == "Softmax" else "log_softmax", axis=axis)


def peel_labels(graph: Graph, output: str) -> Head | None:
    """Take off a sigmoid of each label; None if the output does not end in one.

    Raises:
        ModelError: ``unsupported_head`` for a softmax.
    """
    node = producer(graph, output)
    if _is(node, "Softmax", "LogSoftmax"):
        raise ModelError(
            f"{'' if node is None else node.label} makes one distribution over the classes, not a probability for each "
            "label",
            code="unsupported_head",
            advice="Set loss to cross_entropy, or token_cross_entropy if a sample has several labels.",
        )
    return Head(tensor=node.inputs[0], name="sigmoid") if node is not None and _is(node, "Sigmoid") else None


def suspects(graph: Graph, output: str) -> tuple[str, ...]:
    """Values whose softmax an output may be, if its form leaves that open: eᵘ⁻ᵐ over something."""
    node = producer(graph, output)
    exponential = producer(graph, node.inputs[0]) if node is not None and _is(node, "Div") else None
    if exponential is None or not _is(exponential, "Exp"):
        return ()
    inner = producer(graph, exponential.inputs[0])
    shifted = (inner.inputs[0],) if inner is not None and _is(inner, "Sub") else ()
    return (*shifted, exponential.inputs[0])


def _logarithm(graph: Graph, node: Node) -> Head:
    inner = producer(graph, node.inputs[0])
    if inner is not None and _is(inner, "Softmax"):
        _check_axis(inner)
        return Head(tensor=inner.inputs[0], name="log_softmax")
    return Head(tensor=node.outputs[0], name="log")


def _complement(graph: Graph, node: Node) -> Head | None:
    """[1 − p, p] of a binary classifier: the logit of p."""
    if len(node.inputs) != 2:
        return None
    negative, positive = node.inputs
    subtraction = producer(graph, negative)
    if subtraction is None or not _is(subtraction, "Sub") or subtraction.inputs[1] != positive:
        return None
    one = graph.constants.get(subtraction.inputs[0])
    if one is None or one.numel() != 1 or float(one) != 1.0:
        return None
    inner = producer(graph, positive)
    if inner is not None and _is(inner, "Sigmoid"):
        return Head(tensor=inner.inputs[0], name="sigmoid", single=True)
    return Head(tensor=positive, finish="logit", name="complement", single=True)


def _normalised(graph: Graph, node: Node) -> Head | None:
    """Positive numbers divided by their sum: softmax of their logarithms."""
    if node.attributes.get("norm") != "L1":
        return None
    inner = producer(graph, node.inputs[0])
    if inner is None or inner.domain != "":
        return None
    if inner.operator == "Softmax":
        _check_axis(inner)
    if inner.operator in ("Softmax", "Exp"):
        return Head(tensor=inner.inputs[0], name="softmax")
    if inner.operator == "Sigmoid":
        return Head(tensor=inner.inputs[0], finish="log_sigmoid", name="normalized_sigmoid")
    if inner.operator == "Concat":
        return _complement(graph, inner)
    return None


def _quotient(graph: Graph, node: Node) -> Head | None:
    """eᵛ / Σ eᵛ, with or without a maximum taken off first."""
    numerator, denominator = node.inputs
    exponential = graph.producers.get(numerator)
    if exponential is None or not _is(exponential, "Exp"):
        return None
    if not _over_classes(graph, denominator, "ReduceSum", numerator):
        return None
    return Head(tensor=_without_maximum(graph, exponential.inputs[0]), name="softmax")


def _difference(graph: Graph, node: Node) -> Head | None:
    """v − log Σ eᵛ, with or without a maximum taken off first."""
    value, subtracted = node.inputs
    if _over_classes(graph, subtracted, "ReduceLogSumExp", value):
        return Head(tensor=_without_maximum(graph, value), name="log_softmax")
    logarithm = graph.producers.get(subtracted)
    if logarithm is None or not _is(logarithm, "Log"):
        return None
    total = graph.producers.get(logarithm.inputs[0])
    exponential = graph.producers.get(total.inputs[0]) if total is not None else None
    if exponential is None or not _is(exponential, "Exp") or exponential.inputs[0] != value:
        return None
    if not _over_classes(graph, logarithm.inputs[0], "ReduceSum", exponential.outputs[0]):
        return None
    return Head(tensor=_without_maximum(graph, value), name="log_softmax")


def _without_maximum(graph: Graph, name: str) -> str:
    """v for v − max v: the maximum cancels out of a softmax."""
    node = graph.producers.get(name)
    if node is not None and _is(node, "Sub") and _over_classes(graph, node.inputs[1], "ReduceMax", node.inputs[0]):
        return node.inputs[0]
    return name


def _over_classes(graph: Graph, name: str, operator: str, of: str) -> bool:
    """True if a value is a reduction of another over its classes, kept as an axis."""
    node = graph.producers.get(name)
    if node is None or not _is(node, operator) or node.inputs[0] != of or not node.attributes.get("keepdims", 1):
        return False
    axes = node.attributes.get("axes")
    if len(node.inputs) > 1 and node.inputs[1] in graph.constants:
        axes = tuple(graph.constants[node.inputs[1]].reshape(-1).tolist())
    return axes in ((1,), (-1,))


def _check_axis(node: Node) -> None:
    axis = node.attributes.get("axis", 1 if node.version < 13 else -1)
    if axis not in (1, -1):
        raise ModelError(
            f"{node.label} normalises over axis {axis}, not over the classes of each sample",
            code="unsupported_head",
            advice="Export the model with samples on the first axis and classes on the second.",
            axis=axis,
        )


def _is(node: Node | None, *kinds: str) -> bool:
    return node is not None and node.domain == "" and node.operator in kinds
