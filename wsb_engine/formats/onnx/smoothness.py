"""Which operators of a program have a kink or a jump. A continuous slope counts as smooth (ELU, CELU)."""

from __future__ import annotations

from wsb_engine.classifier import Tensors
from wsb_engine.formats.onnx import operators
from wsb_engine.formats.onnx.graph import RESHAPING, Node
from wsb_engine.formats.onnx.operators.recurrent import SMOOTH
from wsb_engine.formats.onnx.tensors import DTYPES

_COMPARISONS = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})
_RECURRENT = frozenset({"GRU", "LSTM", "RNN"})


_GUARDS = frozenset({"IsInf", "IsNaN"})
_CONNECTIVES = frozenset({"And", "Not", "Or"})
_SUMS = frozenset({"Mean", "ReduceMean", "ReduceSum", "Sum", *RESHAPING})
"""Operators that leave a root of squares a norm."""


def nonsmooth_operators(nodes: tuple[Node, ...], trained: set[str], constants: Tensors) -> tuple[str, ...]:
    """Names of operators with a kink or a jump that is applied to a parameter-dependent value.

    Args:
        nodes: What the logits need.
        trained: Values that depend on a parameter.
        constants: Values that are stored in the file.
    """
    guards: set[str] = set()
    squares: set[str] = set()
    found = []
    for node in nodes:
        if not trained.intersection(node.reads):
            continue
        if _guards(node, guards, constants):
            guards.update(node.outputs)
        elif node.domain == "" and node.operator == "Where" and node.inputs[0] in guards:
            continue
        elif not _is_smooth(node, trained) or (_is_root(node, constants) and node.inputs[0] in squares):
            found.append(node.operator)
        if _keeps_squares(node, squares, trained, constants):
            squares.update(node.outputs)
    return tuple(dict.fromkeys(found))


def _guards(node: Node, guards: set[str], constants: Tensors) -> bool:
    """True for a test that fails on an open set, or holds on one: for NaN, infinity, or one number."""
    if node.domain != "":
        return False
    if node.operator == "Equal":
        return any(name in constants for name in node.inputs)
    return node.operator in _GUARDS or (node.operator in _CONNECTIVES and guards.issuperset(node.inputs))


def _is_root(node: Node, constants: Tensors) -> bool:
    if node.domain != "":
        return False
    exponent = _exponent(node, constants)
    return node.operator == "Sqrt" or (exponent is not None and exponent != int(exponent))


def _exponent(node: Node, constants: Tensors) -> float | None:
    """The one exponent of a power, None if it is not known or this is none."""
    exponent = constants.get(node.inputs[1]) if node.operator == "Pow" else None
    return float(exponent) if exponent is not None and exponent.numel() == 1 else None


def _keeps_squares(node: Node, squares: set[str], trained: set[str], constants: Tensors) -> bool:
    """True if the result is a sum of squares, which may be 0 where its root has a kink."""
    if node.domain != "":
        return False
    if node.operator == "Mul" and len(set(node.inputs)) == 1:
        return True
    if node.operator in ("Abs", "ReduceSumSquare"):
        return True
    exponent = _exponent(node, constants)
    if exponent is not None:
        return exponent > 0 and exponent % 2 == 0
    if node.operator in ("Div", "Mul"):
        return squares.issuperset(trained.intersection(node.inputs))
    return node.operator in _SUMS and node.inputs[0] in squares


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
