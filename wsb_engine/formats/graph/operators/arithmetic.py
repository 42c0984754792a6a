"""Elementwise arithmetic, comparison, logic and elementary functions, with ONNX's broadcasting (numpy's)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from wsb_engine.formats.graph.conventions import GUARDED, NORM
from wsb_engine.formats.graph.kernels.norms import root
from wsb_engine.formats.graph.operators.registry import Call, Kernel, operator
from wsb_engine.formats.graph.plan import without_call

_SAME_NAME = (
    *("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Cos", "Cosh", "Erf", "Exp", "Floor", "IsNaN"),
    *("Log", "Neg", "Reciprocal", "Round", "Sign", "Sin", "Sinh", "Tan"),
)
"""Operators whose function in torch has their name; both round halves to even."""
_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    **{name: getattr(torch, name.lower()) for name in _SAME_NAME},
    "BitwiseNot": torch.bitwise_not,
    # No operator of ONNX, but what tf2onnx writes for the GELU of Keras.
    "Erfc": torch.erfc,
    "Not": torch.logical_not,
}
_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add,
    "And": torch.logical_and,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Mul": torch.mul,
    "Or": torch.logical_or,
    "Sub": torch.sub,
    "Xor": torch.logical_xor,
}


_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)


def _signed(kernel: Kernel) -> Kernel:
    """Let a kernel take the unsigned types that torch can't compute with: in int64, which is exact below 2⁶³."""

    @functools.wraps(kernel)
    def exact(call: Call, *arguments: Tensor | None) -> Tensor:
        dtypes = {a.dtype for a in arguments if a is not None and a.dtype in _UNSIGNED}
        if not dtypes:
            return kernel(call, *arguments)  # type: ignore[no-any-return]
        made: Tensor = kernel(
            call, *(a.to(torch.int64) if a is not None and a.dtype in _UNSIGNED else a for a in arguments)
        )
        return made.to(dtypes.pop()) if made.dtype == torch.int64 else made

    return exact


_SMOOTH = ("Add", "Erf", "Erfc", "Exp", "Log", "Mul", "Neg", "Reciprocal", "Sub")
"""Operators with which exporters write activations."""
# Erf and Erfc stand for a GELU that is written out.
for _name, _function in (_UNARY | _BINARY).items():
    operator(_name, activation=_name in ("Erf", "Erfc"), elementwise=_name in _SMOOTH)(_signed(without_call(_function)))


@operator("Div", elementwise=True)
@_signed
def div(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Integers divide towards zero."""
    if not a.is_floating_point() and not b.is_floating_point():
        return torch.div(a, b, rounding_mode="trunc")
    if not call.get(GUARDED, 0):
        return torch.div(a, b)
    neither = (a == 0) & (b == 0)
    quotient = a / torch.where(neither, torch.ones_like(b), b)
    return torch.where(neither, torch.full_like(quotient, math.nan), quotient)


@operator("Sqrt", elementwise=True)
def square_root(call: Call, x: Tensor) -> Tensor:
    return root(x, 0.5) if call.get(NORM, 0) else torch.sqrt(x)


@operator("Pow", elementwise=True)
def power(call: Call, base: Tensor, exponent: Tensor) -> Tensor:
    """Raise to a power; the result has the base's type."""
    return (root(base, exponent) if call.get(NORM, 0) else torch.pow(base, exponent)).to(base.dtype)


@operator("Mod")
@_signed
def mod(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """fmod = 1 takes the sign of the dividend, otherwise of the divisor."""
    return torch.fmod(a, b) if call.get("fmod", 0) else torch.remainder(a, b)


@operator("IsInf")
def is_inf(call: Call, x: Tensor) -> Tensor:
    positive = torch.isposinf(x) if call.get("detect_positive", 1) else torch.zeros_like(x, dtype=torch.bool)
    negative = torch.isneginf(x) if call.get("detect_negative", 1) else torch.zeros_like(x, dtype=torch.bool)
    return positive | negative


@operator("BitShift")
@_signed
def bit_shift(call: Call, a: Tensor, b: Tensor) -> Tensor:
    direction = call.get("direction", "")
    if direction not in ("LEFT", "RIGHT"):
        raise call.wrong(f"direction {direction!r} is neither LEFT nor RIGHT")
    return torch.bitwise_left_shift(a, b) if direction == "LEFT" else torch.bitwise_right_shift(a, b)


@operator("Clip")
@_signed
def clip(call: Call, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Bounds are attributes before opset 11, inputs since."""
    if call.version < 11:
        bounds = (call.get("min", -math.inf), call.get("max", math.inf))
        return torch.clamp(x, *bounds)
    # clamp has the derivative 1 at its limits, where maximum and minimum share it out.
    return x if low is None and high is None else torch.clamp(x, low, high)


def _folded(function: Callable[[Tensor, Tensor], Tensor]) -> Kernel:
    """Make a kernel for any number of inputs of a function of two."""
    return without_call(lambda *values: functools.reduce(function, values))


operator("Sum", elementwise=True)(_folded(torch.add))
operator("Max")(_signed(_folded(torch.maximum)))
operator("Min")(_signed(_folded(torch.minimum)))


@operator("Mean")
def mean(call: Call, *values: Tensor) -> Tensor:
    return functools.reduce(torch.add, values) / len(values)


operator("Where")(without_call(torch.where))
