"""Which constants of a graph are its trainable parameters.

An ONNX file does not say. A constant counts as a parameter by the slot that consumes it: weights and biases of
matrix products, convolutions and recurrent layers, scale and shift of normalisations, embedding tables, and what is
added to or multiplied with the result of such a layer along its channels. Where the file stores it does not matter.
Running statistics, constants of decomposed functions, masks and shapes are never in such a slot, and what only
multiplies positions is computed (``tables`` tells folded masks and positions by their values).

If the exporter left a record of what it wrote (``Provenance``), that decides instead: a tensor that was a parameter is
one wherever it is used, and what no parameter had a part in is none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from wsb_engine.errors import ModelError
from wsb_engine.formats.graph import operators, problems, tables
from wsb_engine.formats.graph.graph import RESHAPING, Graph, Node
from wsb_engine.formats.graph.limits import LIMITS
from wsb_engine.formats.graph.provenance import UNKNOWN, Provenance
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
_RECURRENT = frozenset({"GRU", "LSTM", "RNN"})
_NORMALISATIONS = frozenset(
    {"BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization", "RMSNormalization"}
)
_VIEWS = RESHAPING | {"Expand", "Transpose"}
"""Operators that change no element, and add none but copies."""
_POSITIONS = frozenset({"Cos", "CumSum", "EyeLike", "NonZero", "Range", "Sin"})
"""Operators whose results for constants are positions, or functions of them."""
_PRODUCTS = frozenset({"Div", "Einsum", "Gemm", "MatMul", "Mul", "Pow"})
_COMPARISONS = frozenset({"Greater", "GreaterOrEqual", "Less", "LessOrEqual"})
_TRACED = re.compile(r"^/.*Constant(_\d+)?_output_0$")
"""Names that torch's older exporter gives to tensors that no module stores: a mask of ones, numbers in its code."""
_SELECTIONS = frozenset({"Gather", "GatherElements", "GatherND"})


@dataclass(frozen=True)
class ParameterSet:
    """The parameters of a graph and the nodes that consume each."""

    tensors: Mapping[str, Tensor]
    """By name, in the file's order, in the stored dtype."""
    consumers: Mapping[str, tuple[Node, ...]]
    """Name → the nodes whose trainable slot it reaches."""
    literals: tuple[str, ...] = ()
    """Numbers of the module's code that sit in a trainable slot, and are no parameters of a module that has others."""

    def tied(self, nodes: tuple[Node, ...]) -> tuple[str, ...]:
        """Parameters that more than one slot of these nodes consumes."""
        chosen = {id(node) for node in nodes}
        uses = {name: sum(id(node) in chosen for node in found) for name, found in self.consumers.items()}
        return tuple(name for name, count in uses.items() if count > 1)


def find_parameters(graph: Graph, provenance: Provenance = UNKNOWN) -> ParameterSet:
    """Find the trainable tensors of a graph.

    Args:
        graph: The graph.
        provenance: What the file says about its constants.

    Raises:
        ModelError: ``model_not_finite`` for a NaN or an infinity in a parameter, ``model_no_parameters``.
    """
    search = _Search(graph, provenance)
    consumers = search.consumers()
    if not consumers and search.literals:
        search = _Search(graph, provenance, literals=True)
        consumers = search.consumers()
    tensors = {name: tensor for name, tensor in graph.constants.items() if name in consumers}
    if not tensors:
        raise ModelError(
            "the model has no trainable tensor: no weight of a matrix product, convolution, recurrent layer, "
            "normalisation or embedding",
            code="model_no_parameters",
            advice="Export a trained classifier with its weights in the file.",
        )
    _require_finite(graph, set(tensors))
    return ParameterSet(tensors, {name: tuple(consumers[name]) for name in tensors}, tuple(search.literals))


def _require_finite(graph: Graph, parameters: set[str]) -> None:
    """Infinity is legitimate in a mask, but not in a parameter; NaN is legitimate nowhere."""
    for name, tensor in graph.constants.items():
        if not tensor.is_floating_point():
            continue
        if has_nan(tensor) or (name in parameters and not all_finite(tensor)):
            raise problems.not_finite(name)


class _Search:
    """Walks a graph in order and notes what sits in a trainable slot."""

    def __init__(self, graph: Graph, provenance: Provenance, *, literals: bool = False) -> None:
        self._graph = graph
        self._provenance = provenance
        self._buffers = provenance.computed | provenance.auxiliary
        self._origins = _Origins(graph)
        self._rotations = _rotations(graph)
        self._knots = _knots(graph)
        self._trained: set[str] = set()
        """Values that depend on a parameter found so far."""
        self._take_literals = literals
        self.literals: dict[str, None] = {}
        """Tensors of no module in trainable slots, unless they count as parameters."""

    def consumers(self) -> dict[str, list[Node]]:
        found: dict[str, list[Node]] = {}
        for node in self._graph.nodes:
            sources = dict.fromkeys(
                source for name in self._trainable_inputs(node) for source in self._origins.trainable(name)
            )
            sources |= dict.fromkeys(self._declared(node))
            kept = [source for source in sources if source not in self._buffers and not self._is_literal(source)]
            for source in kept:
                found.setdefault(source, []).append(node)
            if kept or self._trained.intersection(node.reads):
                self._trained.update(filter(None, node.outputs))
        return {name: self._uses(nodes) for name, nodes in found.items()}

    def _uses(self, nodes: list[Node]) -> list[Node]:
        """Leave out nodes that only prepare a constant for those that use it, such as a look-up of positions."""
        return [node for node in nodes if not all(map(self._origins.constant, node.reads))] or nodes

    def _declared(self, node: Node) -> list[str]:
        """Names of parameters, by the file's own record, that a node consumes together with a computed value."""
        if not self._provenance.recorded or all(map(self._origins.constant, node.reads)):
            return []
        entry = operators.find(node)
        static = entry.static if entry is not None else frozenset()
        sources = (
            source
            for position, name in enumerate(node.inputs)
            if name and position not in static and self._origins.constant(name)
            for source in self._origins.trainable(name, numbers=True)
        )
        return [source for source in sources if self._is_trained(source)]

    def _is_trained(self, name: str) -> bool:
        """Return whether the file records that a constant is a parameter, or one that only parameters determine."""
        if name in self._provenance.learned:
            return True
        return name in self._provenance.derived and not tables.is_mask(self._graph.constants[name])

    def _trainable_inputs(self, node: Node) -> list[str]:
        """Names of a node's constant inputs that sit in a trainable slot."""
        if node.domain != "":
            return []
        if node.operator in WEIGHT_SLOTS and not self._is_plain(node):
            inputs = [node.inputs[slot] for slot in WEIGHT_SLOTS[node.operator] if slot < len(node.inputs)]
            weights = [name for name in inputs if name and self._origins.constant(name)]
            if node.operator == "Gather":
                return [name for name in weights if name not in self._knots and not self._is_computed(name)]
            weights += [name for name in self._initial_states(node) if self._varies(name)]
            # A product of constants says nothing about either: what consumes it does.
            return weights if node.operator not in _LINEAR or not all(map(self._origins.constant, node.reads)) else []
        if node.operator in ("Add", "Mul") and len(node.inputs) == 2:
            pairs = (node.inputs, node.inputs[::-1])
            return [name for name, other in pairs if self._is_scale_or_shift(node, name, other)]
        if node.operator == "Concat" and self._trained.intersection(
            node.inputs
        ):  # a learned token next to computed ones
            return [name for name in node.inputs if self._varies(name) and not self._is_computed(name)]
        return []

    def _initial_states(self, node: Node) -> tuple[str, ...]:
        """Names of the states that a recurrent layer starts from; constant ones are zero, unless they were learned."""
        return node.inputs[5:7] if node.operator in _RECURRENT else ()

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
            if any(self._origins.constant(each) for each in before.inputs if each):
                return not self._is_sinusoidal(name)
        elif self._is_normalised(before) or (before.operator == "Mul" and self._is_normalised(self._scaled(before))):
            return not self._is_number(name) and not self._is_sinusoidal(name)
        # Neither after weights nor after a normalisation: added to the scores of attention, to a residual stream, …
        return other in self._trained and self._varies(name) and not self._is_computed(name, node.operator)

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

    def _is_literal(self, name: str) -> bool:
        """Return whether a constant is no parameter because the module or the exporter made it.

        A normalisation without parameters has ones and zeros in their slots, and a recurrence may start from zeros.
        """
        if _TRACED.match(name) is None:
            return False
        tensor = self._graph.constants[name]
        if bool((tensor == tensor.reshape(-1)[:1]).all()):
            return True
        if not self._take_literals:
            self.literals[name] = None
        return not self._take_literals

    def _varies(self, name: str) -> bool:
        """Return whether a constant comes from a stored tensor whose finite elements are not all the same."""
        if not self._origins.constant(name):
            return False
        return any(
            tensor.numel() > 1 and bool((tensor != tensor.reshape(-1)[0]).any()) for _, tensor in self._stored(name)
        )

    def _stored(self, name: str) -> list[tuple[str, Tensor]]:
        return [(source, self._graph.constants[source]) for source in self._origins.trainable(name)]

    def _is_sinusoidal(self, name: str) -> bool:
        """Return whether a constant holds sines and cosines of positions."""
        return any(
            source in self._rotations or tables.is_sinusoidal(tensor)
            for source, tensor in self._stored(name)
            if not self._is_recorded(source)
        )

    def _is_recorded(self, name: str) -> bool:
        """Return whether the file records that a constant is, or was folded from, a parameter."""
        return name in self._provenance.learned or name in self._provenance.derived

    def _is_computed(self, name: str, operator: str = "") -> bool:
        """Return whether the values of a constant say that it was computed: a mask, positions or distances.

        Args:
            name: Name of the constant.
            operator: The operator that consumes it: distances and coordinates are added.
        """
        for source, tensor in self._stored(name):
            if source in self._provenance.learned:
                continue
            if operator == "Add" and tables.switches_off(tensor):
                return True
            if source in self._provenance.derived:
                continue
            if tables.is_mask(tensor) or (operator != "Mul" and tables.is_grid(tensor)):
                return True
            if operator == "Add" and tables.is_distance(tensor):
                return True
        return self._is_sinusoidal(name)


def _rotations(graph: Graph) -> frozenset[str]:
    """Names of stored factors that are each other's sine and cosine."""
    shapes: dict[tuple[int, ...], dict[str, Tensor]] = {}
    for node in graph.nodes:
        if node.domain == "" and node.operator == "Mul":
            for name in node.inputs:
                tensor = graph.constants.get(name)
                if tensor is not None and tensor.is_floating_point():
                    shapes.setdefault(tuple(tensor.shape), {})[name] = tensor
    found: set[str] = set()
    for factors in shapes.values():
        names = list(factors)[: LIMITS.factors]
        found.update(
            name for name, hit in zip(names, tables.on_circles([factors[n] for n in names]), strict=True) if hit
        )
    return frozenset(found)


def _knots(graph: Graph) -> frozenset[str]:
    """Names of tables that divide a piecewise function: what is looked up in them is compared, not only embedded."""
    nodes = [node for node in graph.nodes if node.domain == ""]
    tables_of = {name: node.inputs[0] for node in nodes if node.operator == "Gather" for name in node.outputs}
    compared = (name for node in nodes if node.operator in _COMPARISONS for name in node.inputs)
    return frozenset(tables_of[name] for name in compared if name in tables_of)


class _Origins:
    """Where constant values come from."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._variable = graph.depends_on({entry.name for entry in graph.inputs}, shapes=False)
        self._positions = self._positional()

    def constant(self, name: str) -> bool:
        return name not in self._variable

    def trainable(self, name: str, *, numbers: bool = False) -> tuple[str, ...]:
        """Return the stored floating tensors that a constant value is computed from.

        A tensor that passes only through views counts whatever its size; elsewhere a single number is a constant of
        the computation (an exponent, an ε), not a parameter, unless ``numbers`` asks for it. What is computed from
        positions counts nowhere.
        """
        found: dict[str, None] = {}
        pending = [(name, True)]
        seen = set()
        while pending:
            current, direct = pending.pop()
            if current in seen or current in self._positions:
                continue
            seen.add(current)
            if len(seen) > LIMITS.constant_chain:
                raise problems.too_complex(f"constants behind {name!r}", len(seen), LIMITS.constant_chain)
            tensor = self._graph.constants.get(current)
            if tensor is not None:
                if tensor.is_floating_point() and tensor.numel() > (0 if direct or numbers else 1):
                    found[current] = None
                continue
            node = self._graph.producers.get(current)
            if node is None or (node.domain == "" and node.operator in ("Shape", "Size")):
                continue
            view = node.domain == "" and node.operator in _VIEWS
            pending += [(each, direct and view) for each in _operands(node)]
        return tuple(found)

    def _positional(self) -> set[str]:
        """Values that are computed from positions: indices and coordinates, and what is multiplied with such."""
        found = {
            name
            for name, tensor in self._graph.constants.items()
            if tensor.numel() > 1 and not tensor.is_floating_point()
        }
        for node in self._graph.nodes:
            if node.domain != "" or not node.outputs or any(map(self._variable.__contains__, node.reads)):
                continue
            operands = _operands(node)
            hits = [name in found for name in operands]
            others = [name for name, hit in zip(operands, hits, strict=True) if not hit]
            if node.operator in _POSITIONS or (
                any(hits) and (node.operator in _PRODUCTS or not any(map(self._has_elements, others)))
            ):
                found.update(filter(None, node.outputs))
        return found

    def _has_elements(self, name: str) -> bool:
        """Return whether a constant may hold more than one number of the file; single numbers are neutral."""
        tensor = self._graph.constants.get(name)
        if tensor is not None:
            return tensor.is_floating_point() and tensor.numel() > 1
        node = self._graph.producers.get(name)
        return node is None or node.domain != "" or node.operator not in ("Shape", "Size", "ConstantOfShape")


def _operands(node: Node) -> list[str]:
    """Names of the inputs whose elements a node computes with; those that only shape or select are left out."""
    entry = operators.find(node)
    static = entry.static if entry is not None else frozenset()
    if node.domain == "" and node.operator in _SELECTIONS:
        return [name for name in node.inputs[:1] if name]
    return [name for position, name in enumerate(node.inputs) if name and position not in static]
