"""Activation functions; decomposed ones are recognised in mlp.py."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from wsb_engine.formats.graph.conventions import GUARDED
from wsb_engine.formats.graph.kernels import elementwise
from wsb_engine.formats.graph.operators.registry import Call, operator
from wsb_engine.formats.graph.plan import without_call

for _name, _function in {
    "HardSwish": elementwise.hard_swish,
    "Mish": elementwise.mish,
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Softplus": elementwise.softplus,
    "Softsign": functional.softsign,
    "Tanh": torch.tanh,
}.items():
    operator(_name, activation=True, elementwise=True)(without_call(_function))


@operator("Gelu", activation=True, elementwise=True)
def gelu(call: Call, x: Tensor) -> Tensor:
    return functional.gelu(x, approximate=call.get("approximate", "none"))


@operator("Swish", activation=True, elementwise=True)
def swish(call: Call, x: Tensor) -> Tensor:
    return x * torch.sigmoid(call.get("alpha", 1.0) * x)


@operator("SwiGLU", activation=True, elementwise=True)
def swiglu(call: Call, gate: Tensor, x: Tensor) -> Tensor:
    return swish(call, gate) * x


@operator("Elu", activation=True, elementwise=True)
def elu(call: Call, x: Tensor) -> Tensor:
    return functional.elu(x, alpha=call.get("alpha", 1.0))


@operator("Celu", activation=True, elementwise=True)
def celu(call: Call, x: Tensor) -> Tensor:
    return functional.celu(x, alpha=call.get("alpha", 1.0))


@operator("Selu", activation=True, elementwise=True)
def selu(call: Call, x: Tensor) -> Tensor:
    alpha, gamma = call.get("alpha", 1.67326319217681884765625), call.get("gamma", 1.05070102214813232421875)
    return gamma * functional.elu(x, alpha=alpha)


@operator("LeakyRelu", activation=True, elementwise=True)
def leaky_relu(call: Call, x: Tensor) -> Tensor:
    return functional.leaky_relu(x, call.get("alpha", 0.01))


@operator("PRelu", activation=True, elementwise=True)
def prelu(call: Call, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x > 0, x, slope * x)


@operator("ThresholdedRelu", activation=True, elementwise=True)
def thresholded_relu(call: Call, x: Tensor) -> Tensor:
    return torch.where(x > call.get("alpha", 1.0), x, torch.zeros_like(x))


@operator("Shrink", activation=True, elementwise=True)
def shrink(call: Call, x: Tensor) -> Tensor:
    threshold, bias = call.get("lambd", 0.5), call.get("bias", 0.0)
    low, high = x + bias, x - bias
    return torch.where(x < -threshold, low, torch.where(x > threshold, high, torch.zeros_like(x))).to(x.dtype)


@operator("HardSigmoid", activation=True, elementwise=True)
def hard_sigmoid(call: Call, x: Tensor) -> Tensor:
    return torch.clamp(call.get("alpha", 0.2) * x + call.get("beta", 0.5), 0.0, 1.0)


@operator("Softmax", activation=True)
def softmax(call: Call, x: Tensor) -> Tensor:
    return _over_axis(call, x, _guarded_softmax if call.get(GUARDED, 0) else torch.softmax)


def _guarded_softmax(x: Tensor, dim: int) -> Tensor:
    """NaN, of slope 0, where all are −∞."""
    blind = torch.isneginf(x).all(dim=dim, keepdim=True)
    weights = torch.softmax(torch.where(blind, torch.zeros_like(x), x), dim)
    return torch.where(blind, torch.full_like(x, math.nan), weights)


def _over_axis(call: Call, x: Tensor, function: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Before opset 13 the function runs over all axes from ``axis`` on, as one."""
    if call.version >= 13:
        return function(x, call.get("axis", -1))
    axis = call.get("axis", 1)
    axis += x.ndim if axis < 0 else 0
    rows = x.reshape(*x.shape[:axis], -1)
    return function(rows, -1).reshape(x.shape)


def _first_maximum(x: Tensor, dim: int) -> Tensor:
    best = torch.argmax(x, dim=dim)
    return functional.one_hot(best, x.shape[dim]).movedim(-1, dim).to(x.dtype)


operator("LogSoftmax")(lambda call, x: _over_axis(call, x, torch.log_softmax))
operator("Hardmax")(lambda call, x: _over_axis(call, x, _first_maximum))
