"""Which operators a function runs that are not differentiable everywhere (mathematics.md, section 9)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from wsb_engine.classifier import Tensors
from wsb_engine.curvature.watching import OperatorWatch

_KINKED = frozenset(
    {
        *("abs", "sgn", "sign", "ceil", "floor", "frac", "round", "trunc", "copysign", "heaviside"),
        *("clamp", "clamp_max", "clamp_min", "threshold", "hardtanh", "hardsigmoid", "hardswish"),
        *("relu", "relu6", "leaky_relu", "prelu", "_prelu_kernel", "rrelu_with_noise", "hardshrink", "softshrink"),
        *("amax", "amin", "aminmax", "fmax", "fmin", "max", "maximum", "min", "minimum", "cummax", "cummin"),
        *("kthvalue", "median", "nanmedian", "mode", "sort", "msort", "topk", "fmod", "remainder", "floor_divide"),
        *("max_pool2d_with_indices", "max_pool3d_with_indices", "adaptive_max_pool2d", "adaptive_max_pool3d"),
        *("fractional_max_pool2d", "fractional_max_pool3d", "linalg_vector_norm", "norm", "_cdist_forward", "dist"),
    }
)
_JUMPS = frozenset(
    {
        *("ge", "gt", "le", "lt", "argmax", "argmin", "argsort", "bucketize", "searchsorted", "histc"),
        *("logical_and", "logical_not", "logical_or", "logical_xor", "nonzero", "signbit"),
    }
)
"""Steps: smooth where they are, and jumping between."""
_GUARDS = frozenset({"eq", "ne"})
"""Tests that hold, or fail, for one number alone if they compare with one."""
_SUMS = frozenset(
    {"sum", "mean", "view", "_unsafe_view", "reshape", "squeeze", "unsqueeze", "expand", "clone", "alias"}
)
"""Operators that leave a root of squares a norm."""


class _Recorder(OperatorWatch):
    """Follows what depends on the parameters, and by way of which operators.

    Args:
        parameters: Tensors to start from.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__()
        self._kept: list[Tensor] = []
        self._reached: dict[int, dict[str, None]] = {}
        self._squares: set[int] = set()
        for tensor in parameters:
            self._mark(tensor, {})

    def through(self, tensor: Tensor) -> dict[str, None]:
        """Names of the operators between the parameters and a tensor, in order."""
        return self._reached.get(_storage(tensor), {})

    def ran(self, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        trained = [tensor for tensor in given if _storage(tensor) in self._reached]
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        name = operator.__name__.rstrip("_") if operator.__name__ != "_prelu_kernel" else "prelu"
        if not trained:
            return
        names = {each: None for tensor in trained for each in self.through(tensor)}
        if any(tensor.is_floating_point() for tensor in trained) and self._is_kinked(name, args, made):
            names[name] = None
        if self._keeps_squares(name, args):
            self._squares.update(map(id, made))
        for tensor in made:
            self._mark(tensor, names)

    def _mark(self, tensor: Tensor, names: dict[str, None]) -> None:
        self._kept.append(tensor)  # so that no other tensor takes its place in memory
        self._reached[_storage(tensor)] = {**self._reached.get(_storage(tensor), {}), **names}

    def _is_kinked(self, name: str, args: tuple[Any, ...], made: list[Tensor]) -> bool:
        if name == "elu":
            # elu(x, alpha, scale): the slope jumps at 0 unless alpha is 1 (selu is elu with another alpha).
            return len(args) > 1 and bool(args[1] != 1)
        if name in _GUARDS:
            return isinstance(args[1], Tensor)
        if name in ("to", "_to_copy"):
            return not made[0].is_floating_point()
        if name in ("sqrt", "rsqrt") or (name == "pow" and isinstance(args[1], float) and args[1] % 1 != 0):
            return id(args[0]) in self._squares
        return name in _KINKED or name in _JUMPS

    def _keeps_squares(self, name: str, args: tuple[Any, ...]) -> bool:
        """True if the result is a sum of squares, which may be 0 where its root has a kink."""
        if name in ("abs", "square"):
            return True
        if name == "pow":
            return isinstance(args[1], (int, float)) and args[1] > 0 and args[1] % 2 == 0
        if name in ("mul", "div") and len(args) > 1:
            if args[0] is args[1]:
                return name == "mul"
            trained = [each for each in args[:2] if isinstance(each, Tensor) and _storage(each) in self._reached]
            return all(id(each) in self._squares for each in trained)
        return name in _SUMS and id(args[0]) in self._squares


def _storage(tensor: Tensor) -> int:
    """What a tensor shares with its views."""
    return tensor.untyped_storage().data_ptr()


def nonsmooth_operators(
    function: Callable[[Tensors, Tensors], Tensor], parameters: Tensors, inputs: Tensors
) -> list[str]:
    """Names of operators without second derivative everywhere through which one evaluation depends on its parameters.

    Args:
        function: (parameters, inputs) → logits.
        parameters: Its tensors.
        inputs: Some samples.
    """
    with torch.no_grad(), _Recorder(parameters.values()) as recorder:
        logits = function(parameters, inputs)
    return list(recorder.through(logits))
