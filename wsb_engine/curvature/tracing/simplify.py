"""A traced function of tensors with the same values and fewer passes over memory, without a compiler.

Repeated expressions are computed once, copies and sums that change nothing are dropped, and a product that is added to
a tensor is accumulated in that tensor if nothing else reads it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, TypeAlias

import torch
from torch import fx

from wsb_engine.curvature.tracing.record import FORM, TensorForm
from wsb_engine.internals import EFFICIENT_ZERO, TO_COPY, UNSAFE_VIEW, schema_of

aten = torch.ops.aten

Node: TypeAlias = Any
"""fx.Node, as Any because its arguments have no narrower type."""

_COPIES = {TO_COPY, aten.alias.default, aten.clone.default, aten.detach.default, aten.expand.default}
"""Copies of their first argument, possibly in another form."""
_ZEROS = {aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default, EFFICIENT_ZERO}
_LINEAR = _COPIES | {
    UNSAFE_VIEW, aten.neg.default, aten.permute.default, aten.t.default, aten.transpose.int,
    aten.unsqueeze.default, aten.view.default,
}  # fmt: skip
"""Linear in their first argument; the others are not tensors."""
_VIEWS = {
    UNSAFE_VIEW, aten.permute.default, aten.squeeze.dim, aten.t.default, aten.transpose.int,
    aten.unsqueeze.default, aten.view.default,
}  # fmt: skip
"""Views of their first argument's memory."""
_RESHAPES = {UNSAFE_VIEW, aten.view.default}
_BILINEAR = {aten.bmm.default, aten.convolution.default, aten.mm.default, aten.mul.Tensor}
"""Bilinear in their first two arguments if the third, a bias, is None."""
_IN_PLACE: dict[Any, Any] = {
    aten.add.Tensor: aten.add_.Tensor,
    aten.mul.Scalar: aten.mul_.Scalar,
    aten.mul.Tensor: aten.mul_.Tensor,
    aten.sub.Tensor: aten.sub_.Tensor,
}
_SYMMETRIC = {aten.add.Tensor, aten.mul.Tensor}
_ACCUMULATED: dict[Any, Any] = {
    aten.bmm.default: aten.baddbmm.out,
    aten.mm.default: aten.addmm.out,
    aten.mul.Tensor: aten.addcmul.out,
}
"""Products x·y, with the operators that compute z + x·y in place of z."""
_SLOPES = {
    aten.elu_backward.default, aten.gelu_backward.default, aten.hardswish_backward.default,
    aten.leaky_relu_backward.default, aten.sigmoid_backward.default,
    aten.silu_backward.default, aten.softplus_backward.default, aten.tanh_backward.default,
}  # fmt: skip
"""Operators that multiply their first argument by a function's slope at their only other tensor.

Operators that skip the multiplication where the slope is 0 are not among them: the first argument may be infinite
there, like the derivative of a root behind a dead unit.
"""
_FRESH = {
    *_ACCUMULATED, *_ACCUMULATED.values(), *_IN_PLACE, *_IN_PLACE.values(), aten.addmm.default,
    aten.avg_pool2d.default, aten.avg_pool2d_backward.default, aten.convolution.default, aten.div.Scalar,
    aten.div.Tensor, aten.gelu_backward.default, aten.mean.dim, aten.stack.default, aten.sum.dim_IntList,
    aten.tanh_backward.default, aten.threshold_backward.default,
}  # fmt: skip
"""Operators whose result is in new memory, or in that of an argument with no other reader."""


def multiply_by_slopes(graph: fx.Graph, free: int) -> None:
    """Make slopes of activations independent of the direction, so that they are evaluated once.

    Args:
        graph: Graph of a function of ``free`` arguments and others.
        free: Number of free arguments.
    """
    varying: set[Node] = set(graph.find_nodes(op="placeholder")[:free])
    for node in graph.nodes:
        if varying.isdisjoint(node.all_input_nodes):
            continue
        varying.add(node)
        if node.target not in _SLOPES:
            continue
        gradient, *others = node.args
        at = [other for other in others if isinstance(other, fx.Node)]
        if varying.isdisjoint(at) and _form(at[0]) == _form(node) is not None:
            with graph.inserting_before(node):
                one = graph.call_function(aten.ones_like.default, (at[0],))
                slope = graph.call_function(node.target, (one, *others), dict(node.kwargs))
            one.meta, slope.meta = dict(node.meta), dict(node.meta)
            node.target, node.args, node.kwargs = aten.mul.Tensor, (gradient, slope), {}


def zeros(nodes: Iterable[Node]) -> set[Node]:
    """Return the nodes of a graph that are 0 for all finite inputs.

    Args:
        nodes: All nodes in order; none may write in place.
    """
    found: set[Node] = set()
    for node in nodes:
        first, second, third = (*node.args, None, None, None)[:3]
        if (
            node.target in _ZEROS
            or (node.target in _LINEAR and first in found)
            or (node.target in _BILINEAR and third is None and (first in found or second in found))
            or (node.target is operator.getitem and _is_zero_gradient(first, second, found))
        ):
            found.add(node)
    return found


def _is_zero_gradient(node: Node, index: int, zero: set[Node]) -> bool:
    """Whether a convolution's gradient, for its inputs or its kernel, has a factor that is 0."""
    if node.target != aten.convolution_backward.default or index > 1:
        return False
    gradient, inputs, kernel = node.args[:3]
    return gradient in zero or (inputs if index else kernel) in zero


def simplify(graph: fx.Graph, zero: Iterable[Node] = ()) -> None:
    """Give a graph the same values with less work; it never writes to its arguments.

    Args:
        graph: A recorded graph without writes in place; changed.
        zero: Inputs that are always 0.
    """
    for node in graph.nodes:
        if node.target in _RESHAPES:
            _skip_reshapes(node)
        elif node.target == aten.copy.default:
            _copy_once(node)
    without_repetitions(graph, set(zero))
    without_unused(graph)
    for node in graph.find_nodes(op="call_function", target=aten.add.Tensor):
        _stack(node)
    for node in graph.find_nodes(op="call_function", target=aten.clone.default):
        _stack_as_copied(node)
    without_unused(graph)
    for node in graph.nodes:
        if node.target in _IN_PLACE and not node.kwargs and not _accumulate(node):
            _write_over(node)
    without_unused(graph)


def without_repetitions(graph: fx.Graph, zero: Collection[Node] = ()) -> None:
    """Compute repeated expressions once and leave identities out; arguments as for ``simplify``."""
    first: dict[Any, Node] = {}
    for node in graph.nodes:
        for source in _same_values(node, zero):
            if _form(source) == _form(node) is not None:
                node.replace_all_uses_with(source)
                break
        else:
            same = first.setdefault(_expression(node), node)
            if same is not node:
                node.replace_all_uses_with(same)


def without_unused(graph: fx.Graph, is_needed: Callable[[Node], bool] = lambda node: False) -> None:
    """Leave out what nothing reads, except for arguments and writes.

    Args:
        graph: The graph; changed.
        is_needed: Returns True for what has to stay.
    """
    for node in reversed(graph.nodes):
        if node.users or node.op in ("placeholder", "output") or is_needed(node):
            continue
        schema = schema_of(node.target)
        if schema is None or not schema.is_mutable:
            graph.erase_node(node)


def _expression(node: Node) -> Any:
    """Return what two nodes have in common that compute the same; the node itself if it is unlike any other."""
    schema = schema_of(node.target)
    is_known = schema is not None or node.target is operator.getitem
    if node.op != "call_function" or not is_known or (schema is not None and schema.is_mutable):
        return node
    if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
        return node
    return node.target, _hashable(node.args), _hashable(node.kwargs)


def _hashable(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return tuple(map(_hashable, value))
    if isinstance(value, dict):
        return tuple((name, _hashable(each)) for name, each in sorted(value.items()))
    # 1, 1.0 and True are equal, but do not compute the same; nor do 0.0 and -0.0.
    return value if isinstance(value, fx.Node) else (type(value), repr(value))


def _same_values(node: Node, zero: Collection[Node]) -> Iterator[Node]:
    if node.target in _COPIES:
        yield node.args[0]
    elif node.target == aten.copy.default:
        yield node.args[1]
    elif node.target == aten.add.Tensor and not node.kwargs:
        first, second = node.args
        if second in zero:
            yield first
        if first in zero:
            yield second
    while node.target in _VIEWS:
        node = node.args[0]
        yield node


def _form(node: Node) -> TensorForm | None:
    """Return the properties that two tensors must share to be interchangeable; None for what is no tensor."""
    form: TensorForm | None = node.meta.get(FORM) if isinstance(node, fx.Node) else None
    return form


def _type(node: Node) -> tuple[Any, ...] | None:
    form = _form(node)
    return None if form is None else (form.dtype, form.device)


def _is_spent(node: Node, reader: Node) -> bool:
    """Whether ``reader`` alone reads the node's result, and nothing else shares its memory."""
    if not isinstance(node, fx.Node) or list(node.users) != [reader]:
        return False
    return node.target in _FRESH or (node.target in _VIEWS and _is_spent(node.args[0], node))


def _skip_reshapes(node: Node) -> None:
    """Take a view of a view of contiguous memory from that memory."""
    source, size = node.args
    while source.target in _RESHAPES and _is_contiguous(source.args[0]):
        source = source.args[0]
    node.args = (source, size)


def _copy_once(node: Node) -> None:
    """Replace a copy over new memory, which is filled first, by a copy."""
    source = node.args[1]
    if not node.kwargs and _is_contiguous(node) and _type(source) == _type(node) and _shape(source) == _shape(node):
        _replace(node, aten.clone.default, (source,), {"memory_format": torch.contiguous_format})


def _shape(node: Node) -> tuple[int, ...] | None:
    form = _form(node)
    return None if form is None else form.shape


def _is_contiguous(node: Node) -> bool:
    form = _form(node)
    return form is not None and form.is_contiguous


def _stack(node: Node) -> None:
    """Replace a sum of tensors that are 0 except for one slice each by a stack of the slices."""
    terms = list(_terms(node))
    if any(term.target != aten.select_backward.default for term in terms):
        return
    slices = {index: (part, dim, size) for part, size, dim, index in (term.args for term in terms)}
    _, dim, size = next(iter(slices.values()))
    if len(slices) == len(terms) == size[dim] and all(tuple(same) == (dim, size) for _, *same in slices.values()):
        _replace(node, aten.stack.default, ([slices[index][0] for index in range(size[dim])], dim), {})


def _stack_as_copied(node: Node) -> None:
    """Replace a copy of a stack that only moves the stacked dimension by a stack in that place."""
    source = node.args[0]
    while source.target in _VIEWS:
        source = source.args[0]
    stacked, wanted, copied = _form(source), _form(node.args[0]), _form(node)
    if source.target != aten.stack.default or stacked is None or wanted is None or copied is None:
        return
    parts, dim = (*source.args, 0)[:2]
    for place in range(len(stacked.shape)):
        moved = [_moved(each, dim, place) for each in (stacked.shape, stacked.stride)]
        if moved == [wanted.shape, wanted.stride] and copied.is_contiguous:
            _replace(node, aten.stack.default, (parts, place), {})
            return


def _moved(sizes: tuple[int, ...], dim: int, place: int) -> tuple[int, ...]:
    """Move an axis, which may be counted from the end."""
    left = list(sizes)
    left.insert(place, left.pop(dim))
    return tuple(left)


def _terms(node: Node) -> Iterator[Node]:
    """Yield the terms of a sum."""
    for part in node.args:
        if isinstance(part, fx.Node) and part.target == aten.add.Tensor and not part.kwargs:
            yield from _terms(part)
        elif isinstance(part, fx.Node):
            yield part


def _accumulate(node: Node) -> bool:
    """Accumulate a product in the tensor it is added to; return whether the node was such a sum."""
    if node.target != aten.add.Tensor:
        return False
    first, second = node.args
    orders = [(first, second), (second, first)]
    for total, product in sorted(orders, key=lambda order: not _is_spent(order[0], node)):
        if not _is_spent(product, node) or product.target not in _ACCUMULATED or _form(product) != _form(node):
            continue
        if any(_type(factor) != _type(node) for factor in (total, *product.args)):
            continue
        if _is_spent(total, node) and _form(total) == _form(node):
            _replace(node, _ACCUMULATED[product.target], (total, *product.args), {"out": total})
            return True
        if product.target == aten.mm.default:
            # Also adds a bias to each row.
            _replace(node, aten.addmm.default, (total, *product.args), {})
            return True
    return False


def _write_over(node: Node) -> None:
    """Write the result over an argument that is read for the last time."""
    first, second = node.args
    for source, other in [(first, second), (second, first)][: 2 if node.target in _SYMMETRIC else 1]:
        if _is_spent(source, node) and _form(source) == _form(node) is not None:
            _replace(node, _IN_PLACE[node.target], (source, other), {})
            return


def _replace(node: Node, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    with node.graph.inserting_before(node):
        other = node.graph.call_function(target, args, kwargs)
    other.meta = dict(node.meta)
    node.replace_all_uses_with(other)
    node.graph.erase_node(node)
