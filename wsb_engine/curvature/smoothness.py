"""Which operators a function runs that are not differentiable everywhere (mathematics.md, section 9)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from wsb_engine.classifier import Tensors
from wsb_engine.curvature.watching import OperatorWatch

_NONSMOOTH = frozenset(
    {
        *("abs", "sgn", "sign", "ceil", "floor", "frac", "round", "trunc"),
        *("clamp", "clamp_max", "clamp_min", "threshold", "hardtanh", "hardsigmoid", "hardswish"),
        *("relu", "relu6", "leaky_relu", "prelu", "rrelu_with_noise", "hardshrink", "softshrink"),
        *("amax", "amin", "fmax", "fmin", "max", "maximum", "min", "minimum"),
        *("kthvalue", "median", "mode", "sort", "topk"),
        *("max_pool2d_with_indices", "max_pool3d_with_indices", "adaptive_max_pool2d", "adaptive_max_pool3d"),
        *("fractional_max_pool2d", "fractional_max_pool3d"),
    }
)


class _Recorder(OperatorWatch):
    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, None] = {}

    def ran(self, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        name = operator.__name__.rstrip("_")
        # elu(x, alpha, scale): the slope jumps at 0 unless alpha is 1 (selu is elu with another alpha).
        kinked = name == "elu" and len(args) > 1 and args[1] != 1
        floating = any(isinstance(value, Tensor) and value.is_floating_point() for value in args)
        if floating and (kinked or name in _NONSMOOTH):
            self.seen[name] = None


def nonsmooth_operators(
    function: Callable[[Tensors, Tensors], Tensor], parameters: Tensors, inputs: Tensors
) -> list[str]:
    """Names of the operators without second derivative everywhere that one evaluation runs, in order."""
    with torch.no_grad(), _Recorder() as recorder:
        function(parameters, inputs)
    return list(recorder.seen)
