"""Which constants of a graph are its trainable parameters.

An ONNX file does not say. A constant counts as a parameter by the slot that consumes it: weights and biases of
matrix products, convolutions and recurrent layers, scale and shift of normalisations, embedding tables, and what is
added to or multiplied with the result of such a layer along its channels. Where the file stores it does not matter.
Running statistics, constants of decomposed functions, masks and shapes are never in such a slot.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from wsb_engine.errors import ModelError
from wsb_engine.formats.graph import operators, problems
from wsb_engine.formats.graph.graph import RESHAPING, Graph, Node
from wsb_engine.formats.graph.limits import LIMITS
from wsb_engine.formats.graph.tensors import all_finite, has_nan

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
_NORMALISATIONS = frozenset(
    {"BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization", "RMSNormalization"}
)
_SWITCHED_OFF = -1e4
"""Masks use −∞, the lowest float, or −10000 and below; no trained weight comes near."""
_VIEWS = RESHAPING | {"Transpose"}
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
    """Find the trainable tensors of a graph.

    Raises:
        ModelError: ``model_not_finite`` for a NaN or an infinity in a parameter, ``model_no_parameters``.
    """
    consumers = _Search(graph).consumers()
    tensors = {name: tensor for name, tensor in graph.constants.items() if name in consumers}
    if not tensors:
        raise ModelError(
            "the model has no trainable tensor: no weight of a matrix product, convolution, recurrent layer, "
            "normalisation or embedding",
            code="model_no_parameters",
            advice="Export a trained classifier with its weights in the file.",
        )
    _require_finite(graph, set(tensors))
    return ParameterSet(tensors, {name: tuple(consumers[name]) for name in tensors})


def _require_finite(graph: Graph, parameters: set[str]) -> None:
    """Infinity is legitimate in a mask, but not in a parameter; NaN is legitimate nowhere."""
    for name, tensor in graph.constants.items():
        if not tensor.is_floating_point():
            continue
        if has_nan(tensor) or (name in parameters and not all_finite(tensor)):
            raise problems.not_finite(name)


class _Search:
    """Walks a graph in order and notes what sits in a trainable slot."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._origins = _Origins(graph)
        self._trained: set[str] = set()
        """Values that depend on a parameter found so far."""

    def consumers(self) -> dict[str, list[Node]]:
        found: dict[str, list[Node]] = {}
        for node in self._graph.nodes:
            sources = dict.fromkeys(
                source for name in self._trainable_inputs(node) for source in self._origins.trainable(name)
            )
            for source in sources:
                found.setdefault(source, []).append(node)
            if sources or self._trained.intersection(node.reads):
                self._trained.update(filter(None, node.outputs))
        return found

    def _trainable_inputs(self, node: Node) -> list[str]:
        """Names of a node's constant inputs that sit in a trainable slot."""
        if node.domain != "":
            return []
        if node.operator in WEIGHT_SLOTS and not self._is_plain(node):
            inputs = [node.inputs[slot] for slot in WEIGHT_SLOTS[node.operator] if slot < len(node.inputs)]
            return [name for name in inputs if name and self._origins.constant(name)]
        if node.operator in ("Add", "Mul") and len(node.inputs) == 2:
            pairs = (node.inputs, node.inputs[::-1])
            return [name for name, other in pairs if self._is_scale_or_shift(node, name, other)]
        if node.operator == "Concat":  # a learned token next to computed ones
            return [name for name in node.inputs if self._trained.intersection(node.inputs) and self._varies(name)]
        return []

    def _is_plain(self, node: Node) -> bool:
        """True for an instance normalisation that does not scale or shift: a step of a group normalisation."""
        if node.operator != "InstanceNormalization":
            return False
        scale, shift = (self._graph.constants.get(name) for name in node.inputs[1:3])
        return scale is not None and shift is not None and bool((scale == 1).all()) and bool((shift == 0).all())

    def _is_scale_or_shift(self, node: Node, name: str, other: str) -> bool:
        """Return whether a constant is added to, or scales, what a layer computes."""
        if not self._origins.constant(name) or self._origins.constant(other):
            return False
        before = self._before(other)
        if before is None:
            return False
        if before.operator in _LINEAR and node.operator == "Add":
            weighted = any(self._origins.constant(each) for each in before.inputs if each)
            return weighted or not self._is_mask(node, name)  # without weights it computes the scores of attention
        if self._is_normalised(before) or (before.operator == "Mul" and self._is_normalised(self._scaled(before))):
            return not self._is_number(name)
        return other in self._trained and self._varies(name) and not self._is_mask(node, name)

    def _before(self, name: str) -> Node | None:
        """Return the node that makes a value, not counting views."""
        node = self._graph.producers.get(name)
        while node is not None and node.domain == "" and node.operator in _VIEWS:
            node = self._graph.producers.get(node.inputs[0])
        return node if node is not None and node.domain == "" else None

    def _scaled(self, node: Node) -> Node | None:
        variable = [name for name in node.inputs if not self._origins.constant(name)]
        return self._before(variable[0]) if len(variable) == 1 else None

    def _is_normalised(self, node: Node | None) -> bool:
        """Return whether a node is a normalisation, fused or written out as (x − mean) / √(variance + ε)."""
        if node is None or node.domain != "":
            return False
        if node.operator in _NORMALISATIONS:
            return True
        roots = {"Div": ("Sqrt",), "Mul": ("Reciprocal", "Div")}.get(node.operator, ())
        return any(
            factor is not None and factor.operator in roots and not self._origins.constant(name)
            for name, factor in ((name, self._before(name)) for name in node.inputs)
        ) and not any(self._origins.constant(name) for name in node.inputs)

    def _is_number(self, name: str) -> bool:
        tensor = self._graph.constants.get(name)
        return tensor is not None and tensor.numel() == 1

    def _varies(self, name: str) -> bool:
        """Return whether a constant comes from a stored tensor whose finite elements are not all the same."""
        if not self._origins.constant(name):
            return False
        stored = [self._graph.constants[source] for source in self._origins.trainable(name)]
        return any(tensor.numel() > 1 and bool((tensor != tensor.reshape(-1)[0]).any()) for tensor in stored)

    def _is_mask(self, node: Node, name: str) -> bool:
        """True for numbers that switch positions off before a softmax: −∞, or so low that they act like it."""
        stored = [self._graph.constants[source] for source in self._origins.trainable(name)]
        return node.operator == "Add" and any(bool((tensor < _SWITCHED_OFF).any()) for tensor in stored)


class _Origins:
    """Where constant values come from."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._variable = graph.depends_on({entry.name for entry in graph.inputs}, shapes=False)

    def constant(self, name: str) -> bool:
        return name not in self._variable

    def trainable(self, name: str) -> tuple[str, ...]:
        """Return the stored floating tensors that a constant value is computed from.

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
            if len(seen) > LIMITS.constant_chain:
                raise problems.too_complex(f"constants behind {name!r}", len(seen), LIMITS.constant_chain)
            tensor = self._graph.constants.get(current)
            if tensor is not None:
                if tensor.is_floating_point() and tensor.numel() > (0 if direct else 1):
                    found[current] = None
                continue
            node = self._graph.producers.get(current)
            if node is None or (node.domain == "" and node.operator in ("Shape", "Size")):
                continue
            entry = operators.find(node)
            static = entry.static if entry is not None else frozenset()
            view = node.domain == "" and node.operator in _VIEWS
            pending += [
                (each, direct and view) for position, each in enumerate(node.inputs) if each and position not in static
            ]
        return tuple(found)
