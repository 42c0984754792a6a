"""The derivative of a function at one point as a graph, in which everything independent of the direction is already
evaluated.

``torch.func.linearize`` does the same, but not beyond an operator that writes in place, such as the decomposed
``addmm`` of attention: a third of an encoder's work was repeated for each direction.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import functionalize, jvp

from wsb_engine.curvature.tracing.direct import called_directly
from wsb_engine.curvature.tracing.dispatch import OperatorWatch
from wsb_engine.curvature.tracing.simplify import multiply_by_slopes, simplify, without_repetitions, zeros
from wsb_engine.internals import TreeSpec, make_fx, schema_of, tree_flatten, tree_leaves, tree_unflatten
from wsb_engine.model import Tensors


class WrittenInPlaceError(Exception):
    """The trace writes into a tensor such that evaluating a part of the trace in advance would change results."""


Product = Callable[[Tensors], Tensors]


class ShapeFollowsValuesError(Exception):
    """Intermediate tensors have other shapes than in the trace."""


class _Checked(OperatorWatch):
    """Calls a check after each operator; what it raises ends the trace."""

    def __init__(self, check: Callable[[], None]) -> None:
        super().__init__()
        self._check = check

    def ran(self, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        self._check()


def linearize(
    function: Callable[[Tensors, Any], Tensors],
    point: Tensors,
    data: Any,
    *,
    check: Callable[[], None] = lambda: None,
) -> Callable[[Any], Product]:
    """Trace v ↦ J v at ``point`` once, for data of one shape, and return data ↦ (v ↦ J v), exact.

    Args:
        function: Function from a dictionary of tensors and data to a dictionary of tensors.
        point: Point of the derivative; it must not change afterwards.
        data: Tree of tensors; other data must have the same shapes.
        check: Called after each operator that is traced or evaluated in advance; may raise to stop.

    Raises:
        WrittenInPlaceError: if a tensor that depends on v, or that such a tensor reads, is written in place.
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
    with _Checked(check):
        traced = make_fx(pure)(*(torch.zeros_like(primal) for primal in primals), *given)
    lay_out_pools(traced.graph)
    multiply_by_slopes(traced.graph, len(primals))
    if not any(_written(node) for node in traced.graph.nodes):
        traced = without_repetitions(traced)
    # Operators whose shapes follow values stay, so that other shapes are noticed.
    traced.graph.eliminate_dead_code(lambda node: node.is_impure() or _follows_values(node))
    check()
    partially = PartialEvaluation(traced, len(primals))
    rest = called_directly(partially.rest)

    def at(data: Any) -> Product:
        constants = partially.constants(tree_leaves(data), check)

        def product(direction: Tensors) -> Tensors:
            with torch.no_grad():
                flat = rest(*tree_leaves(dict(direction)), *constants)
            pushed: Tensors = tree_unflatten(flat, result[0])
            return pushed

        return product

    return at


def _call(function: Callable[[Tensors, Any], Tensors], data: Any, point: Tensors) -> Tensors:
    return function(point, data)


def lay_out_pools(graph: fx.Graph) -> None:
    """Give a pool's gradient the layout of its input: ten times faster on a CPU than mixed layouts (torch 2.13)."""
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.avg_pool2d_backward.default):
        gradient, pooled = node.args[:2]
        if _memory_format(pooled) == torch.channels_last != _memory_format(gradient):
            with graph.inserting_before(node):
                copy = graph.call_function(
                    torch.ops.aten.clone.default, (gradient,), {"memory_format": torch.channels_last}
                )
            node.replace_input_with(gradient, copy)


def _memory_format(node: fx.Node) -> torch.memory_format | None:
    traced: torch.memory_format | None = node.meta["tensor_meta"].memory_format
    return traced


class PartialEvaluation:
    """A traced function of its first ``free`` arguments, with everything that depends only on the others evaluated.

    Raises:
        WrittenInPlaceError: as for ``linearize``.
    """

    def __init__(self, module: fx.GraphModule, free: int) -> None:
        self._interpreter = fx.Interpreter(module)
        self._nodes = nodes = list(module.graph.nodes)
        self._place = {node: index for index, node in enumerate(nodes)}
        self._given = module.graph.find_nodes(op="placeholder")[free:]
        self._varying: set[fx.Node] = set(module.graph.find_nodes(op="placeholder")[:free])
        self._constants: list[fx.Node] = []
        for node in nodes:
            if node.op == "output" or any(source in self._varying for source in node.all_input_nodes):
                self._varying.add(node)
                if _written(node):
                    raise WrittenInPlaceError(str(node.target))
        self.rest = self._rest()
        """Function of the first arguments and the constants."""

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
                    traced = node.meta.get("tensor_meta")
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

    def _rest(self) -> fx.GraphModule:
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
        return simplify(
            fx.GraphModule(torch.nn.Module(), graph), [copies[node] for node in self._constants if node in zero]
        )


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
