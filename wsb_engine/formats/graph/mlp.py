"""Finds the multi-layer perceptron inside a graph, however the exporter wrote it.

Walks back from the logits: an affine map, an elementwise function, an affine map, …, down to a value that depends
on no parameter. An elementwise function may be written as one operator or as a dozen; it is identified by what it
computes, value and two derivatives on a grid, against the table that the closed form uses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from wsb_engine.curvature.closed_form.activations import KINDS, derivatives
from wsb_engine.curvature.tracing.operators import traits
from wsb_engine.curvature.tracing.smoothness import nonsmooth_operators
from wsb_engine.errors import ModelError
from wsb_engine.formats.graph import operators
from wsb_engine.formats.graph.graph import RESHAPING, Graph, Node
from wsb_engine.formats.graph.operators import Call
from wsb_engine.formats.graph.plan import Shapes
from wsb_engine.model import MLP, Activation, DenseLayer, Tensors

_LARGEST_REGION = 32
"""Nodes of one activation; the longest spelling in use has ten."""
_TOLERANCE = 1e-6
"""Exporters store the constants of an activation in float32."""
_FIT_ROUNDING = 1e-13
"""Rounding of constants that are fitted to values of a function in float64."""


@dataclass(frozen=True)
class _Affine:
    layer: DenseLayer
    source: str
    """The layer's input."""


def find_mlp(
    graph: Graph,
    logits: str,
    parameters: Tensors,
    shapes: Shapes | None,
    features: Callable[[str], Callable[[Tensors], Tensor]],
) -> MLP | None:
    """Return the MLP that computes ``logits`` from the inputs, or None if they are computed otherwise.

    Args:
        graph: The model's graph.
        logits: Name of the value z.
        parameters: The parameters that z depends on; each must be in exactly one layer.
        shapes: Shapes of the values for some batch, or None if they are not known.
        features: Value name → the function that computes it from the model's inputs.
    """
    return _Finder(graph, parameters, shapes).find(logits, features)


def activation_names(mlp: MLP | None, others: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the nonlinearities, in order, without repetition: an MLP's own, else the others."""
    kinds = others if mlp is None else (each.kind for each in mlp.activations if each.kind != "identity")
    return tuple(dict.fromkeys(kinds))


class _Finder:
    def __init__(self, graph: Graph, parameters: Tensors, shapes: Shapes | None) -> None:
        self.graph = graph
        self.parameters = parameters
        self.shapes = shapes
        self.trained = graph.depends_on(set(parameters), shapes=False)
        self.variable = graph.depends_on({entry.name for entry in graph.inputs})

    def find(self, logits: str, features: Callable[[str], Callable[[Tensors], Tensor]]) -> MLP | None:
        layers: list[DenseLayer] = []
        activations: list[Activation] = []
        value = self._unwrap(logits)
        while True:
            affine = self._affine(value)
            if affine is None:
                return None
            layers.append(affine.layer)
            value = affine.source
            if value not in self.trained:
                break
            value = self._unwrap(value)
            activation = self._activation(value)
            if activation is None:
                return None
            activations.append(activation[0])
            value = activation[1]
        used = [name for layer in layers for name in (layer.weight, layer.bias) if name is not None]
        if sorted(used) != sorted(self.parameters) or not self._is_matrix(value, layers[-1]):
            return None
        return MLP(layers=tuple(layers[::-1]), activations=tuple(activations[::-1]), features=features(value))

    def _is_matrix(self, first: str, layer: DenseLayer) -> bool:
        """Return whether the first layer's input, and so every later value, has one row for each sample."""
        if self.shapes is None:
            first = self._unwrap(first)
            declared = [entry.shape for entry in self.graph.inputs if entry.name == first]
            return bool(declared) and declared[0] is not None and len(declared[0]) == 2
        return len(self.shapes.get(first, ())) == 2

    def _node(self, name: str) -> Node | None:
        node = self.graph.producers.get(name)
        return node if node is not None and node.domain == "" else None

    def _unwrap(self, name: str) -> str:
        """Go back through operators that leave a matrix as it is."""
        node = self._node(name)
        while node is not None and node.operator in RESHAPING and self._same_shape(name, node):
            name = node.inputs[0]
            node = self._node(name)
        return name

    def _same_shape(self, name: str, node: Node) -> bool:
        if node.outputs[0] != name:
            return False
        if node.operator in ("Cast", "Dropout", "Identity"):
            return True
        return self.shapes is not None and self.shapes.get(name) == self.shapes.get(node.inputs[0])

    def _affine(self, name: str) -> _Affine | None:
        node = self._node(name)
        if node is None:
            return None
        if node.operator == "Gemm":
            return self._gemm(node)
        if node.operator == "Add":
            return self._biased(node)
        return self._product(name)

    def _gemm(self, node: Node) -> _Affine | None:
        get = node.attributes.get
        if get("alpha", 1.0) != 1.0 or get("beta", 1.0) != 1.0 or get("transA", 0):
            return None
        weight = self._weight(node.inputs[1], transposed=not get("transB", 0))
        if weight is None or node.inputs[0] not in self.variable:
            return None
        if len(node.inputs) < 3 or not node.inputs[2]:
            return _Affine(weight, node.inputs[0])
        return self._with_bias(weight, node.inputs[0], node.inputs[2])

    def _biased(self, node: Node) -> _Affine | None:
        for term, bias in (node.inputs, node.inputs[::-1]):
            if bias in self.variable or term not in self.variable:
                continue
            product = self._product(self._unwrap(term))
            if product is not None:
                return self._with_bias(product.layer, product.source, bias)
        return None

    def _product(self, name: str) -> _Affine | None:
        """x W, or (W xᵀ)ᵀ."""
        node = self._node(name)
        if node is None:
            return None
        if node.operator == "MatMul" and node.inputs[0] in self.variable:
            weight = self._weight(node.inputs[1], transposed=True)
            return None if weight is None else _Affine(weight, node.inputs[0])
        inner = self._node(node.inputs[0]) if self._swaps(node) else None
        if inner is None or inner.operator != "MatMul":
            return None
        right = self._node(inner.inputs[1])
        weight = self._weight(inner.inputs[0], transposed=False)
        if right is None or not self._swaps(right) or weight is None:
            return None
        return _Affine(weight, right.inputs[0])

    def _swaps(self, node: Node) -> bool:
        if node.operator != "Transpose":
            return False
        order = node.attributes.get("perm")
        return order == (1, 0) or (order is None and self._rank(node.inputs[0]) == 2)

    def _rank(self, name: str) -> int | None:
        if name in self.graph.constants:
            return self.graph.constants[name].ndim
        return len(self.shapes[name]) if self.shapes is not None and name in self.shapes else None

    def _weight(self, name: str, *, transposed: bool) -> DenseLayer | None:
        """Return the stored matrix behind a weight, with the transpositions on the way."""
        node = self._node(name)
        while node is not None:
            if node.operator == "Transpose" and node.attributes.get("perm", (1, 0)) == (1, 0):
                transposed = not transposed
            elif node.operator not in ("Cast", "Identity"):
                return None
            name = node.inputs[0]
            node = self._node(name)
        if name not in self.parameters or self.parameters[name].ndim != 2:
            return None
        return DenseLayer(weight=name, transposed=transposed, bias=None)

    def _with_bias(self, layer: DenseLayer, source: str, bias: str) -> _Affine | None:
        node = self._node(bias)
        while node is not None and node.operator in RESHAPING:
            bias = node.inputs[0]
            node = self._node(bias)
        if bias not in self.parameters:
            return None
        stored = self.parameters[bias]
        width = self.parameters[layer.weight].shape[1 if layer.transposed else 0]
        # One row for all samples: a bias of N rows, or one number for all units, is something else.
        if stored.numel() != width or (stored.ndim and stored.shape[-1] != width):
            return None
        return _Affine(DenseLayer(weight=layer.weight, transposed=layer.transposed, bias=bias), source)

    def _activation(self, name: str) -> tuple[Activation, str] | None:
        """Return the elementwise function that ends in ``name``, and the affine map's output that it is applied to."""
        if self._affine(name) is not None:
            return Activation(kind="identity"), name
        region: dict[str, Node] = {}
        sources: set[str] = set()
        pending = [name]
        while pending:
            current = pending.pop()
            if current in region or current in sources or current not in self.variable:
                continue
            node = self._node(current)
            if node is None:
                return None
            if self._affine(current) is not None:
                sources.add(current)
            elif traits(node.operator).elementwise and len(region) < _LARGEST_REGION:
                region[current] = node
                pending += [each for each in node.inputs if each]
            else:
                return None
        if len(sources) != 1:
            return None
        source = sources.pop()
        activation = self._identify(name, source, region)
        return None if activation is None else (activation, source)

    def _identify(self, name: str, source: str, region: dict[str, Node]) -> Activation | None:
        if len(region) == 1 and region[name].operator in ("Elu", "Celu"):
            alpha = float(region[name].attributes.get("alpha", 1.0))
            return Activation(kind="elu", alpha=alpha) if region[name].operator == "Elu" or alpha == 1.0 else None
        constants: dict[str, Tensor] = {}
        for node in region.values():
            for each in filter(None, node.inputs):
                if each in self.variable:
                    continue
                tensor = self.graph.constants.get(each)
                if tensor is None or tensor.numel() != 1 or each in self.parameters:
                    return None
                constants[each] = tensor.reshape(()).to(torch.float64)

        def function(point: Tensors, _: Tensors) -> Tensor:
            return _evaluate(name, {**constants, source: point["h"]}, region)

        # Smooth functions that agree here, with two derivatives, are the same.
        grid = {"h": torch.linspace(-30, 30, 1201, dtype=torch.float64).requires_grad_()}
        try:
            return None if nonsmooth_operators(function, grid, {}) else _match(function(grid, {}), grid["h"])
        except (ModelError, RuntimeError, TypeError):
            return None  # not a function of one variable after all, or one that can't be evaluated


def _evaluate(name: str, values: dict[str, Tensor], region: dict[str, Node]) -> Tensor:
    pending = [name]
    while pending:
        current = pending[-1]
        node = region.get(current)
        if current in values or node is None:
            pending.pop()
            continue
        missing = [each for each in node.inputs if each and each not in values]
        if missing:
            pending += missing
            continue
        call = Call(node=node, working=torch.float64, device=torch.device("cpu"))
        made = operators.require(node).kernel(call, *(values[each] if each else None for each in node.inputs))
        values[current] = made[0] if isinstance(made, tuple) else made
    return values[name]


def _match(value: Tensor, grid: Tensor) -> Activation | None:
    """Return the activation whose value and derivatives agree on the grid."""
    if value.shape != grid.shape or not value.requires_grad:
        return None
    (first,) = torch.autograd.grad(value.sum(), grid, create_graph=True)
    if not first.requires_grad:
        return None
    (second,) = torch.autograd.grad(first.sum(), grid, allow_unused=True)
    found = (value.detach(), first.detach(), second if second is not None else torch.zeros_like(grid))
    for kind in sorted(KINDS - {"identity", "elu"}):
        expected = derivatives(Activation(kind=kind), grid.detach())
        if all(torch.allclose(a, b, rtol=_TOLERANCE, atol=_TOLERANCE) for a, b in zip(found, expected, strict=True)):
            return _refined(kind, found[0], grid.detach())
    return None


def _refined(kind: str, value: Tensor, grid: Tensor) -> Activation:
    """Return the activation with the constants that the file writes out, rounded to single precision."""
    one, half = (int((grid - h).abs().argmin()) for h in (1.0, 0.5))
    # φ/h is Φ(αh) in the erf form, σ(2u) in the tanh form
    share = value[[one, half]] / grid[[one, half]]
    h = grid[[one, half]]
    if kind == "gelu":
        return Activation(kind=kind, alpha=_snapped(float(torch.special.ndtri(share[0]) / h[0])))
    if kind == "gelu_tanh":
        slope = 0.5 * torch.logit(share) / h  # c (1 + k h²)
        bend = (slope[0] - slope[1]) / (h[0] ** 2 - h[1] ** 2)
        c = slope[0] - bend * h[0] ** 2
        alpha, beta = float(c / math.sqrt(2 / math.pi)), float(bend / c / 0.044715)
        return Activation(kind=kind, alpha=_snapped(alpha), beta=_snapped(beta))
    return Activation(kind=kind)


def _snapped(factor: float) -> float:
    """Return 1 for a factor that differs from it by the rounding of the fit only."""
    return 1.0 if abs(factor - 1) < _FIT_ROUNDING else factor
