"""Undoes what an exporter that leaves a record computed from parameters, if that is exact.

A part of a parameter, or a parameter in another order, becomes a view of it, and a query or key that was multiplied
with the scale of its attention becomes the parameter and the product.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from wsb_engine.formats.graph.folding.rewriting import Rewriting
from wsb_engine.formats.graph.graph import Graph, Node
from wsb_engine.formats.graph.provenance import Provenance

_CHUNK = 1 << 20
"""Elements that are compared with others at a time."""
_LOOKED_AT = 4096
"""Elements among which different values are looked for."""
DIFFERENT = 3
"""Different values from which on equal elements are the same parameter's, rather than both as they were initialised."""


def is_irregular(tensor: Tensor, *, least: int = DIFFERENT) -> bool:
    """Return whether values differ as trained ones do; ones and zeros are equal for other reasons."""
    return len(torch.unique(tensor.reshape(-1)[:_LOOKED_AT])) >= least


def unscaled(graph: Graph, provenance: Provenance) -> tuple[Graph, Provenance]:
    """Return the graph with the scale of attention as a product again, and that scale as no parameter.

    The exporter multiplies queries and keys with the root of the scale each. If one of them is a constant, only the
    other product is left, and has the scale.

    Args:
        graph: The graph.
        provenance: What the file says about its constants.
    """
    rewriting = Rewriting(graph)
    # A learned temperature is no scale of attention.
    trained = (provenance.learned | provenance.derived.keys() | provenance.names.keys()) - provenance.of_shapes
    scales: set[str] = set()
    products: set[str] = set()
    for name, tensor in rewriting.candidates():
        if name not in provenance.derived and name not in provenance.names:
            continue
        found = {_other_scale(graph, node, position) for node, position in rewriting.uses[name]}
        scale = found.pop() if len(found) == 1 else None
        if scale is None or scale in trained:
            continue
        scales.add(scale)
        before = _divided(tensor, graph.constants[scale])
        if before is None:
            products.add(name)
        else:
            rewriting.constants[name] = before
            rewriting.make(name, "Mul", name, scale)
    derived = {name: sources for name, sources in provenance.derived.items() if name not in scales}
    derived |= {name: (provenance.names[name],) for name in products if name in provenance.names}
    return rewriting.graph(), replace(
        provenance,
        learned=provenance.learned - scales - products,
        derived=derived,
        computed=provenance.computed | scales,
        names={name: each for name, each in provenance.names.items() if name not in scales | products},
    )


def _other_scale(graph: Graph, node: Node, position: int) -> str | None:
    """Return the number that the other factor of a product of matrices was multiplied with."""
    if (node.domain, node.operator) != ("", "MatMul"):
        return None
    factor = graph.producers.get(node.inputs[1 - position])
    if factor is None or (factor.domain, factor.operator) != ("", "Mul"):
        return None
    return next((name for name in factor.inputs if _is_number(graph.constants.get(name))), None)


def _is_number(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.is_floating_point() and tensor.numel() == 1 and bool((tensor > 0).all())


def _divided(product: Tensor, scale: Tensor) -> Tensor | None:
    """Return numbers whose products with a scale round to the given ones; None if there are none."""
    if product.dtype != scale.dtype:
        return None
    near = product / scale.reshape(())
    ends = (torch.full_like(near, end) for end in (torch.inf, -torch.inf))
    for candidate in (near, *(torch.nextafter(near, end) for end in ends)):
        near = torch.where(near * scale.reshape(()) == product, near, candidate)
    return near if bool((near * scale.reshape(()) == product).all()) else None


def read_in_place(graph: Graph, provenance: Provenance) -> tuple[Graph, Provenance]:
    """Return the graph with tensors whose elements are all those of one parameter in the file read from it.

    Args:
        graph: The graph.
        provenance: What the file says about its constants.
    """
    rewriting = Rewriting(graph)
    candidates = dict(rewriting.candidates(least=1))
    wholes = _wholes(graph, provenance)
    done: set[str] = set()
    for name, whole in _descent(provenance, wholes):
        if name not in candidates or name in done or whole in done:
            continue
        part, parent = candidates[name], graph.constants[whole]
        if _is_reciprocal(part, parent):
            rewriting.make(name, "Reciprocal", whole)
            shape = rewriting.constant(f"{name} (shape)", torch.tensor(part.shape, dtype=torch.int64))
            rewriting.then(name, "Reshape", shape)
            del rewriting.constants[name]
        elif _is_read(part, parent, computed=name in provenance.derived):
            index = _index(part, parent)
            if index is None:
                continue
            _read(rewriting, name, whole, index)
        else:
            continue
        done.add(name)
    return rewriting.graph(), replace(
        provenance,
        learned=provenance.learned - done,
        derived={name: sources for name, sources in provenance.derived.items() if name not in done},
        names={name: parameter for name, parameter in provenance.names.items() if name not in done},
    )


def parts_in_place(graph: Graph, is_made_up: Callable[[str], bool]) -> tuple[Graph, dict[str, str]]:
    """Return the graph with parts of a constant read from it, and which constants they were parts of.

    Without a record, the elements alone tell: a part has an exporter's name, and elements at regular distances in the
    whole, and nowhere else.

    Args:
        graph: The graph.
        is_made_up: Tells the names that exporters make up for what they compute.
    """
    rewriting = Rewriting(graph)
    floating = dict(rewriting.candidates())
    parts = {
        name: part for name, part in floating.items() if is_made_up(name) and is_irregular(part, least=DIFFERENT + 1)
    }
    done: dict[str, str] = {}
    for name, whole in _hits(parts, floating):
        part, parent = parts[name], floating[whole]
        larger = parent.numel() > part.numel() or (parent.numel() == part.numel() and not is_made_up(whole))
        if name in done or name in done.values() or whole in done or not larger or part.dtype != parent.dtype:
            continue
        index = _index(part, parent, regular=True)
        if index is not None:
            _read(rewriting, name, whole, index)
            done[name] = whole
    return rewriting.graph(), done


def _hits(parts: Mapping[str, Tensor], wholes: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """Return the pairs of a part and another tensor that holds its element of largest size, in one pass over these."""
    largest = {name: float(part.reshape(-1)[part.reshape(-1).abs().argmax()]) for name, part in parts.items()}
    values = torch.tensor(sorted(set(largest.values())), dtype=torch.float64)
    for whole, tensor in wholes.items() if largest else ():
        found: set[float] = set()
        for chunk in tensor.reshape(-1).split(_CHUNK):
            place = torch.searchsorted(values, chunk.double()).clamp(max=len(values) - 1)
            found.update(values[place][values[place] == chunk].tolist())
        yield from ((name, whole) for name, value in largest.items() if value in found and name != whole)


def _read(rewriting: Rewriting, name: str, whole: str, index: Tensor) -> None:
    """Have a constant's elements read from another constant."""
    rewriting.make(name, "Reshape", whole, rewriting.constant(f"{name} (line)", torch.tensor([-1])))
    rewriting.then(name, "Gather", rewriting.constant(f"{name} (index)", index), axis=0)
    del rewriting.constants[name]


def _is_reciprocal(part: Tensor, whole: Tensor) -> bool:
    """Return whether a number is one divided by another, and not the other."""
    if part.dtype != whole.dtype or part.numel() != 1 or whole.numel() != 1:
        return False
    return bool((part.reshape(-1) == 1 / whole.reshape(-1)).all() and (part.reshape(-1) != whole.reshape(-1)).all())


def _is_read(part: Tensor, whole: Tensor, *, computed: bool) -> bool:
    """Return whether a tensor has enough different values to tell that its elements are a parameter's."""
    different = len(torch.unique(part))
    if not computed:
        return different >= min(DIFFERENT, whole.numel())
    return different >= DIFFERENT or (different > 1 and torch.equal(part.reshape(-1), whole.reshape(-1)))


def _wholes(graph: Graph, provenance: Provenance) -> dict[str, str]:
    """Return for each parameter the constant that holds most of it."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in provenance.learned:
        if name in graph.constants:
            found[provenance.names.get(name, name)].append(name)
    return {
        parameter: max(names, key=lambda name: (graph.constants[name].numel(), name == parameter, name))
        for parameter, names in found.items()
    }


def _descent(provenance: Provenance, wholes: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Constants that were folded, each with the constant that holds a parameter that it was folded from."""
    sources = {**{name: (parameter,) for name, parameter in provenance.names.items()}, **provenance.derived}
    for name, parameters in sources.items():
        for parameter in parameters:
            whole = wholes.get(parameter, name)
            if whole != name:
                yield name, whole


def _index(part: Tensor, whole: Tensor, *, regular: bool = False) -> Tensor | None:
    """Return which element of a tensor (in its order) each of another one is; None if that is not certain.

    Args:
        part: The tensor.
        whole: The other tensor.
        regular: True if only a view by strides counts.
    """
    if part.dtype != whole.dtype:
        return None
    wide = torch.float32 if part.dtype.itemsize < 4 else part.dtype
    elements, values = part.reshape(-1).to(wide), whole.reshape(-1).to(wide)
    ordered, order = values.sort()
    place = torch.searchsorted(ordered, elements).clamp(max=len(ordered) - 1)
    if not bool((ordered[place] == elements).all()):
        return None
    after = (place + 1).clamp(max=len(ordered) - 1)
    certain = ((after == place) | (ordered[after] != ordered[place])).reshape(part.shape)
    index = order[place].reshape(part.shape)
    return index if bool(certain.all()) and not regular else _strided(index, certain, part, whole.reshape(-1))


def _strided(index: Tensor, certain: Tensor, part: Tensor, values: Tensor) -> Tensor | None:
    """Return the index of a view by strides that some elements determine, if all elements agree with it."""
    if not bool(certain.any()):
        return None
    start = tuple(int(each) for each in certain.nonzero()[0])
    result = index[start].clone()
    for axis, size in enumerate(part.shape):
        if size == 1:
            continue
        pairs = certain.narrow(axis, 0, size - 1) & certain.narrow(axis, 1, size - 1)
        steps = index.diff(dim=axis)[pairs]
        if not len(steps):
            return None
        shape = [size if each == axis else 1 for each in range(part.ndim)]
        result = result + steps[0] * (torch.arange(size) - start[axis]).reshape(shape)
    result = result.broadcast_to(part.shape)
    if int(result.min()) < 0 or int(result.max()) >= len(values):
        return None
    return result.clone() if bool((values[result] == part).all()) else None
