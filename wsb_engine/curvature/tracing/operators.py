"""One table of operators: whether each has a kink or a jump, and whether it is an activation.

Operators of ``aten`` are listed here by the name that torch runs them under, without underscores at its ends. An
operator that is not listed is smooth and no activation. ONNX operators enter the table with their kernels; whether they
are smooth follows from the operators that their kernels run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wsb_engine.curvature.tracing.forms import Form, Operands, extremes, result_form, terms

NEXT_TO_ZERO = 1e-5
"""Largest number that a guard of a norm compares it with."""
SHARP = 15.0
"""Threshold of a softplus below which its switch to the identity shows in single precision."""
COMPARISONS = frozenset({"eq", "ge", "gt", "le", "lt", "ne"})
_MAXIMUM = 2
"""Number of that mode of an embedding bag."""

Kink = Callable[[Operands, Mapping[str, Any], list[Tensor]], bool]
"""(operands, options, results) → True if an operator has a kink in those operands that depend on parameters."""


def _never(given: Operands, options: Mapping[str, Any], results: list[Tensor]) -> bool:
    return False


def _always(given: Operands, options: Mapping[str, Any], results: list[Tensor]) -> bool:
    return True


@dataclass(frozen=True)
class Traits:
    """What the table says of an operator."""

    kink: Kink = _never
    activation: bool = False
    """True if a report names it as a nonlinearity of the network."""
    elementwise: bool = False
    """True if an activation may be written with it; known of ONNX operators only."""


_PLAIN = Traits()
_TABLE: dict[str, Traits] = {}


def enter(*names: str, kink: Kink = _never, activation: bool = False, elementwise: bool = False) -> None:
    """Enter operators in the table."""
    _TABLE.update(dict.fromkeys(names, Traits(kink, activation, elementwise)))


def traits(name: str) -> Traits:
    """What the table says of an operator; one that is not in it is smooth and no activation."""
    return _TABLE.get(name, _PLAIN)


def activation_named(name: str) -> str | None:
    """Return the activation of this name, whatever its case and underscores: ``LeakyReLU`` → ``leaky_relu``."""
    return _SPELLINGS.get(name.lower().replace("_", ""))


def has_kink(given: Operands, options: Mapping[str, Any], results: list[Tensor]) -> bool:
    """True if an operator has a kink or a jump in those of its operands that depend on parameters."""
    return traits(given.name).kink(given, options, results)


def _compares(given: Operands, options: Mapping[str, Any], results: list[Tensor]) -> bool:
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


_Bounds = tuple[Any, Any, Any]
"""A value, and the lower and the upper bound between which an operator leaves it as it is."""


def _clamps(bounds: Callable[[Operands], _Bounds]) -> Kink:
    """Return the rule of an operator that has a kink where a value reaches a bound."""

    def kink(given: Operands, options: Mapping[str, Any], results: list[Tensor]) -> bool:
        value, low, high = bounds(given)
        if given.varies(low) or given.varies(high):
            return True
        below = low is not None and extremes(low)[1] > -math.inf and _reaches(given.form(value), extremes(low)[1])
        return below or (high is not None and extremes(high)[0] < math.inf)

    return kink


def _larger(given: Operands) -> _Bounds:
    first, second = given.args[:2]
    return (first, second, None) if given.varies(first) else (second, first, None)


def _smaller(given: Operands) -> _Bounds:
    first, second = given.args[:2]
    return (first, None, second) if given.varies(first) else (second, None, first)


def _norm(position: int) -> Kink:
    """Return the rule of a norm whose order is the argument at this position."""

    def kink(given: Operands, options: Mapping[str, Any], results: list[Tensor]) -> bool:
        order = given.at(position, 2)
        order = 2.0 if order is None else float(order)
        first = given.at(0)
        pairs = given.name in ("cdist_forward", "pdist_forward")
        entries = first.shape[-1] if pairs else terms(first, results[0])
        if given.form(first).nonnegative and order == 1:
            return False
        return entries <= 1 or not 2 <= order < math.inf

    return kink


def _power(given: Operands, options: Mapping[str, Any], results: list[Tensor]) -> bool:
    if given.name == "pow" and given.varies(given.at(0)) and given.exponents() is None:
        return bool(given.form(given.at(0)).degrees)
    return result_form(given, results[0]).has_kink


def _elu(given: Operands, options: Mapping[str, Any], results: list[Tensor]) -> bool:
    alpha, _, input_scale = (given.at(position, 1) for position in (1, 2, 3))
    return bool(alpha * input_scale != 1)


def _scatter(given: Operands, options: Mapping[str, Any], results: list[Tensor]) -> bool:
    words = (*given.args, *options.values())
    return any(isinstance(word, str) and word.removeprefix("a") in ("max", "min") for word in words)


enter("celu", "gelu", "glu", "log_sigmoid", "mish", "sigmoid", "silu", "softmax", "softsign", "tanh", activation=True)
enter("scaled_dot_product_attention", activation=True)
# Layers and their single steps, by the names of their classes and of the functions that these call.
enter("gru", "lstm", "multihead_attention", "rnn", "rnn_relu", "rnn_tanh", activation=True)
enter("gru_cell", "lstm_cell", "rnn_cell", "rnn_relu_cell", "rnn_tanh_cell", activation=True)
enter("hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "prelu", "relu6", kink=_always, activation=True)
enter("rrelu", "selu", kink=_always, activation=True)
enter("relu", kink=_clamps(lambda given: (given.at(0), 0.0, None)), activation=True)
enter("elu", kink=_elu, activation=True)
enter("softplus", kink=lambda given, options, results: bool(given.at(2, 20) < SHARP), activation=True)
enter("hardshrink", "prelu_kernel", "rrelu_with_noise", "softshrink", "threshold", kink=_always)
enter("angle", "ceil", "copysign", "floor", "fmod", "frac", "heaviside", "remainder", "round", "sgn", kink=_always)
enter("sign", "signbit", "trunc", "floor_divide", "nextafter", "frexp", "renorm", kink=_always)
enter("amax", "amin", "aminmax", "cummax", "cummin", "fmax", "fmin", "max", "min", kink=_always)
enter("kthvalue", "median", "mode", "msort", "nanmedian", "sort", "topk", kink=_always)
enter("adaptive_max_pool2d", "adaptive_max_pool3d", "fractional_max_pool2d", "fractional_max_pool3d", kink=_always)
enter("max_pool2d_with_indices", "max_pool3d_with_indices", kink=_always)
enter("argmax", "argmin", "argsort", "bincount", "bucketize", "histc", "searchsorted", "unique", kink=_always)
enter("unique2", "quantize_per_channel", "quantize_per_tensor", kink=_always)
enter("fake_quantize_per_channel_affine_cachemask", "fake_quantize_per_tensor_affine_cachemask", kink=_always)
enter(*COMPARISONS, kink=_compares)
enter("abs", kink=_clamps(lambda given: (given.at(0), 0.0, None)))
enter("clamp", kink=_clamps(lambda given: (given.at(0), given.at(1), given.at(2))))
enter("clamp_max", kink=_clamps(lambda given: (given.at(0), None, given.at(1))))
enter("clamp_min", kink=_clamps(lambda given: (given.at(0), given.at(1), None)))
enter("maximum", kink=_clamps(_larger))
enter("minimum", kink=_clamps(_smaller))
enter("linalg_vector_norm", "norm", "pdist_forward", kink=_norm(1))
enter("cdist_forward", "dist", kink=_norm(2))
enter("pow", "rsqrt", "sqrt", kink=_power)
enter("std", "std_mean", kink=lambda given, options, results: terms(given.at(0), results[0]) <= 2)  # a distance
enter("div", kink=lambda given, options, results: options.get("rounding_mode") is not None)
enter("logit", kink=lambda given, options, results: given.at(1) is not None)
enter("index_reduce", "scatter_reduce", "segment_reduce", kink=_scatter)
enter("embedding_bag", kink=lambda given, options, results: bool(given.at(4, 0) == _MAXIMUM))
enter("grid_sampler_2d", "grid_sampler_3d", kink=lambda given, options, results: given.varies(given.at(1)))
enter(  # whether an integer is 0 is a test for equality
    "to_copy",
    kink=lambda given, options, results: not (results[0].is_floating_point() or results[0].dtype == torch.bool),
)
_SPELLINGS = {name.replace("_", ""): name for name, each in _TABLE.items() if each.activation}
