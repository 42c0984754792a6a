"""Finds the head of a model: which output leads to its logits z, and what follows them.

Softmax, sigmoid and the wrapping that exporters put around them are peeled off, so that the loss is computed from
the logits and not from rounded probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from wsb_engine.errors import ModelError
from wsb_engine.formats.graph.graph import Graph, Node
from wsb_engine.formats.graph.logits import Head, multilabel
from wsb_engine.formats.graph.operators import ML
from wsb_engine.formats.graph.peeling import is_affine, peel, peel_labels, peel_positions, producer, suspects
from wsb_engine.model import Form
from wsb_engine.options import Head as HeadOption

NOT_EXECUTED = frozenset({(ML, "ArrayFeatureExtractor"), (ML, "LabelEncoder"), (ML, "ZipMap")})
"""Operators that only wrap the output; they are read, never run."""
_LABEL_MAKERS = {
    ("", "ArgMax"),
    ("", "ArgMin"),
    (ML, "ArrayFeatureExtractor"),
    (ML, "LabelEncoder"),
}
_SAME = 1e-9
"""Difference in float64 of two ways to write the same softmax."""
_LOOKUPS = frozenset({"ArrayFeatureExtractor", "LabelEncoder"})
_SUM_TOLERANCE = 1e-4
"""How far from 1 a row of probabilities may sum: a model may round, clip or smooth them."""


@dataclass(frozen=True, kw_only=True)
class Oracle:
    """Answers about values that the graph's structure alone does not give."""

    columns: Callable[[str], int | None]
    """Value name → number of elements for each sample; None if the file's shapes do not tell."""
    sample: Callable[[str], Tensor | None]
    """Value name → the value for some random inputs; None if the file's shapes do not suffice to compute it."""


def find_head(graph: Graph, option: HeadOption, output: str | None, oracle: Oracle, form: Form = "row") -> Head:
    """Pick the output and find the logits under its head.

    Args:
        graph: The model's graph.
        option: What the output means, according to the caller.
        output: The output's name, or None.
        oracle: Asked if the graph's structure does not tell.
        form: What the loss takes for logits.

    Raises:
        ModelError: ``unknown_output``, ``ambiguous_output``, ``ambiguous_head``, ``unsupported_head``,
            ``multilabel_unsupported``, ``single_class``.
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
    heads = [_head(graph, name, option, form) for name in candidates]
    if len(candidates) == 1 and heads[0] is None and form != "row":
        heads = [_of_any_shape(candidates[0], oracle)]
    elif len(candidates) == 1 and heads[0] is None:
        tensor, classes = _unzip(graph, candidates[0])
        found = _probed(graph, tensor, oracle)
        if option == "probabilities" and (found is None or found.name != "softmax"):
            found = Head(tensor=tensor, finish="log", name="probabilities")
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
    if form != "row":
        return replace(head, form=form)
    columns = oracle.columns(head.tensor)
    _check_columns(head, columns, option)
    count = 2 if head.single or columns == 1 else columns
    return replace(head, classes=head.classes or _classes(graph, count))


def _probed(graph: Graph, tensor: str, oracle: Oracle) -> Head | None:
    """What a value is, by its rows for random inputs; None if they leave it open."""
    value = oracle.sample(tensor)
    for suspect in suspects(graph, tensor):
        logits = oracle.sample(suspect)
        if value is not None and logits is not None and logits.ndim == 2 and _same(logits.softmax(1), value):
            return Head(tensor=suspect, name="softmax")
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


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=_SAME, atol=_SAME)


def _of_any_shape(output: str, oracle: Oracle) -> Head | None:
    """Return the head of logits, if values for random inputs are no probabilities; None if they leave that open."""
    value = oracle.sample(output)
    return None if value is None or not bool(((value < 0) | (value > 1)).any()) else Head(tensor=output)


_FORM_HEADS: Mapping[Form, tuple[HeadOption, ...]] = {
    "positions": ("auto", "logits", "log_probabilities", "probabilities"),
    "labels": ("auto", "logits", "binary_logit", "binary_probability"),
    "values": ("auto", "logits"),
}
"""What an output of any shape may mean."""


def require_head(option: HeadOption, form: Form) -> None:
    """Reject a meaning of the output that does not fit what the loss takes for logits.

    Raises:
        ModelError: ``unsupported_head``.
    """
    if form != "row" and option not in _FORM_HEADS[form]:
        offered = ", ".join(f'"{each}"' for each in _FORM_HEADS[form])
        raise ModelError(
            f'head "{option}" does not fit the loss, which takes logits of another form',
            code="unsupported_head",
            advice=f"Set head to one of {offered}, or another loss.",
        )


def _head(graph: Graph, output: str, option: HeadOption, form: Form) -> Head | None:
    """Return the head of one output; None if the graph does not say what it means."""
    require_head(option, form)
    if form != "row":
        if form == "values" or option in ("logits", "log_probabilities", "binary_logit"):
            return Head(tensor=output)
        peeled = (peel_positions if form == "positions" else peel_labels)(graph, output)
        if peeled is None and option == "probabilities":
            peeled = Head(tensor=output, finish="log", name="probabilities")
        elif peeled is None and option == "binary_probability":
            peeled = Head(tensor=output, finish="logit", name="probability")
        elif peeled is None and is_affine(graph, output):
            peeled = Head(tensor=output)
        return peeled
    output, classes = _unzip(graph, output)
    found: Head | None
    if option in ("logits", "log_probabilities"):
        found = Head(tensor=output)
    elif option == "binary_logit":
        found = Head(tensor=output, single=True)
    else:
        found = peel(graph, output)
        if option == "binary_probability" and (found is None or not found.single):
            found = Head(tensor=output, finish="logit", name="probability", single=True)
        elif found is None and option == "auto" and is_affine(graph, output):
            found = Head(tensor=output)
    return None if found is None else replace(found, classes=classes)


def _check_columns(head: Head, columns: int | None, option: HeadOption) -> None:
    if columns is None:
        return
    if head.single and columns != 1:
        raise multilabel(columns)
    if columns == 1 and not head.single and (option != "auto" or head.name != "none"):
        raise ModelError(
            "the model gives one number for each sample, which is no distribution over classes",
            code="single_class",
            advice="If it is the logit or the probability of one of two classes, say so with the option head: "
            '"binary_logit" or "binary_probability".',
        )


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
    node = producer(graph, name)
    if node is None or (node.domain, node.operator) not in _LABEL_MAKERS:
        return False
    # An ArrayFeatureExtractor looks labels up in a constant; of computed values it picks columns.
    return node.operator != "ArrayFeatureExtractor" or node.inputs[0] not in graph.producers


def _classes(graph: Graph, count: int | None) -> tuple[int | str, ...] | None:
    """Class labels that a sibling of the probabilities looks up; the last of as many labels as there are classes."""
    found = [labels for node in graph.nodes if node.domain == ML and (labels := _labels(graph, node)) is not None]
    fitting = [labels for labels in found if count is None or len(labels) == count]
    return fitting[-1] if fitting else None


def _labels(graph: Graph, node: Node) -> tuple[int | str, ...] | None:
    if node.operator == "ZipMap":
        return _zipmap_classes(node)
    index = producer(graph, node.inputs[-1]) if node.operator in _LOOKUPS else None
    if index is None or index.operator != "ArgMax":
        return None
    if node.operator == "LabelEncoder":
        return _encoded_classes(node)
    if node.inputs[0] in graph.strings:
        return graph.strings[node.inputs[0]]
    labels = graph.constants.get(node.inputs[0])
    if labels is None or labels.is_floating_point():
        return None
    return tuple(int(label) for label in labels.reshape(-1).tolist())


def _encoded_classes(node: Node) -> tuple[int | str, ...] | None:
    """Labels that a LabelEncoder gives to the positions 0..C−1."""
    keys = node.attributes.get("keys_int64s")
    labels = node.attributes.get("values_strings") or node.attributes.get("values_int64s")
    if not keys or not labels or sorted(keys) != list(range(len(labels))):
        return None
    return tuple(labels[keys.index(position)] for position in range(len(labels)))
