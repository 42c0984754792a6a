"""From a model's output back to its logits z, of which the cross-entropy is taken.

Softmax, sigmoid and the wrapping that exporters put around them are peeled off, so that the loss is computed from
the logits and not from rounded probabilities.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from wsb_engine.errors import ModelError
from wsb_engine.formats.onnx.graph import Graph, Node
from wsb_engine.formats.onnx.operators import ML
from wsb_engine.options import Head as HeadOption

Finish = Literal["none", "log", "logit", "log_sigmoid"]

_WRAPPERS = frozenset({"Cast", "Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
NOT_EXECUTED = frozenset({(ML, "ArrayFeatureExtractor"), (ML, "LabelEncoder"), (ML, "ZipMap")})
"""Operators that only dress up the output; they are read, never run."""
_LABEL_MAKERS = {
    ("", "ArgMax"),
    ("", "ArgMin"),
    (ML, "ArrayFeatureExtractor"),
    (ML, "LabelEncoder"),
}
_SUM_TOLERANCE = 1e-4
"""How far from 1 a row of probabilities may sum: a model may round, clip or smooth them."""
_AFFINE = frozenset({"Gemm", "MatMul", "Conv"})


@dataclass(frozen=True, kw_only=True)
class Head:
    """How z is got from the graph: ``finish`` applied to ``tensor``, as a matrix of one row a sample."""

    tensor: str
    finish: Finish = "none"
    name: str = "none"
    """What was taken off the output."""
    single: bool = False
    """Whether there must be one column: the logit of class 1 of two."""
    classes: tuple[int | str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the graph's structure alone does not tell about a value."""

    columns: Callable[[str], int | None]
    """Value name → number of elements for each sample, where the file's shapes tell."""
    sample: Callable[[str], Tensor | None]
    """Value name → the value for some random inputs, where it can be computed from the file's shapes."""


def find_head(graph: Graph, option: HeadOption, output: str | None, evidence: Evidence) -> Head:
    """Picks the output and says how its logits are got.

    Args:
        graph: The model's graph.
        option: What the caller says that the output means.
        output: The output's name, or None.
        evidence: Asked where the graph's structure does not tell.

    Raises:
        ModelError: ``unknown_output``, ``ambiguous_output``, ``ambiguous_head``, ``multilabel_unsupported``,
            ``single_class``.
    """
    if output is not None and output not in graph.outputs:
        raise ModelError(
            f"the model has no output {output!r}; it has {list(graph.outputs)}",
            code="unknown_output",
            advice="Name one of the model's outputs.",
            outputs=list(graph.outputs),
        )
    candidates = [output] if output is not None else [name for name in graph.outputs if not _is_label(graph, name)]
    if not candidates:
        raise ModelError(
            "the model returns labels only, no probabilities or logits",
            code="no_logits",
            advice="Export the model with its probabilities or logits as an output.",
            outputs=list(graph.outputs),
        )
    heads = [_head(graph, name, option) for name in candidates]
    if len(candidates) == 1 and heads[0] is None:
        tensor, classes = _unzip(graph, candidates[0])
        found = _probed(tensor, evidence.sample(tensor))
        heads = [None if found is None else replace(found, classes=classes)]
    recognised = {head.tensor: head for head in reversed(heads) if head is not None}
    if len(recognised) > 1 or (not recognised and len(candidates) > 1):
        raise ModelError(
            f"the model has several outputs that may be its logits: {candidates}",
            code="ambiguous_output",
            advice="Name one with the option output.",
            outputs=candidates,
        )
    if not recognised:
        raise ModelError(
            f"output {candidates[0]!r} may be logits or probabilities; the graph does not say which",
            code="ambiguous_head",
            advice='Say it with the option head: "logits", "probabilities", "log_probabilities", "binary_logit" or '
            '"binary_probability".',
            output=candidates[0],
        )
    head = next(iter(recognised.values()))
    _check_columns(head, evidence.columns(head.tensor), option)
    return replace(head, classes=head.classes or _classes(graph))


def finished(head: Head, value: Tensor) -> Tensor:
    """z of shape (N, C) from the head's tensor.

    Raises:
        ModelError: ``unsupported_head`` if a sample has more than one axis of logits, ``multilabel_unsupported``.
    """
    rows = _as_rows(head, value)
    if head.finish == "log":
        return torch.log(rows)
    if head.finish == "logit":
        return torch.log(rows) - torch.log1p(-rows)
    if head.finish == "log_sigmoid":
        return functional.logsigmoid(rows)
    return rows


def _as_rows(head: Head, value: Tensor) -> Tensor:
    if value.ndim == 0 or sum(size > 1 for size in value.shape[1:]) > 1:
        raise ModelError(
            f"{head.tensor!r} has shape {list(value.shape)}, not one row of logits for each sample",
            code="unsupported_head",
            advice="Analyse a model that gives one distribution over classes for each sample, or name another output.",
            shape=list(value.shape),
        )
    rows = value.reshape(value.shape[0], -1)
    if head.single and rows.shape[1] != 1:
        raise _multilabel(rows.shape[1])
    return rows


def _probed(tensor: str, value: Tensor | None) -> Head | None:
    """What a value is, by its rows for random inputs; None where they leave it open."""
    if value is None or value.ndim == 0 or not value.is_floating_point() or not bool(torch.isfinite(value).all()):
        return None
    rows = value.reshape(value.shape[0], -1)
    ones = torch.ones(rows.shape[0], dtype=rows.dtype)
    if rows.shape[1] > 1 and torch.allclose(rows.exp().sum(1), ones, atol=_SUM_TOLERANCE):
        return Head(tensor=tensor, name="log_probabilities")
    if bool(((rows < 0) | (rows > 1)).any()):
        return Head(tensor=tensor)
    if rows.shape[1] > 1 and torch.allclose(rows.sum(1), ones, atol=_SUM_TOLERANCE):
        return Head(tensor=tensor, finish="log", name="probabilities")
    return None


def _head(graph: Graph, output: str, option: HeadOption) -> Head | None:
    """The head of one output; None where the graph does not say what it means."""
    output, classes = _unzip(graph, output)
    found: Head | None
    if option in ("logits", "log_probabilities"):
        found = Head(tensor=output)
    elif option == "binary_logit":
        found = Head(tensor=output, single=True)
    else:
        found = _strip(graph, output)
        if found is None and option == "probabilities":
            found = Head(tensor=output, finish="log", name="probabilities")
        elif option == "binary_probability" and (found is None or not found.single):
            found = Head(tensor=output, finish="logit", name="probability", single=True)
        elif found is None and _is_affine(graph, output):
            found = Head(tensor=output)
    return None if found is None else replace(found, classes=classes)


def _strip(graph: Graph, output: str) -> Head | None:
    """Takes off the operator that makes probabilities, and what is wrapped around it."""
    node = _producer(graph, output)
    if node is None or node.domain != "":
        return None
    kind = node.operator
    if kind in ("Softmax", "LogSoftmax"):
        _check_axis(node)
        return Head(tensor=node.inputs[0], name="softmax" if kind == "Softmax" else "log_softmax")
    if kind == "Log":
        inner = _producer(graph, node.inputs[0])
        if inner is not None and inner.domain == "" and inner.operator == "Softmax":
            _check_axis(inner)
            return Head(tensor=inner.inputs[0], name="log_softmax")
        return Head(tensor=node.outputs[0], name="log")
    if kind == "Sigmoid":
        return Head(tensor=node.inputs[0], name="sigmoid", single=True)
    if kind == "Concat":
        return _complement(graph, node)
    return None


def _complement(graph: Graph, node: Node) -> Head | None:
    """[1 − p, p] of scikit-learn's binary classifiers: the logit of p."""
    if len(node.inputs) != 2:
        return None
    negative, positive = node.inputs
    subtraction = _producer(graph, negative)
    if subtraction is None or subtraction.operator != "Sub" or subtraction.inputs[1] != positive:
        return None
    one = graph.constants.get(subtraction.inputs[0])
    if one is None or one.numel() != 1 or float(one) != 1.0:
        return None
    inner = _strip(graph, positive)
    if inner is not None and inner.single:
        return inner
    return Head(tensor=positive, finish="logit", name="complement", single=True)


def _check_axis(node: Node) -> None:
    axis = node.attributes.get("axis", 1 if node.version < 13 else -1)
    if axis not in (1, -1):
        raise ModelError(
            f"{node.label} normalises over axis {axis}, not over the classes of each sample",
            code="unsupported_head",
            advice="Export the model with samples on the first axis and classes on the second.",
            axis=axis,
        )


def _check_columns(head: Head, columns: int | None, option: HeadOption) -> None:
    if columns is None:
        return
    if head.single and columns != 1:
        raise _multilabel(columns)
    if columns == 1 and not head.single and (option != "auto" or head.name != "none"):
        raise ModelError(
            "the model gives one number for each sample, which is no distribution over classes",
            code="single_class",
            advice="If it is the logit or the probability of one of two classes, say so with the option head: "
            '"binary_logit" or "binary_probability".',
        )


def _multilabel(columns: int) -> ModelError:
    return ModelError(
        f"the model gives {columns} independent probabilities (a sigmoid each), which is not one distribution",
        code="multilabel_unsupported",
        advice="The bounds are for the cross-entropy of one class out of several. Analyse one label at a time, or, if "
        'exactly one class is true, export the logits and use head "logits".',
        columns=columns,
    )


def _producer(graph: Graph, name: str) -> Node | None:
    """The node that makes a value, not counting wrappers."""
    node = graph.producers.get(name)
    while node is not None and node.domain == "" and node.operator in _WRAPPERS:
        node = graph.producers.get(node.inputs[0])
    return node


def _unzip(graph: Graph, name: str) -> tuple[str, tuple[int | str, ...] | None]:
    node = graph.producers.get(name)
    if node is not None and (node.domain, node.operator) == (ML, "ZipMap"):
        return node.inputs[0], _zipmap_classes(node)
    return name, None


def _zipmap_classes(node: Node) -> tuple[int | str, ...] | None:
    for attribute in ("classlabels_int64s", "classlabels_strings"):
        labels = node.attributes.get(attribute)
        if labels:
            return tuple(labels)
    return None


def _is_label(graph: Graph, name: str) -> bool:
    node = _producer(graph, name)
    return node is not None and (node.domain, node.operator) in _LABEL_MAKERS


def _is_affine(graph: Graph, name: str) -> bool:
    node = _producer(graph, name)
    if node is not None and node.domain == "" and node.operator == "Add":
        terms = [_producer(graph, each) for each in node.inputs]
        return any(term is not None and term.domain == "" and term.operator in _AFFINE for term in terms)
    return node is not None and node.domain == "" and node.operator in _AFFINE


def _classes(graph: Graph) -> tuple[int | str, ...] | None:
    """Class labels that a sibling of the probabilities looks up."""
    for node in graph.nodes:
        if (node.domain, node.operator) == (ML, "ZipMap"):
            return _zipmap_classes(node)
        if (node.domain, node.operator) == (ML, "ArrayFeatureExtractor"):
            index = _producer(graph, node.inputs[1])
            if index is None or index.operator != "ArgMax":
                continue
            if node.inputs[0] in graph.strings:
                return graph.strings[node.inputs[0]]
            labels = graph.constants.get(node.inputs[0])
            if labels is not None and not labels.is_floating_point():
                return tuple(int(label) for label in labels.reshape(-1).tolist())
    return None
