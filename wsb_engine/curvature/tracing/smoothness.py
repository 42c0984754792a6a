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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wsb_engine.curvature.tracing.dispatch import OperatorWatch, running
from wsb_engine.curvature.tracing.forms import ANY, Form, Operands, extremes, is_same, one_of, result_form, terms
from wsb_engine.internals import memory_of, tree_leaves
from wsb_engine.model import Tensors

NEXT_TO_ZERO = 1e-5
"""Largest number that a guard of a norm compares it with."""
SHARP = 15.0
"""Threshold of a softplus below which its switch to the identity shows in single precision."""

_KINKED = frozenset(
    {
        *("abs", "angle", "ceil", "copysign", "floor", "fmod", "frac", "heaviside", "remainder", "round", "sgn"),
        *("sign", "signbit", "trunc", "floor_divide", "nextafter", "frexp", "renorm"),
        *("hardshrink", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "prelu_kernel", "rrelu_with_noise"),
        *("softshrink", "threshold", "amax", "amin", "aminmax", "cummax", "cummin", "fmax", "fmin", "max", "min"),
        *("kthvalue", "median", "mode", "msort", "nanmedian", "sort", "topk"),
        *("adaptive_max_pool2d", "adaptive_max_pool3d", "fractional_max_pool2d", "fractional_max_pool3d"),
        *("max_pool2d_with_indices", "max_pool3d_with_indices"),
        *("argmax", "argmin", "argsort", "bincount", "bucketize", "histc", "searchsorted", "unique", "unique2"),
        *("fake_quantize_per_channel_affine_cachemask", "fake_quantize_per_tensor_affine_cachemask"),
        *("quantize_per_channel", "quantize_per_tensor"),
    }
)
_COMPARISONS = frozenset({"eq", "ge", "gt", "le", "lt", "ne"})
_NORMS = {"cdist_forward": 2, "dist": 2, "linalg_vector_norm": 1, "norm": 1, "pdist_forward": 1}
"""Position of a norm's order among the arguments."""
_FINITE = frozenset({"isfinite", "isinf", "isnan", "isneginf", "isposinf"})
_FRESH = frozenset({"empty_like", "full_like", "ones_like", "rand_like", "randn_like", "zeros_like"})
"""Operators that look at the shape of a tensor only; so do ``new_zeros`` and the like."""
_NAMES = {"cdist_forward": "cdist", "pdist_forward": "pdist", "prelu_kernel": "prelu", "to_copy": "to"}
_READ = "local_scalar_dense"
"""What reads a number out of a tensor."""
_MAXIMUM = 2
"""Number of that mode of an embedding bag."""


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
    """Of memory that depends on a parameter."""

    names: frozenset[str]
    """Operators with a kink or a jump on the way from the parameters."""
    form: Form

    def beside(self, other: _Mark) -> _Mark:
        """Of memory parts of which have the other mark."""
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
                self._mark(tensor, made if before is None or _fillsmemory_of(tensor) else made.beside(before))

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


def _fillsmemory_of(tensor: Tensor) -> bool:
    return tensor.numel() * tensor.itemsize == tensor.untyped_storage().nbytes()


def _asks_for_finiteness(given: Operands) -> bool:
    """True for tests that have one result wherever the model is defined."""
    if given.name in _FINITE:
        return True
    if given.name not in _COMPARISONS:
        return False
    first, second = given.args[:2]
    if is_same(first, second):
        return True
    return any(not given.varies(each) and math.inf in map(abs, extremes(each)) for each in (first, second))


def has_kink(given: Operands, kwargs: Mapping[str, Any], results: list[Tensor]) -> bool:
    """True if an operator has a kink or a jump in those of its operands that depend on parameters."""
    name = given.name
    if name in _COMPARISONS:
        return _compares(given)
    if name in _LIMITS:
        return _limits(given)
    if name in _NORMS:
        return _is_kinked_norm(given, results[0])
    if name in ("pow", "rsqrt", "sqrt"):
        if name == "pow" and given.varies(given.at(0)) and given.exponents() is None:
            return bool(given.form(given.at(0)).degrees)
        return result_form(given, results[0]).has_kink
    if name in ("std", "std_mean"):  # of two elements: their distance
        return terms(given.at(0), results[0]) <= 2
    if name == "to_copy":  # whether it is 0 is a test for equality
        return not results[0].is_floating_point() and results[0].dtype != torch.bool
    return name in _KINKED or _has_kink_with(given, kwargs)


def _has_kink_with(given: Operands, kwargs: Mapping[str, Any]) -> bool:
    """True if an operator has a kink with these options."""
    name = given.name
    if name == "elu":
        alpha, _, input_scale = (given.at(position, 1) for position in (1, 2, 3))
        return bool(alpha * input_scale != 1)
    if name == "softplus":
        return bool(given.at(2, 20) < SHARP)
    if name == "div":
        return kwargs.get("rounding_mode") is not None
    if name == "logit":
        return given.at(1) is not None
    if name in ("index_reduce", "scatter_reduce", "segment_reduce"):
        options = (*given.args, *kwargs.values())
        return any(isinstance(option, str) and option.removeprefix("a") in ("max", "min") for option in options)
    if name == "embedding_bag":
        return bool(given.at(4, 0) == _MAXIMUM)
    if name in ("grid_sampler_2d", "grid_sampler_3d"):
        return given.varies(given.at(1))
    return False


def _compares(given: Operands) -> bool:
    first, second = given.args[:2]
    if given.varies(first) and given.varies(second):
        return True
    varying, fixed = (first, second) if given.varies(first) else (second, first)
    return given.name not in ("eq", "ne") and _reaches(given.form(varying), extremes(fixed)[1])


def _reaches(form: Form, limit: float) -> bool:
    """True if a value crosses a limit elsewhere than at its zeros, or so close to a norm's that it guards that."""
    if form.is_norm:
        return limit > NEXT_TO_ZERO
    return not form.nonnegative or limit > 0


def _limits(given: Operands) -> bool:
    """Of operators that set limits: whether these are reached."""
    value, low, high = _LIMITS[given.name](given)
    if given.varies(low) or given.varies(high):
        return True
    below = low is not None and extremes(low)[1] > -math.inf and _reaches(given.form(value), extremes(low)[1])
    return below or (high is not None and extremes(high)[0] < math.inf)


def _larger(given: Operands) -> tuple[Any, Any, Any]:
    first, second = given.args[:2]
    return (first, second, None) if given.varies(first) else (second, first, None)


def _smaller(given: Operands) -> tuple[Any, Any, Any]:
    first, second = given.args[:2]
    return (first, None, second) if given.varies(first) else (second, None, first)


_LIMITS: dict[str, Callable[[Operands], tuple[Any, Any, Any]]] = {
    "abs": lambda given: (given.at(0), 0.0, None),
    "clamp": lambda given: (given.at(0), given.at(1), given.at(2)),
    "clamp_max": lambda given: (given.at(0), None, given.at(1)),
    "clamp_min": lambda given: (given.at(0), given.at(1), None),
    "maximum": _larger,
    "minimum": _smaller,
    "relu": lambda given: (given.at(0), 0.0, None),
}
"""Operators that are the identity within limits → their value, and the lower and the upper limit."""


def _is_kinked_norm(given: Operands, result: Tensor) -> bool:
    order = given.at(_NORMS[given.name], 2)
    order = 2.0 if order is None else float(order)
    first = given.at(0)
    entries = first.shape[-1] if given.name in ("cdist_forward", "pdist_forward") else terms(first, result)
    if given.form(first).nonnegative and order == 1:
        return False
    return entries <= 1 or not 2 <= order < math.inf
