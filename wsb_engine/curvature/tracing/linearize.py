"""The derivative of a function at one point as a graph, in which everything independent of the direction is already
evaluated.

``torch.func.linearize`` does the same, but not beyond an operator that writes in place, such as the decomposed
``addmm`` of attention: a third of an encoder's work was repeated for each direction.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import functionalize, jvp

from wsb_engine.curvature.tracing.direct import called_directly
from wsb_engine.curvature.tracing.record import FORM, Recording, record
from wsb_engine.curvature.tracing.simplify import (
    multiply_by_slopes,
    simplify,
    without_repetitions,
    without_unused,
    zeros,
)
from wsb_engine.internals import TreeSpec, schema_of, tree_flatten, tree_leaves, tree_unflatten
from wsb_engine.model import Tensors
from wsb_engine.random_vectors import gaussian


class WrittenInPlaceError(Exception):
    """The trace writes into a tensor such that evaluating a part of the trace in advance would change results."""


Product = Callable[[Tensors], Tensors]

STREAM = 1 << 34
"""Separates the direction of a trace from other random vectors."""
MULTIPLE = -2.0
"""Factor of that direction at which a trace is tried; a power of two, which rounds nothing."""
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2}
"""Relative difference that rounding may make, far more than it does."""


class NotReproducedError(Exception):
    """The trace does not give the derivative that the function itself has."""


class ShapeFollowsValuesError(Exception):
    """Intermediate tensors have other shapes than in the trace."""


def linearize(
    function: Callable[[Tensors, Any], Tensors],
    point: Tensors,
    data: Any,
    *,
    check: Callable[[], None] = lambda: None,
) -> Callable[[Any], Product]:
    """Trace v ↦ J v at ``point`` once, for data of one shape, and return data ↦ (v ↦ J v), exact.

    The trace has a random direction, and is tried at a multiple of it: what the trace took for constant although it
    follows the direction would show.

    Args:
        function: Function from a dictionary of tensors and data to a dictionary of tensors.
        point: Point of the derivative; it must not change afterwards.
        data: Tree of tensors; other data must have the same shapes.
        check: Called after each operator that is traced or evaluated in advance; may raise to stop.

    Raises:
        WrittenInPlaceError: if a tensor that depends on v, or that such a tensor reads, is written in place.
        NumberReadError: if the function follows numbers that it reads out of its data.
        NotReproducedError: if the trace does not give the function's own derivative.
    """
    primals, spec = tree_flatten(dict(point))
    given, data_spec = tree_flatten(data)
    result: list[TreeSpec] = []

    def tangent(*values: Tensor) -> list[Any]:
        tangents, here = values[: len(primals)], tree_unflatten(list(values[len(primals) :]), data_spec)
        at_data = partial(_call, function, here)
        flat, output = tree_flatten(jvp(at_data, (dict(point),), (tree_unflatten(list(tangents), spec),))[1])
        result.append(output)
        return flat

    # Functionalised, because derivatives of some operators are accumulated in place.
    pure = functionalize(tangent, remove="mutations")
    direction = _random_direction(primals)
    traced, expected = record(pure, [*direction, *given], check)
    partially = _prepared(traced, len(primals), check)
    rest = called_directly(partially.rest)

    def at(data: Any) -> Product:
        constants = partially.constants(tree_leaves(data), check)

        def product(direction: Tensors) -> Tensors:
            with torch.no_grad():
                flat = rest(*tree_leaves(dict(direction)), *constants)
            pushed: Tensors = tree_unflatten(flat, result[0])
            return pushed

        return product

    first = at(data)
    found = tree_leaves(first(tree_unflatten([MULTIPLE * each for each in direction], spec)))
    _require_multiple(found, expected)
    return lambda other: first if other is data else at(other)


def _prepared(traced: Recording, free: int, check: Callable[[], None]) -> PartialEvaluation:
    """Divide a trace of the first ``free`` arguments and of data into what follows the former and what does not."""
    graph = traced.graph
    lay_out_pools(graph)
    multiply_by_slopes(graph, free)
    if not any(_written(node) for node in graph.nodes):
        without_repetitions(graph)
    # Operators whose shapes follow values stay, so that other shapes are noticed.
    without_unused(graph, _follows_values)
    check()
    return PartialEvaluation(traced, free)


def _random_direction(primals: Sequence[Tensor]) -> list[Tensor]:
    count = sum(primal.numel() for primal in primals)
    flat = gaussian(count, 0, STREAM, primals[0].device)
    pieces = flat.split([primal.numel() for primal in primals])
    return [piece.view_as(primal).to(primal.dtype) for piece, primal in zip(pieces, primals, strict=True)]


def _require_multiple(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Raise NotReproducedError unless one is ``MULTIPLE`` times the other, up to rounding."""
    off = size = 0.0
    for one, other in zip(found, expected, strict=True):
        off = math.hypot(off, float(torch.linalg.vector_norm(one - MULTIPLE * other)))
        size = math.hypot(size, float(torch.linalg.vector_norm(one)))
    if off > TOLERANCE[expected[0].dtype] * size:  # what is not finite is found by those who multiply
        raise NotReproducedError(f"a trace is off by {off:.2g} of {size:.2g}")


def _call(function: Callable[[Tensors, Any], Tensors], data: Any, point: Tensors) -> Tensors:
    return function(point, data)


def lay_out_pools(graph: fx.Graph) -> None:
    """Give a pool's gradient the layout of its input: ten times faster on a CPU than mixed layouts (torch 2.13)."""
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.avg_pool2d_backward.default):
        gradient, pooled = node.args[:2]
        if pooled.meta[FORM].is_channels_last and not gradient.meta[FORM].is_channels_last:
            with graph.inserting_before(node):
                copy = graph.call_function(
                    torch.ops.aten.clone.default, (gradient,), {"memory_format": torch.channels_last}
                )
            node.replace_input_with(gradient, copy)


class PartialEvaluation:
    """A traced function of its first ``free`` arguments, with everything that depends only on the others evaluated.

    Raises:
        WrittenInPlaceError: as for ``linearize``.
    """

    def __init__(self, traced: Recording, free: int) -> None:
        self._interpreter = fx.Interpreter(traced.constants, graph=traced.graph)
        self._nodes = nodes = list(traced.graph.nodes)
        self._place = {node: index for index, node in enumerate(nodes)}
        arguments = traced.graph.find_nodes(op="placeholder")
        self._given, self._varying = arguments[free:], set[fx.Node](arguments[:free])
        self._constants: list[fx.Node] = []
        for node in nodes:
            if node.op == "output" or any(source in self._varying for source in node.all_input_nodes):
                self._varying.add(node)
                if _written(node):
                    raise WrittenInPlaceError(str(node.target))
        self.rest = self._rest()
        """The graph of the first arguments and the constants."""

    def constants(self, given: Sequence[Tensor], check: Callable[[], None] = lambda: None) -> list[Any]:
        """Evaluate what the rest reads.

        Args:
            given: Arguments that are not free.
            check: Called before each operator; may raise to stop.
        """
        env = self._interpreter.env = dict(zip(self._given, given, strict=True))
        with torch.no_grad():
            for node in self._nodes:
                if node not in self._varying and node not in env:
                    for target in _written(node):
                        self._refuse_readers(target, node)
                    check()
                    env[node] = self._interpreter.run_node(node)
                    traced = node.meta.get(FORM)
                    if isinstance(env[node], Tensor) and traced is not None and env[node].shape != traced.shape:
                        raise ShapeFollowsValuesError(str(node.target))
                for source in node.all_input_nodes:
                    if source not in self._varying and not self._is_read_after(source, node):
                        env.pop(source, None)
        return [env[node] for node in self._constants]

    def _refuse_readers(self, target: fx.Node, writer: fx.Node) -> None:
        """Raise WrittenInPlaceError if the rest reads the same memory as it was before the write."""
        env = self._interpreter.env
        storage = env[target].untyped_storage().data_ptr()
        for node, value in env.items():
            shared = isinstance(value, Tensor) and value.untyped_storage().data_ptr() == storage
            if shared and any(user in self._varying and self._place[user] < self._place[writer] for user in node.users):
                raise WrittenInPlaceError(str(target))

    def _is_read_after(self, source: fx.Node, node: fx.Node) -> bool:
        return any(user in self._varying or self._place[user] > self._place[node] for user in source.users)

    def _rest(self) -> fx.Graph:
        graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
        writes = any(_written(node) for node in self._nodes)
        zero = set() if writes else zeros(self._nodes)
        for node in self._nodes:
            if node.op == "placeholder" and node in self._varying:
                copies[node] = graph.node_copy(node)
        for node in self._nodes:
            if node not in self._varying and any(user in self._varying for user in node.users):
                self._constants.append(node)
                copies[node] = graph.placeholder(f"constant_{len(self._constants)}")
                copies[node].meta = dict(node.meta)
        for node in self._nodes:
            if node.op == "output":
                graph.output(fx.map_arg(node.args[0], copies.__getitem__))
            elif node in self._varying and node.op != "placeholder":
                copies[node] = graph.node_copy(node, copies.__getitem__)
        simplify(graph, [copies[node] for node in self._constants if node in zero])
        return graph


def _follows_values(node: fx.Node) -> bool:
    """Whether a result's shape may depend on values and is a constant in the trace."""
    if node.target is operator.getitem:
        return _follows_values(node.all_input_nodes[0])
    return torch.Tag.dynamic_output_shape in getattr(node.target, "tags", ())


def _written(node: fx.Node) -> list[fx.Node]:
    """Return the arguments that the operator writes into."""
    schema = schema_of(node.target)
    if node.op != "call_function" or schema is None or not schema.is_mutable:
        return []
    values = [*node.args, *(node.kwargs.get(argument.name) for argument in schema.arguments[len(node.args) :])]
    pairs = zip(schema.arguments, values, strict=False)
    return [
        value
        for argument, value in pairs
        if argument.alias_info is not None and argument.alias_info.is_write and isinstance(value, fx.Node)
    ]
