"""If nodes whose condition is known from constants and shapes, replaced by the branch that is taken.

Exporters write such conditions for operations like squeeze, which depend on a size. A condition that depends on the
values of inputs or parameters makes the function piecewise, and is refused.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from wsb_engine.errors import ModelError
from wsb_engine.formats.graph import problems
from wsb_engine.formats.graph.graph import Graph, Node
from wsb_engine.formats.graph.limits import LIMITS
from wsb_engine.formats.graph.program import Program

_SAMPLES = (2, 3)
"""Batch sizes for which the condition must come out the same."""


def resolve_branches(graph: Graph) -> Graph:
    """Return the graph without If nodes.

    Raises:
        ModelError: ``data_dependent_control_flow``, ``model_too_complex``; ``model_invalid`` for an If that lacks a
            branch.
    """
    for _ in range(LIMITS.subgraphs):
        position = next((i for i, node in enumerate(graph.nodes) if (node.domain, node.operator) == ("", "If")), None)
        if position is None:
            return graph
        graph = _spliced(graph, position)
    raise problems.too_complex("If nodes", LIMITS.subgraphs + 1, LIMITS.subgraphs)


def _spliced(graph: Graph, position: int) -> Graph:
    node = graph.nodes[position]
    taken = _condition(graph, node)
    branch = node.attributes.get("then_branch" if taken else "else_branch")
    if not isinstance(branch, Graph) or len(branch.outputs) < len(node.outputs):
        raise problems.invalid(f"{node.label} lacks a branch, or an output of it", **node.details)
    results = [
        replace(node, operator="Identity", inputs=(source,), outputs=(target,), attributes={})
        for source, target in zip(branch.outputs, node.outputs, strict=False)
        if target
    ]
    return replace(
        graph,
        nodes=(*graph.nodes[:position], *branch.nodes, *results, *graph.nodes[position + 1 :]),
        constants={**graph.constants, **branch.constants},
        strings={**graph.strings, **branch.strings},
    )


def _condition(graph: Graph, node: Node) -> bool:
    """Return the condition's value, which must not depend on anything but constants and shapes."""
    program = Program(graph, (node.inputs[0],), ())
    found = set()
    for samples in _SAMPLES:
        given = {}
        for entry in program.inputs:
            if entry.shape is None or None in entry.shape[1:]:
                raise _unknown(node, f"the shape of input {entry.name!r} is not declared")
            dtype = torch.float64 if entry.dtype is None or entry.dtype.is_floating_point else entry.dtype
            sizes = [size or samples for size in entry.shape]
            given[entry.name] = torch.empty(sizes, dtype=dtype, device="meta")
        (value,) = program.plan({}, given, torch.float64, torch.device("cpu")).results
        if isinstance(value, str) or value.numel() != 1:
            raise _unknown(node, "its condition depends on values")
        found.add(bool(value))
    if len(found) != 1:
        raise _unknown(node, "its condition depends on the number of samples")
    return found.pop()


def _unknown(node: Node, why: str) -> ModelError:
    return ModelError(
        f"{node.label}: {why}, so it is not known which branch is taken",
        code="data_dependent_control_flow",
        advice="Export the model with example inputs of the final shape, so that the exporter settles the branch.",
        **node.details,
    )
