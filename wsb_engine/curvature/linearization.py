"""The derivative of a function at one point as a graph of its own, from which all that doesn't depend on the direction
has been evaluated beforehand.

``torch.func.linearize`` does the same, but leaves out everything behind an operator that writes in place, as
``addmm`` decomposed under attention does: a third of an encoder's work was done again for each direction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import functionalize, jvp
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from wsb_engine.classifier import Tensors


class WrittenInPlaceError(Exception):
    """The trace writes into a tensor in a way that evaluating a part of it beforehand would change."""


def linearize(function: Callable[[Tensors], Tensors], point: Tensors) -> Callable[[Tensors], Tensors]:
    """v ↦ J v at ``point``, exact.

    Args:
        function: Of a dictionary of tensors, to a dictionary of tensors.
        point: Where; it must not change afterwards.

    Raises:
        WrittenInPlaceError: where a tensor that depends on v, or that such a tensor reads, is written in place.
    """
    primals, spec = tree_flatten(dict(point))
    result: list[TreeSpec] = []

    def tangent(*tangents: Tensor) -> list[Any]:
        flat, output = tree_flatten(jvp(function, (dict(point),), (tree_unflatten(list(tangents), spec),))[1])
        result.append(output)
        return flat

    # Functionalised, because derivatives of some operators are accumulated in place.
    pure = functionalize(tangent, remove="mutations")
    traced = make_fx(pure)(*(torch.zeros_like(primal) for primal in primals))
    lay_out_pools(traced.graph)
    traced.graph.eliminate_dead_code()
    evaluated = evaluate_constants(traced)

    def product(direction: Tensors) -> Tensors:
        with torch.no_grad():
            flat = evaluated(*tree_leaves(dict(direction)))
        pushed: Tensors = tree_unflatten(flat, result[0])
        return pushed

    return product


def lay_out_pools(graph: fx.Graph) -> None:
    """Gives a pool's gradient the layout of its input: ten times faster on a CPU than one of each (torch 2.13)."""
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


def evaluate_constants(module: fx.GraphModule) -> fx.GraphModule:
    """The same module with every node that depends on no placeholder replaced by its value.

    Raises:
        WrittenInPlaceError: as ``linearize`` does.
    """
    nodes = list(module.graph.nodes)
    place = {node: index for index, node in enumerate(nodes)}
    varying: set[fx.Node] = set()
    for node in nodes:
        if node.op == "placeholder" or any(source in varying for source in node.all_input_nodes):
            varying.add(node)
    interpreter = fx.Interpreter(module)
    with torch.no_grad():
        for node in nodes:
            written = _written(node)
            if node in varying:
                if written and node.op != "output":
                    raise WrittenInPlaceError(str(node.target))
            elif node.op != "output":
                for target in written:
                    _refuse_readers(target, place[node], place, varying, interpreter.env)
                interpreter.env[node] = interpreter.run_node(node)
            for source in node.all_input_nodes:
                if source not in varying and not _is_read(source, place[node], place, varying):
                    interpreter.env.pop(source, None)
    return _rebuilt(nodes, varying, interpreter.env)


def _written(node: fx.Node) -> list[fx.Node]:
    """Arguments that the operator writes into."""
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function" or schema is None or not schema.is_mutable:
        return []
    values = [*node.args, *(node.kwargs.get(argument.name) for argument in schema.arguments[len(node.args) :])]
    pairs = zip(schema.arguments, values, strict=False)
    return [
        value
        for argument, value in pairs
        if argument.alias_info is not None and argument.alias_info.is_write and isinstance(value, fx.Node)
    ]


def _refuse_readers(
    target: fx.Node, now: int, place: dict[fx.Node, int], varying: set[fx.Node], env: dict[fx.Node, Any]
) -> None:
    """A write is harmless unless something that is evaluated later has read the same memory before it."""
    storage = env[target].untyped_storage().data_ptr()
    for node, value in env.items():
        shared = isinstance(value, Tensor) and value.untyped_storage().data_ptr() == storage
        if shared and any(user in varying and place[user] < now for user in node.users):
            raise WrittenInPlaceError(str(target))


def _is_read(node: fx.Node, now: int, place: dict[fx.Node, int], varying: set[fx.Node]) -> bool:
    """Whether a value is still needed after step ``now``: by the part kept, or by one evaluated beforehand."""
    return any(user in varying or user.op == "output" or place[user] > now for user in node.users)


def _rebuilt(nodes: list[fx.Node], varying: set[fx.Node], env: dict[fx.Node, Any]) -> fx.GraphModule:
    root, graph, copies = torch.nn.Module(), fx.Graph(), dict[fx.Node, fx.Node]()

    def copied(node: fx.Node) -> fx.Node:
        if node not in copies:
            name = f"constant_{len(copies)}"
            setattr(root, name, env[node])
            copies[node] = graph.get_attr(name)
        return copies[node]

    for node in nodes:
        if node.op == "output":
            graph.output(fx.map_arg(node.args[0], copied))
        elif node in varying:
            copies[node] = graph.node_copy(node, copied)
    return fx.GraphModule(root, graph)
