"""Which operators of a program have a kink or a jump. A continuous slope counts as smooth (ELU, CELU)."""

from __future__ import annotations

from wsb_engine.formats.onnx import operators
from wsb_engine.formats.onnx.graph import Node
from wsb_engine.formats.onnx.operators.recurrent import SMOOTH
from wsb_engine.formats.onnx.tensors import DTYPES

_COMPARISONS = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})
_RECURRENT = frozenset({"GRU", "LSTM", "RNN"})


def nonsmooth_operators(nodes: tuple[Node, ...], trained: set[str]) -> tuple[str, ...]:
    """Names of operators with a kink or a jump that is applied to a parameter-dependent value.

    Args:
        nodes: What the logits need.
        trained: Values that depend on a parameter.
    """
    found = [node.operator for node in nodes if trained.intersection(node.reads) and not _is_smooth(node, trained)]
    return tuple(dict.fromkeys(found))


def _is_smooth(node: Node, trained: set[str]) -> bool:
    if node.domain == "":
        if node.operator == "Where":  # a fixed condition selects, a computed one switches
            return node.inputs[0] not in trained
        if node.operator in ("ScatterElements", "ScatterND"):
            return node.attributes.get("reduction", "none") in ("none", "add")
        if node.operator == "Elu":  # its slope is continuous with α = 1 only
            return bool(node.attributes.get("alpha", 1.0) == 1.0)
        if node.operator == "Cast":
            dtype = DTYPES.get(node.attributes.get("to", 0))
            return dtype is None or dtype.is_floating_point
        if node.operator in _COMPARISONS:
            return False
        if node.operator in _RECURRENT:
            names = node.attributes.get("activations", ())
            return all(name.lower() in SMOOTH for name in names) and not node.attributes.get("clip", 0.0)
    return operators.require(node).smooth
