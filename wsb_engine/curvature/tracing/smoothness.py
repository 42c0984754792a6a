"""Which operators keep a model from being twice differentiable everywhere (mathematics.md, section 9).

One evaluation is watched operator by operator. What depends on the parameters is followed through tensors, together
with the operators on the way that have a kink or a jump in what depends on them: the logits then tell which of these
reach them. A slope that is continuous counts as smooth (ELU), and so does the norm of a vector of several elements.

Some tests of values are no jumps, because they have the same result almost everywhere: for NaN and infinity, and for
equality of a smooth function with a number, which guards a division. Limits next to 0 of the norms that they guard are
taken for part of the norm's singular point.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wsb_engine.curvature.tracing.dispatch import OperatorWatch, running
from wsb_engine.curvature.tracing.forms import ANY, Form, Operands, extremes, is_same, one_of, result_form
from wsb_engine.curvature.tracing.operators import COMPARISONS, has_kink
from wsb_engine.internals import memory_of, tree_leaves
from wsb_engine.model import Tensors

_FINITE = frozenset({"isfinite", "isinf", "isnan", "isneginf", "isposinf"})
_FRESH = frozenset({"empty_like", "full_like", "ones_like", "rand_like", "randn_like", "zeros_like"})
"""Operators that read only the shape of a tensor; so do ``new_zeros`` and the like."""
_NAMES = {"cdist_forward": "cdist", "pdist_forward": "pdist", "prelu_kernel": "prelu", "to_copy": "to"}
"""Names that users know, of operators that torch runs for them."""
_READ = "local_scalar_dense"
"""What reads a number out of a tensor."""


def nonsmooth_operators(
    function: Callable[[Tensors, Tensors], Tensor], parameters: Tensors, inputs: Tensors
) -> tuple[str, ...]:
    """Names of the operators with a kink or a jump through which the logits depend on the parameters, in order.

    Args:
        function: (parameters, inputs) → logits.
        parameters: Its tensors.
        inputs: Some samples.
    """
    # Tensors that require gradients, since without them torch runs whole layers as one operator.
    point = {name: tensor.detach().requires_grad_() for name, tensor in parameters.items()}
    follower = _Follower(point.values())
    with torch.enable_grad(), follower:
        logits = function(point, inputs)
    return follower.on_the_way_to(logits)


@dataclass(frozen=True)
class _Mark:
    """What is known of memory that depends on a parameter."""

    names: frozenset[str]
    """Operators with a kink or a jump on the way from the parameters."""
    form: Form

    def beside(self, other: _Mark) -> _Mark:
        """The mark of memory parts of which have the other mark."""
        return _Mark(self.names | other.names, one_of((self.form, other.form)))


class _Follower(OperatorWatch):
    """Marks the memory of tensors that depend on parameters.

    Args:
        parameters: Tensors to start from.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__()
        self._order: dict[str, None] = {}
        self._read: frozenset[str] = frozenset()
        """Operators on the way to numbers that the model's own code reads out of tensors."""
        self._marks: dict[int, _Mark] = {}
        self._kept: list[Tensor] = []
        """All marked tensors, so that no other one takes the place of their memory."""
        for tensor in parameters:
            self._mark(tensor, _Mark(frozenset(), ANY))

    def on_the_way_to(self, tensor: Tensor) -> tuple[str, ...]:
        mark = self._marks.get(memory_of(tensor))
        names = self._read if mark is None else self._read | mark.names
        return tuple(name for name in self._order if name in names)

    def ran(self, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        name = operator.__name__.strip("_")
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        marks = {tensor: self._marks[memory_of(tensor)] for tensor in given if memory_of(tensor) in self._marks}
        operands = Operands(name, args, self._form)
        if not marks or name in _FRESH or name.startswith("new_") or _asks_for_finiteness(operands):
            return
        names = frozenset[str]().union(*(mark.names for mark in marks.values()))
        results = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        floating = any(tensor.is_floating_point() for tensor in marks)
        if floating and (has_kink(operands, kwargs, results) or (name == "where" and self._switches(*args))):
            shown = running() or _NAMES.get(name, name)
            self._order[shown] = None
            names |= {shown}
        if name == _READ:
            self._read |= names
        if not names and not any(tensor.is_floating_point() for tensor in results):
            return  # the same almost everywhere
        writes = operator.__name__.endswith("_") or "out" in kwargs
        for index, tensor in enumerate(results):
            before = self._marks.get(memory_of(tensor))
            if before is None or writes:  # any other result in marked memory is a view
                known = index == 0 and tensor.is_floating_point() and kwargs.get("alpha", 1) >= 0
                made = _Mark(names, result_form(operands, tensor) if known else ANY)
                self._mark(tensor, made if before is None or _fills_memory(tensor) else made.beside(before))

    def _switches(self, condition: Tensor, *branches: Any) -> bool:
        """True if a jump decides between branches that do not have it themselves."""
        named, *others = (self._names(each) for each in (condition, *branches))
        return bool(named.difference(*others))

    def _names(self, value: Any) -> frozenset[str]:
        mark = self._marks.get(memory_of(value)) if isinstance(value, Tensor) else None
        return frozenset() if mark is None else mark.names

    def _mark(self, tensor: Tensor, mark: _Mark) -> None:
        self._kept.append(tensor)
        self._marks[memory_of(tensor)] = mark

    def _form(self, tensor: Tensor) -> Form | None:
        mark = self._marks.get(memory_of(tensor))
        return None if mark is None else mark.form


def _fills_memory(tensor: Tensor) -> bool:
    return tensor.numel() * tensor.itemsize == tensor.untyped_storage().nbytes()


def _asks_for_finiteness(given: Operands) -> bool:
    """True for tests that have one result wherever the model is defined."""
    if given.name in _FINITE:
        return True
    if given.name not in COMPARISONS:
        return False
    first, second = given.args[:2]
    if is_same(first, second):
        return True
    return any(not given.varies(each) and math.inf in map(abs, extremes(each)) for each in (first, second))
