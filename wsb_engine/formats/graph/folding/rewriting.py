"""A graph in the course of a rewrite that puts operators in place of constants."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from wsb_engine.formats.graph.graph import Graph, Node

_VERSION = 13
"""Opset whose meaning the added operators have."""


class Rewriting:
    """A graph while some of its constants are replaced by operators."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self.constants = dict(graph.constants)
        self.uses: Mapping[str, list[tuple[Node, int]]] = defaultdict(list)
        for node in graph.nodes:
            for position, name in enumerate(node.inputs):
                self.uses[name].append((node, position))
        captured = (name for node in graph.nodes for inner in node.subgraphs for name in inner.captures)
        self._elsewhere = {*captured, *graph.outputs}
        self._made: list[Node] = []
        self._instead: dict[str, str] = {}
        """Name of a constant → the value that nodes read instead."""

    def candidates(self, *, least: int = 2) -> Iterator[tuple[str, Tensor]]:
        """Return floating constants of at least so many elements that only the inputs of nodes refer to."""
        for name, tensor in self._graph.constants.items():
            sized = tensor.is_floating_point() and tensor.numel() >= least
            if sized and name in self.uses and name not in self._elsewhere:
                yield name, tensor

    def constant(self, name: str, tensor: Tensor) -> str:
        """Add a constant; return its name."""
        name = self._new(name)
        self.constants[name] = tensor
        return name

    def make(self, name: str, operator: str, *inputs: str, **attributes: Any) -> None:
        """Have an operator make what the constant ``name`` was."""
        made = self._new(f"{name} ({operator})")
        self._made.append(
            Node(
                operator=operator,
                version=_VERSION,
                name=name,
                index=0,
                inputs=inputs,
                outputs=(made,),
                attributes=attributes,
            )
        )
        self._instead[name] = made

    def then(self, name: str, operator: str, *inputs: str, **attributes: Any) -> None:
        """Apply one more operator, with further inputs, to what ``make`` has made."""
        self.make(name, operator, self._instead[name], *inputs, **attributes)

    def graph(self) -> Graph:
        """Return the rewritten graph."""
        if not self._made:
            return self._graph
        nodes = [
            replace(node, inputs=tuple(self._instead.get(name, name) for name in node.inputs))
            if any(name in self._instead for name in node.inputs)
            else node
            for node in self._graph.nodes
        ]
        return replace(self._graph, nodes=(*self._made, *nodes), constants=self.constants)

    def _new(self, name: str) -> str:
        made = {output for node in self._made for output in node.outputs}
        while name in self.constants or name in self._graph.producers or name in made:
            name += "'"
        return name
