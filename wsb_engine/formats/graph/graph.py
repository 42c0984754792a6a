"""The reader's own view of a graph: nodes with plain attributes, constants as torch tensors.

Constant nodes become constants, so that a tensor is the same thing wherever the file stores it. Subgraphs are
graphs held by their node's attributes; their values get unique names, so that all names live in one space.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from wsb_engine.model import Input

Strings = tuple[str, ...]


RESHAPING = frozenset({"Cast", "Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
"""Operators of inference that keep the elements of their first input, and their order."""
SAMPLES = "samples"
"""Attribute of an Expand over the samples of the example: the axis that they lie on."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """One application of an operator."""

    operator: str
    domain: str = ""
    version: int
    """Opset version of the node's domain."""
    name: str
    index: int
    """Position in the file's graph of the node, or of the node whose subgraph or function it comes from."""
    inputs: tuple[str, ...]
    """Value names; ``""`` for an optional input left out."""
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """int, float, str, Tensor, Graph, or tuples of them."""

    @property
    def label(self) -> str:
        """How messages name this node."""
        named = f" ({self.name})" if self.name else ""
        domain = f"{self.domain}." if self.domain else ""
        return f"node {self.index} '{domain}{self.operator}'{named}"

    @property
    def details(self) -> dict[str, Any]:
        """What an error says about this node to programs."""
        return {
            "operator": self.operator,
            "domain": self.domain or "ai.onnx",
            "opset": self.version,
            "node": self.name,
            "index": self.index,
        }

    @property
    def public_name(self) -> str:
        """The operator's name in a report."""
        return self.operator

    @property
    def subgraphs(self) -> tuple[Graph, ...]:
        return tuple(value for value in self.attributes.values() if isinstance(value, Graph))

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of all values that the node needs, those captured by its subgraphs included."""
        captured = [name for graph in self.subgraphs for name in graph.captures]
        return tuple(dict.fromkeys([*filter(None, self.inputs), *captured]))


@dataclass(frozen=True, kw_only=True)
class Graph:
    """Nodes in an order in which each value is made before it is used."""

    nodes: tuple[Node, ...]
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, Tensor]
    """Initialisers, then constants made by nodes; in the file's order."""
    strings: Mapping[str, Strings] = field(default_factory=dict)
    """Constant tensors of strings (class labels), flattened."""
    producers: Mapping[str, Node] = field(init=False, repr=False, compare=False)
    """Value name → the node that makes it; values of subgraphs are not in it."""

    def __post_init__(self) -> None:
        producers = {name: node for node in self.nodes for name in node.outputs if name}
        object.__setattr__(self, "producers", producers)

    @property
    def captures(self) -> tuple[str, ...]:
        """Names that a subgraph takes from outside."""
        own = {*self.constants, *self.producers, *self.strings, *(entry.name for entry in self.inputs)}
        wanted = [name for node in self.nodes for name in node.reads] + list(self.outputs)
        return tuple(dict.fromkeys(name for name in wanted if name not in own))

    def needed(self, outputs: Sequence[str]) -> tuple[Node, ...]:
        """Return the nodes that the values depend on, in order."""
        wanted = set(outputs)
        kept = []
        for node in reversed(self.nodes):
            if wanted.intersection(node.outputs):
                kept.append(node)
                wanted.update(node.reads)
        return tuple(reversed(kept))

    def depends_on(self, sources: set[str], *, shapes: bool = True) -> set[str]:
        """Return all values that depend on any of the sources, the sources included.

        Args:
            sources: Names of values.
            shapes: Whether what depends on a value's shape alone counts.
        """
        reached = set(sources)
        for node in self.nodes:
            if not shapes and node.domain == "" and node.operator in ("Shape", "Size"):
                continue
            if reached.intersection(node.reads):
                reached.update(filter(None, node.outputs))
        return reached
