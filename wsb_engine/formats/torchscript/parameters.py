"""Which tensors of a module are its trainable parameters.

A module declares them. Freezing it turns them into constants of the graph; those become parameters again by the slot
that consumes them, with the rules of the ONNX reader, and get names after the operator: ``linear_0.weight``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from wsb_engine.errors import ModelError
from wsb_engine.formats.graph.graph import Graph, Node
from wsb_engine.formats.graph.parameters import WEIGHT_SLOTS, find_parameters
from wsb_engine.formats.graph.problems import require_finite

_NAMES: Mapping[str, str] = {
    "BatchNormalization": "batch_norm",
    "Conv": "conv",
    "ConvTranspose": "conv_transpose",
    "Einsum": "einsum",
    "Gather": "embedding",
    "Gemm": "linear",
    "GroupNormalization": "group_norm",
    "InstanceNormalization": "instance_norm",
    "LayerNormalization": "layer_norm",
    "MatMul": "matmul",
    "PRelu": "prelu",
    "RMSNormalization": "rms_norm",
    "RNN": "recurrent",
}
_SLOTS = ("weight", "weight", "bias")


@dataclass(frozen=True)
class ParameterSet:
    """The parameters of a module."""

    tensors: Mapping[str, Tensor]
    """By name, in the stored dtype."""
    constants: Mapping[str, str]
    """Name of a constant of the graph → name of the parameter that it is."""


def parameters(declared: Mapping[str, Tensor], graph: Graph) -> ParameterSet:
    """Return the parameters that a module declares, and those that freezing has hidden among its constants.

    Args:
        declared: Declared parameters by name.
        graph: The structure of forward, in which floating constants are not known yet.

    Raises:
        ModelError: ``model_no_parameters``, ``model_not_finite``.
    """
    consumers = _consumers(graph) if any(_is_constant(name) for name in graph.constants) or not declared else {}
    hidden = {name: nodes for name, nodes in consumers.items() if _is_constant(name)}
    frozen = any(node.operator in WEIGHT_SLOTS for nodes in hidden.values() for node in nodes)
    constants = _renamed(hidden, set(declared)) if frozen else {}
    tensors = {**declared, **{new: graph.constants[old] for old, new in constants.items()}}
    if not tensors:
        raise ModelError(
            "the module has no trainable tensor",
            code="model_no_parameters",
            advice="Save the trained module itself, with its weights.",
        )
    require_finite(tensors)
    return ParameterSet(tensors, constants)


def _is_constant(name: str) -> bool:
    return name.startswith("%")


def _consumers(graph: Graph) -> Mapping[str, tuple[Node, ...]]:
    try:
        return find_parameters(graph).consumers
    except ModelError as error:
        if error.code == "model_no_parameters":
            return {}
        raise


def _renamed(hidden: Mapping[str, tuple[Node, ...]], taken: set[str]) -> dict[str, str]:
    """Names after the first operator that consumes each, in the order of the graph and numbered by kind."""
    consumers = {node.index: node for nodes in hidden.values() for node in nodes}
    layers: dict[int, str] = {}
    counts: Counter[str] = Counter()
    for index, node in sorted(consumers.items()):
        kind = _NAMES.get(node.operator, node.operator.lower())
        layers[index] = f"{kind}_{counts[kind]}"
        counts[kind] += 1
    names: dict[str, str] = {}
    places = [(nodes[0], _position(nodes[0], old), old) for old, nodes in hidden.items()]
    for node, position, old in sorted(places, key=lambda place: (place[0].index, place[1])):
        slot = _SLOTS[min(position, 2)] if node.operator in WEIGHT_SLOTS else "operand"
        wanted = f"{layers[node.index]}.{slot}"
        unique, count = wanted, 1
        while unique in taken:
            count += 1
            unique = f"{wanted}_{count}"
        taken.add(unique)
        names[old] = unique
    return names


def _position(node: Node, name: str) -> int:
    """Where a node consumes a constant; one that it consumes through a view is a weight."""
    return node.inputs.index(name) if name in node.inputs else 1
