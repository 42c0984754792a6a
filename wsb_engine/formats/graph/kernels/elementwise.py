"""Elementwise functions that torch implements without a second derivative, without a finite one, or less accurately."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from wsb_engine.formats.graph.kernels.normalization import by_channel

SURE = 15.0
"""Above this threshold softplus and the identity differ by less than float32 can tell (e⁻¹⁵ = 3e-7, relative 2e-8)."""


def activation(function: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """Return a function that takes torch's option ``inplace``, and then changes its argument."""

    def run(x: Tensor, inplace: bool = False) -> Tensor:
        return x.copy_(function(x.clone())) if inplace else function(x)

    return run


def softplus(x: Tensor, beta: float = 1.0) -> Tensor:
    """log(1 + e^(βx))/β: beyond 40 the identity is exact in float64; torch's own threshold of 20 is off by 2e-9."""
    return functional.softplus(x, beta, threshold=40.0)


def mish(x: Tensor) -> Tensor:
    """x tanh(softplus(x)); the second derivative of torch's own is NaN beyond 709, where e^x overflows."""
    return x * torch.tanh(softplus(x))


def logaddexp(x: Tensor, y: Tensor) -> Tensor:
    """log(e^x + e^y); the second derivative of torch's own is NaN where x and y differ by more than 709."""
    return torch.logsumexp(torch.stack(torch.broadcast_tensors(x, y)), 0)


def hard_sigmoid(x: Tensor) -> Tensor:
    """x/6 + 1/2 between 0 and 1."""
    return torch.clamp(x / 6 + 0.5, 0, 1)


def hard_swish(x: Tensor) -> Tensor:
    """x times its hard sigmoid."""
    return x * hard_sigmoid(x)


def heaviside(x: Tensor, at_zero: Tensor) -> Tensor:
    """0 below zero, 1 above; torch's own has no derivative."""
    return torch.where(x == 0, at_zero, (x > 0).to(x.dtype))


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """x above zero, slope · x below; one slope, or one for each channel of x, (N, C, …)."""
    if slope.numel() == 1:
        slope = slope.reshape([1] * x.ndim)
    elif x.ndim > 1:
        slope = by_channel(slope, x)
    return torch.where(x > 0, x, slope * x)
