"""Which constants of a graph are its trainable parameters.

An ONNX file does not say. A constant counts as a parameter by the slot that consumes it: weights and biases of
matrix products, convolutions and recurrent layers, scale and shift of normalisations, embedding tables, and what is
added to or multiplied with the result of such a layer along its channels. Where the file stores it does not matter.
Running statistics, constants of decomposed functions, masks and shapes are never in such a slot.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from wsb_engine.errors import ModelError
from wsb_engine.formats.onnx import operators
from wsb_engine.formats.onnx.graph import Graph, Node

WEIGHT_SLOTS: Mapping[str, tuple[int, ...]] = {
    "BatchNormalization": (1, 2),
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "DeformConv": (1, 3),
    "Einsum": tuple(range(16)),
    "GRU": (1, 2, 3),
    "Gather": (0,),
    "Gemm": (0, 1, 2),
    "GroupNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LSTM": (1, 2, 3, 7),
    "LayerNormalization": (1, 2),
    "MatMul": (0, 1),
    "PRelu": (1,),
    "RMSNormalization": (1,),
    "RNN": (1, 2, 3),
}
"""Operator → positions of its trainable inputs."""

_LINEAR = frozenset({"Conv", "ConvTranspose", "DeformConv", "Einsum", "Gemm", "MatMul"})
VIEWS = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
"""Operators that change neither the elements nor their number."""


@dataclass(frozen=True)
class ParameterSet:
    """The parameters of a graph and the nodes that consume each."""

    tensors: Mapping[str, Tensor]
    """By name, in the file's order, in the stored dtype."""
    consumers: Mapping[str, tuple[Node, ...]]
    """Name → the nodes whose trainable slot it reaches."""

    def tied(self, nodes: tuple[Node, ...]) -> tuple[str, ...]:
        """Parameters that more than one slot of these nodes consumes."""
        chosen = {id(node) for node in nodes}
        uses = {name: sum(id(node) in chosen for node in found) for name, found in self.consumers.items()}
        return tuple(name for name, count in uses.items() if count > 1)


def find_parameters(graph: Graph) -> ParameterSet:
    """Finds the trainable tensors of a graph.

    Raises:
        ModelError: ``model_not_finite`` for a NaN or an infinity in a parameter, ``model_no_parameters``.
    """
    consumers: dict[str, list[Node]] = {}
    origins = _Origins(graph)
    for node in graph.nodes:
        for name in _trainable_inputs(graph, node, origins):
            for source in origins.trainable(name):
                consumers.setdefault(source, []).append(node)
    tensors = {name: tensor for name, tensor in graph.constants.items() if name in consumers}
    if not tensors:
        raise ModelError(
            "the model has no trainable tensor: no weight of a matrix product, convolution, recurrent layer, "
            "normalisation or embedding",
            code="model_no_parameters",
            advice="Export a trained classifier with its weights in the file.",
        )
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(
                f"parameter {name!r} has a value that is NaN or infinite",
                code="model_not_finite",
                advice="The training diverged, or the export overflowed in float16; export finite weights.",
                tensor=name,
            )
    return ParameterSet(tensors, {name: tuple(consumers[name]) for name in tensors})


def _trainable_inputs(graph: Graph, node: Node, origins: _Origins) -> list[str]:
    """Names of a node's constant inputs that sit in a trainable slot."""
    if node.domain != "":
        return []
    if node.operator in WEIGHT_SLOTS:
        slots = WEIGHT_SLOTS[node.operator]
        inputs = [node.inputs[slot] for slot in slots if slot < len(node.inputs)]
        return [name for name in inputs if name and origins.constant(name)]
    if node.operator == "Add" and len(node.inputs) == 2:
        return [
            name
            for name, other in (node.inputs, node.inputs[::-1])
            if origins.constant(name) and not origins.constant(other) and _is_linear(graph, other)
        ]
    return []


def _is_linear(graph: Graph, name: str) -> bool:
    node = graph.producers.get(name)
    while node is not None and node.domain == "" and node.operator in VIEWS:
        node = graph.producers.get(node.inputs[0])
    return node is not None and node.domain == "" and node.operator in _LINEAR


class _Origins:
    """Where constant values come from."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._variable = graph.depends_on({entry.name for entry in graph.inputs})

    def constant(self, name: str) -> bool:
        return name not in self._variable

    def trainable(self, name: str) -> tuple[str, ...]:
        """The stored floating tensors that a constant value is computed from.

        A tensor that passes only through views counts whatever its size; elsewhere a single number is a constant of
        the computation (an exponent, an ε), not a parameter.
        """
        found: dict[str, None] = {}
        pending = [(name, True)]
        seen = set()
        while pending:
            current, direct = pending.pop()
            if current in seen:
                continue
            seen.add(current)
            tensor = self._graph.constants.get(current)
            if tensor is not None:
                if tensor.is_floating_point() and tensor.numel() > (0 if direct else 1):
                    found[current] = None
                continue
            node = self._graph.producers.get(current)
            if node is None:
                continue
            entry = operators.find(node)
            static = entry.static if entry is not None else frozenset()
            view = node.domain == "" and node.operator in VIEWS
            pending += [
                (each, direct and view) for position, each in enumerate(node.inputs) if each and position not in static
            ]
        return tuple(found)
