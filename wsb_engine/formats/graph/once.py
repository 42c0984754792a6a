"""Rewrites after which each parameter is stored once, under its own name.

Exporters fold: what they expand over the example's samples becomes that many equal rows, a weight that the model uses
as it is and transposed becomes two tensors, and a format with two biases gets zeros for the one that the framework
lacks. Each rewrite leaves the stored numbers that were trained, and puts the operator back that made the rest of them.
No value of the graph changes.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from wsb_engine.formats.graph.folding.rewriting import Rewriting
from wsb_engine.formats.graph.folding.unfolding import (
    DIFFERENT,
    is_irregular,
    parts_in_place,
    read_in_place,
    unscaled,
)
from wsb_engine.formats.graph.graph import SAMPLES, Graph, Node
from wsb_engine.formats.graph.parameters import WEIGHT_SLOTS
from wsb_engine.formats.graph.provenance import UNKNOWN, Provenance

_MADE_UP = re.compile(r"^(onnx::|/|_?val_\d)")
"""Names that exporters of torch make up for what they fold; others are the model's."""
_BITS = 40
"""Digits of a vector from which on two of them are not equal by chance."""
_BIASES = {"GRU": 3, "LSTM": 3, "RNN": 3}
"""Recurrent layers → position of their two biases, one after the other."""
_MIRRORED = "{!r} holds the same numbers twice, with either sign, for two classes: both count as parameters"
_PART = "{!r} holds all elements of {!r}: counted as one parameter"
_BROADCASTING = frozenset({"Add", "Concat", "Div", "GRU", "Gemm", "LSTM", "MatMul", "Mul", "RNN", "Sub", "Where"})
"""Operators that an exporter folds an expanded operand for."""


def stored_once(graph: Graph, provenance: Provenance = UNKNOWN) -> tuple[Graph, Provenance, tuple[str, ...]]:
    """Return the graph with each parameter stored once, what is known of its constants, and copies that are in doubt.

    Args:
        graph: The graph.
        provenance: What the file says about its constants.
    """
    graph, provenance = unscaled(graph, provenance)
    graph = _unexpanded(graph)
    graph, doubts = _without_copies(graph, provenance)
    if not provenance.recorded:  # torch, which leaves a record, has both biases
        graph = _without_absent_biases(graph)
        graph, parts = parts_in_place(graph, is_made_up)
        doubts += tuple(_PART.format(whole, part) for part, whole in parts.items())
    graph, provenance = read_in_place(graph, provenance)
    names = _names(graph, provenance)
    return _renamed(graph, names), provenance.renamed(names), doubts


def is_made_up(name: str) -> bool:
    """Return whether an exporter made up the name of a constant that it folded."""
    return _MADE_UP.match(name) is not None


def _unexpanded(graph: Graph) -> Graph:
    """Keep one row of what was expanded over the samples of the example that the file is fixed to."""
    sizes = {entry.shape[0] if entry.shape else None for entry in graph.inputs}
    samples = sizes.pop() if len(sizes) == 1 else None
    if samples is None or samples < 2:
        return graph
    rewriting = Rewriting(graph)
    for name, tensor in rewriting.candidates():
        if _is_tiled(tensor, samples) and all(_is_operand(*use, -tensor.ndim) for use in rewriting.uses[name]):
            rewriting.constants[name] = tensor[: len(tensor) // samples].clone()
            rows, rest = rewriting.constants[name].shape, tensor.shape[1:]
            shape = rewriting.constant(f"{name} (shape)", torch.tensor((samples, *rows)))
            rewriting.make(name, "Expand", name, shape, **{SAMPLES: 0})
            rewriting.then(name, "Reshape", rewriting.constant(f"{name} (rows)", torch.tensor((-1, *rest))))
            continue
        axis = _repeated(tensor, samples)
        if axis is None or not all(_is_operand(*use, axis - tensor.ndim) for use in rewriting.uses[name]):
            continue
        factor = axis == tensor.ndim - 2 and any(
            node.operator in ("Gemm", "MatMul") for node, _ in rewriting.uses[name]
        )
        if factor and not is_irregular(tensor):  # a weight of equal numbers has equal rows too
            continue
        rewriting.constants[name] = tensor.narrow(axis, 0, 1).clone()
        shape = rewriting.constant(f"{name} (shape)", torch.tensor(tensor.shape))
        rewriting.make(name, "Expand", name, shape, **{SAMPLES: axis})
    return rewriting.graph()


def _repeated(tensor: Tensor, samples: int) -> int | None:
    """Return the first axis with one slice a sample that are all the same and hold different numbers."""
    for axis, size in enumerate(tensor.shape):
        if size == samples and tensor.ndim > 1:
            first = tensor.narrow(axis, 0, 1)
            varies = tensor.ndim > 2 or bool((first != first.reshape(-1)[0]).any())
            if varies and bool((tensor == first).all()):
                return axis
    return None


def _is_tiled(tensor: Tensor, samples: int) -> bool:
    """Return whether several matrices, such as those of all heads, are repeated for each sample."""
    if tensor.ndim < 3 or len(tensor) % samples or len(tensor) == samples:
        return False
    parts = tensor.reshape(samples, -1)
    return bool((parts == parts[:1]).all()) and is_irregular(parts[0])


def _is_operand(node: Node, position: int, axis: int) -> bool:
    """Return whether a node may get an operand expanded along an axis (counted from the last), and not a weight."""
    if node.domain != "" or node.operator not in _BROADCASTING:
        return False
    if node.operator == "Gemm":  # its first operand has a row for each sample, unless it is transposed
        return position == 0 and axis == -2 and not node.attributes.get("transA")
    if node.operator == "MatMul":
        return axis < -2 or (axis == -2 and position == 0)
    return position not in WEIGHT_SLOTS.get(node.operator, ())


def _without_copies(graph: Graph, provenance: Provenance) -> tuple[Graph, tuple[str, ...]]:
    """Keep one of two tensors that hold the same numbers, in the same order or transposed."""
    rewriting = Rewriting(graph)
    groups: Mapping[object, list[str]] = defaultdict(list)
    for name, tensor in rewriting.candidates():
        ends = float(tensor[(0,) * tensor.ndim]), float(tensor[(-1,) * tensor.ndim])  # a transposition keeps both
        groups[(tensor.dtype, tensor.numel(), *ends)].append(name)
    doubts = [_MIRRORED.format(name) for name, tensor in rewriting.candidates() if _is_mirrored(tensor)]
    for names in groups.values():
        names.sort(key=lambda name: (name not in provenance.learned, is_made_up(name)))
        first = names[0]
        irregular = len(names) > 1 and is_irregular(graph.constants[first])
        for name in names[1:]:
            if not irregular and first not in provenance.derived.get(name, ()):
                continue
            order = _order(graph.constants[first], graph.constants[name])
            told = order is not None and _is_told(first, name, provenance, transposed=bool(order))
            if order is None or told is False:
                continue
            if told is None:
                counted = "counted as one parameter" if is_made_up(name) else "each counts as a parameter"
                doubts.append(f"{first!r} and {name!r} hold the same numbers: {counted}")
                if not is_made_up(name):
                    continue
            shape = rewriting.constants.pop(name).shape
            if order:
                rewriting.make(name, "Transpose", first, perm=order)
            else:
                rewriting.make(name, "Reshape", first, rewriting.constant(f"{name} (shape)", torch.tensor(shape)))
    return rewriting.graph(), tuple(doubts)


def looked_up(graph: Graph, parameters: Iterable[str]) -> Graph:
    """Return the graph with tables in place of what was looked up in them at constant positions.

    Rows that are equal bit by bit come from one row of a table: an embedding of positions or kinds of tokens, or a bias
    of scores by relative position, with a vector over the heads for each pair. What remains of a table are the rows
    in use, in the order of their first use.

    Args:
        graph: The graph.
        parameters: Names of its parameters; other constants stay as they are.
    """
    rewriting = Rewriting(graph)
    names = set(parameters)
    for name, tensor in rewriting.candidates():
        if name not in names or not all(
            _is_operand(*use, 0) or use[0].operator == "Expand" for use in rewriting.uses[name]
        ):
            continue
        for axis in (tensor.ndim - 1, tensor.ndim - 3):
            found = _table(tensor, axis) if axis >= 0 else None
            if found is not None:
                table, index = found
                rewriting.constants[name] = table
                inputs = name, rewriting.constant(f"{name} (index)", index)
                order = [*range(axis), tensor.ndim - 1, *range(axis, tensor.ndim - 1)]
                rewriting.make(name, "Gather", *inputs, axis=0)
                if axis < tensor.ndim - 1:
                    rewriting.then(name, "Transpose", perm=tuple(order))
                break
    return rewriting.graph()


def _table(tensor: Tensor, axis: int) -> tuple[Tensor, Tensor] | None:
    """Return a table of vectors along an axis, and which of them is where; None if (almost) all differ."""
    moved = tensor.movedim(axis, -1)
    vectors = moved.reshape(-1, moved.shape[-1])
    _, groups = torch.unique(vectors, dim=0, return_inverse=True)
    constant = (vectors == vectors[:, :1]).all(dim=1)  # zeros are equal for other reasons
    groups = torch.where(constant, len(vectors) + torch.arange(len(vectors)), groups)
    _, groups = torch.unique(groups, return_inverse=True)
    count = int(groups.max()) + 1
    digits = vectors.shape[1] * -math.log2(torch.finfo(tensor.dtype).eps)
    if count == len(vectors) or (digits < _BITS and 2 * count > len(vectors)):
        return None
    first = torch.full((count,), len(vectors)).scatter_reduce(0, groups, torch.arange(len(vectors)), "amin")
    order = torch.argsort(first)
    place = torch.empty_like(order)
    place[order] = torch.arange(count)
    return vectors[first[order]].clone(), place[groups].reshape(moved.shape[:-1])


def _is_mirrored(tensor: Tensor) -> bool:
    """Return whether the two rows (or columns) of a matrix are w and −w."""
    if tensor.ndim != 2 or 2 not in tensor.shape or tensor.numel() <= DIFFERENT:
        return False
    rows = tensor if len(tensor) == 2 else tensor.T
    return bool((rows[0] == -rows[1]).all()) and is_irregular(tensor)


def _order(first: Tensor, other: Tensor) -> tuple[int, ...] | None:
    """Return the order of axes that makes one tensor of another; () for a reshape, None for different numbers."""
    if bool((first.reshape(-1) == other.reshape(-1)).all()):
        return ()
    axes = [axis for axis, size in enumerate(first.shape) if size > 1]
    if len(axes) != 2 or first.ndim != other.ndim:
        return None
    order = list(range(first.ndim))
    order[axes[0]], order[axes[1]] = axes[1], axes[0]
    swapped = first.permute(order)
    return tuple(order) if swapped.shape == other.shape and bool((swapped == other).all()) else None


def _is_told(first: str, name: str, provenance: Provenance, *, transposed: bool) -> bool | None:
    """Return whether two tensors of the same numbers are one parameter of the model; None if that is in doubt."""
    if provenance.recorded:
        parameter = provenance.names.get(first, first)
        # What was computed from a parameter, and equals it, is it: a recurrent layer's first step adds a bias to zeros.
        return provenance.names.get(name, name) == parameter or parameter in provenance.derived.get(name, ())
    return True if transposed else None


def _without_absent_biases(graph: Graph) -> Graph:
    """Leave out the half of a recurrent layer's biases that is zero: the framework has one bias only."""
    rewriting = Rewriting(graph)
    for name, tensor in rewriting.candidates():
        uses = rewriting.uses[name]
        if (
            tensor.ndim != 2
            or tensor.shape[1] % 2
            or any(_BIASES.get(n.operator) != slot or n.domain for n, slot in uses)
        ):
            continue
        halves = tensor.chunk(2, dim=1)
        present = [bool(half.any()) for half in halves]
        if present[0] == present[1]:
            continue
        rewriting.constants[name] = halves[present.index(True)].clone()
        width = tensor.shape[1] // 2
        pads = (0, 0, 0, width) if present[0] else (0, width, 0, 0)  # zeros that are no constant of the file
        rewriting.make(name, "Pad", name, rewriting.constant(f"{name} (pads)", torch.tensor(pads)))
    return rewriting.graph()


def _names(graph: Graph, provenance: Provenance) -> dict[str, str]:
    """Return for each constant that was folded from one parameter alone the name of that parameter, if it is free."""
    elsewhere = {name for node in graph.nodes for inner in node.subgraphs for name in inner.captures} | {*graph.outputs}
    taken = {*graph.constants, *graph.producers, *(entry.name for entry in graph.inputs), *elsewhere}
    names: dict[str, str] = {}
    for name, parameter in provenance.names.items():
        if name in graph.constants and name not in elsewhere and parameter not in taken:
            names[name] = parameter
            taken.add(parameter)
    return names


def _renamed(graph: Graph, names: Mapping[str, str]) -> Graph:
    nodes = (replace(node, inputs=tuple(names.get(each, each) for each in node.inputs)) for node in graph.nodes)
    constants = {names.get(name, name): tensor for name, tensor in graph.constants.items()}
    return replace(graph, nodes=tuple(nodes), constants=constants) if names else graph
