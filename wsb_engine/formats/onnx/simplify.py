"""Rewrites that show what a graph computes, without changing it beyond rounding."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from wsb_engine.formats.onnx.graph import Graph, Node
from wsb_engine.formats.onnx.limits import LIMITS

_SURE = 15.0
"""Above this threshold softplus and the identity differ by less than float32 can tell (e⁻¹⁵ = 3e-7, relative 2e-8)."""


def simplify(graph: Graph) -> Graph:
    """Constants made from a fixed shape become stored ones, a softplus with a switch a softplus, and roots of squares
    norms."""
    return _norms(_smooth_softplus(_stored_constants(graph)))


def _stored_constants(graph: Graph) -> Graph:
    made: dict[str, Tensor] = {}
    kept = []
    for node in graph.nodes:
        shape = graph.constants.get(node.inputs[0]) if _is(node, "ConstantOfShape") and node.inputs else None
        value = node.attributes.get("value", torch.zeros(1))
        if shape is None or shape.dtype != torch.int64 or shape.ndim != 1 or not isinstance(value, Tensor):
            kept.append(node)
            continue
        sizes = [int(size) for size in shape.tolist()]
        if min(sizes, default=1) < 0 or int(torch.prod(shape.double())) > LIMITS.folded_elements or value.numel() != 1:
            kept.append(node)
            continue
        made[node.outputs[0]] = value.reshape([1] * len(sizes)).expand(sizes)
    return replace(graph, nodes=tuple(kept), constants={**graph.constants, **made}) if made else graph


def _smooth_softplus(graph: Graph) -> Graph:
    """Where(x > t, x, softplus(x)), as torch writes it against overflow, is a softplus for a large t."""
    nodes = [_softplus(graph, node) or node for node in graph.nodes]
    return replace(graph, nodes=tuple(nodes))


def _softplus(graph: Graph, node: Node) -> Node | None:
    if not _is(node, "Where") or len(node.inputs) != 3:
        return None
    switch, soft = graph.producers.get(node.inputs[0]), graph.producers.get(node.inputs[2])
    if switch is None or soft is None or not _is(switch, "Greater") or not _is(soft, "Softplus"):
        return None
    threshold = graph.constants.get(switch.inputs[1])
    x = node.inputs[1]
    if threshold is None or threshold.numel() != 1 or float(threshold) < _SURE:
        return None
    if switch.inputs[0] != x or soft.inputs[0] != x:
        return None
    return replace(soft, outputs=node.outputs, name=node.name, index=node.index)


def _norms(graph: Graph) -> Graph:
    """√(Σ x²) is a norm, and √(x²) is |x|: at 0 they have the derivatives of those, and they are no smoother."""
    return replace(graph, nodes=tuple(_norm(graph, node) or node for node in graph.nodes))


def _norm(graph: Graph, node: Node) -> Node | None:
    inside = graph.producers.get(node.inputs[0]) if _is_root(graph, node) else None
    if inside is None:
        return None
    if _is(inside, "ReduceSumSquare"):
        return replace(inside, operator="ReduceL2", outputs=node.outputs, name=node.name, index=node.index)
    base = _squared(graph, inside)
    if base is not None:
        return replace(node, operator="Abs", inputs=(base,))
    summand = graph.producers.get(inside.inputs[0]) if _is(inside, "ReduceSum") else None
    base = None if summand is None else _squared(graph, summand)
    if base is None:
        return None
    inputs = (base, *inside.inputs[1:])
    return replace(inside, operator="ReduceL2", inputs=inputs, outputs=node.outputs, name=node.name, index=node.index)


def _is_root(graph: Graph, node: Node) -> bool:
    return _is(node, "Sqrt") or (_is(node, "Pow") and _exponent(graph, node) == 0.5)


def _squared(graph: Graph, node: Node) -> str | None:
    """x, if the node makes x²."""
    if _is(node, "Mul") and node.inputs[0] == node.inputs[1]:
        return node.inputs[0]
    return node.inputs[0] if _is(node, "Pow") and _exponent(graph, node) == 2 else None


def _exponent(graph: Graph, node: Node) -> float | None:
    exponent = graph.constants.get(node.inputs[1])
    return float(exponent) if exponent is not None and exponent.numel() == 1 else None


def _is(node: Node, operator: str) -> bool:
    return node.domain == "" and node.operator == operator
