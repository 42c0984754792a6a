"""A traced function as one call into torch's interpreter of graphs, which needs neither Python nor its lock in between.

Threads that run the same short operators from Python wait for each other at its lock: two of them take a fifth longer.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

_FORMATS = {torch.contiguous_format: 0, torch.preserve_format: 1, torch.channels_last: 2, torch.channels_last_3d: 3}
"""Numbers of memory formats, as graphs have them."""


class NotScriptableError(Exception):
    """A node of the trace that a graph of torch's can't hold."""


def scripted(module: fx.GraphModule) -> Callable[..., list[Tensor]]:
    """The same function of tensors to a list of tensors.

    Args:
        module: A trace whose operators are ATen's.

    Raises:
        NotScriptableError: where it has other nodes, or torch other graphs than it had.
    """
    try:
        graph = _graph(module)
        graph.lint()
        function = torch._C._create_function_from_graph("traced", graph)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise NotScriptableError(str(error)) from error

    def as_it_is(*values: Tensor) -> list[Tensor]:
        # torch's own optimisation takes additions out of matrix products again.
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            results: list[Tensor] = function(*values)
        return results

    return as_it_is


def _graph(module: fx.GraphModule) -> Any:
    graph = torch._C.Graph()
    values: dict[Any, Any] = {}
    for node in module.graph.nodes:
        if node.op == "placeholder":
            values[node] = graph.addInput()
        elif node.op == "output":
            graph.registerOutput(_list(graph, [values[part] for part in node.args[0]]))
        elif node.target is operator.getitem:
            source, index = node.args
            values[node] = values[source][index]
        elif isinstance(node.target, torch._ops.OpOverload):
            outputs = _apply(graph, node, values)
            values[node] = outputs[0] if len(outputs) == 1 else outputs
        else:
            raise NotScriptableError(str(node.target))
    return graph


def _apply(graph: Any, node: fx.Node, values: dict[Any, Any]) -> list[Any]:
    schema = node.target._schema  # type: ignore[union-attr]
    given = dict(zip((argument.name for argument in schema.arguments), node.args, strict=False)) | node.kwargs
    inputs = []
    for argument in schema.arguments:
        value = given.get(argument.name, argument.default_value)
        if isinstance(value, fx.Node):
            inputs.append(values[value])
        elif isinstance(value, (list, tuple)) and any(isinstance(part, fx.Node) for part in value):
            inputs.append(_list(graph, [values[part] for part in value]))
        else:
            inputs.append(graph.insertConstant(_constant(value, argument.type)))
    applied = graph.insertNode(graph.create(schema.name, inputs, len(schema.returns)))
    outputs = list(applied.outputs())
    for output, returned in zip(outputs, schema.returns, strict=True):
        output.setType(returned.type)
    if applied.schema() == "(no schema)":
        raise NotScriptableError(str(schema))
    return outputs


def _constant(value: Any, kind: Any) -> Any:
    if isinstance(value, torch.memory_format):
        return _FORMATS[value]
    if isinstance(value, (list, tuple)):
        return list(value)
    floats = isinstance(value, int) and not isinstance(value, bool) and kind.kind() == "FloatType"
    return float(value) if floats else value


def _list(graph: Any, tensors: list[Any]) -> Any:
    made = graph.insertNode(graph.create("prim::ListConstruct", tensors, 1)).output()
    made.setType(torch._C.ListType.ofTensors())
    return made
