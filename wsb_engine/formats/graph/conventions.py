"""Marks operators that exporters have taken apart, and whose derivatives at some points are a matter of convention.

A norm written out is a root of a sum of squares. Where all of them are 0 its slope is 0 times ∞; torch's own norms have
slope 0 there, to every order. A quotient or a softmax that is NaN on purpose, because a Where replaces it, has none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

from wsb_engine.formats.graph.graph import RESHAPING, Graph, Node

NORM = "norm"
"""Attribute of roots that are norms."""
GUARDED = "guarded"
"""Attribute of operators whose result is replaced where it is NaN."""

_KEEPING = RESHAPING | {"AveragePool", "Expand", "Gather", "GlobalAveragePool", "ReduceMean", "ReduceSum", "Slice"}
_KEEPING |= {"Transpose"}
"""Operators that keep an order of vanishing."""
_CLOSE = 1e-5
"""How far from 1 the order of a norm may be: exporters round exponents, and add to them what keeps them from 0."""


def follow_conventions(graph: Graph) -> Graph:
    """Return the graph with those nodes marked."""
    return _guarded(_norms(graph))


def _norms(graph: Graph) -> Graph:
    orders = _Orders(graph)
    return replace(graph, nodes=tuple(_marked(node, NORM) if orders.add(node) else node for node in graph.nodes))


def _guarded(graph: Graph) -> Graph:
    """Mark softmaxes that are tested for NaN, and quotients that a Where may replace."""
    readers: Mapping[str, set[str]] = defaultdict(set)
    for node in graph.nodes:
        for name in node.inputs if node.domain == "" else ():
            readers[name].add(node.operator)

    def guard(node: Node) -> bool:
        read = readers[node.outputs[0]] if node.domain == "" else set()
        return (node.operator == "Softmax" and "IsNaN" in read) or (node.operator == "Div" and "Where" in read)

    return replace(graph, nodes=tuple(_marked(node, GUARDED) if guard(node) else node for node in graph.nodes))


def _marked(node: Node, attribute: str) -> Node:
    return replace(node, attributes={**node.attributes, attribute: 1})


class _Orders:
    """To which order values vanish that are never negative: x² to order 2, |x| to order 1, and sums as their terms."""

    def __init__(self, graph: Graph) -> None:
        self._constants = graph.constants
        self._from_inputs = graph.depends_on({entry.name for entry in graph.inputs}, shapes=False)
        self._orders: dict[str, float] = {}

    def add(self, node: Node) -> bool:
        """Take the next node in order; True if it is a norm's root."""
        order = self._order(node) if node.domain == "" and node.inputs else None
        if order is not None:
            self._orders[node.outputs[0]] = order
        return order is not None and abs(order - 1) < _CLOSE and self._exponent(node) is not None

    def _order(self, node: Node) -> float | None:
        first = self._orders.get(node.inputs[0])
        if node.operator in _KEEPING:
            return first
        if node.operator == "Abs":
            return first or 1.0
        if node.operator in ("ReduceL2", "ReduceSumSquare"):
            return (1 if node.operator == "ReduceL2" else 2) * (first or 1.0)
        exponent = self._exponent(node)
        if exponent is not None:
            return self._power(first, exponent)
        if node.operator == "Mul":
            return self._product(*node.inputs)
        if node.operator == "Div":
            return first
        if node.operator in ("Add", "Concat", "Mean", "Sum"):
            orders = {self._orders.get(name) for name in node.inputs}
            return orders.pop() if len(orders) == 1 else None
        if node.operator in ("Clip", "Max") and len(node.inputs) == 2:  # from below
            low = self._constants.get(node.inputs[1])
            return first if low is not None and bool((low <= 0).all()) else None
        return None

    def _exponent(self, node: Node) -> float | None:
        """The exponent of a square root, or of another power that does not depend on values."""
        if node.operator == "Sqrt":
            return 0.5
        exponent = self._constants.get(node.inputs[1]) if node.operator == "Pow" else None
        return float(exponent) if exponent is not None and exponent.numel() == 1 else None

    def _power(self, order: float | None, exponent: float) -> float | None:
        if order is None:
            return exponent if exponent > 0 and exponent % 2 == 0 else None
        return order * exponent if exponent > 0 else None

    def _product(self, first: str, second: str) -> float | None:
        orders = {self._orders.get(first), self._orders.get(second)}
        if first == second:
            return 2 * (self._orders.get(first) or 1.0)
        if len(orders) == 1:
            return orders.pop()
        order = (orders - {None}).pop() if None in orders else None
        return order if self._is_scale(second if first in self._orders else first) else None

    def _is_scale(self, name: str) -> bool:
        """True for a positive constant, and for numbers made of constants and shapes."""
        constant = self._constants.get(name)
        return bool((constant > 0).all()) if constant is not None else name not in self._from_inputs
