"""Rewrites that show what a graph computes, without changing it beyond rounding."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from wsb_engine.formats.graph.graph import Graph, Node
from wsb_engine.formats.graph.kernels.elementwise import SURE
from wsb_engine.formats.graph.limits import LIMITS


def simplify(graph: Graph) -> Graph:
    """Constants made from a fixed shape become stored ones; a softplus with a switch becomes a softplus."""
    return _smooth_softplus(_stored_constants(graph))


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
    if threshold is None or threshold.numel() != 1 or float(threshold) < SURE:
        return None
    if switch.inputs[0] != x or soft.inputs[0] != x:
        return None
    return replace(soft, outputs=node.outputs, name=node.name, index=node.index)


def _is(node: Node, operator: str) -> bool:
    return node.domain == "" and node.operator == operator
