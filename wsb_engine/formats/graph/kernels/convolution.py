"""Convolutions with kernels of one element and a stride, without the stride: oneDNN computes it beyond its memory.

Its derivative by such a kernel writes behind the buffer in which it gathers what the stride keeps, if images with few
channels have the channels last. Then numbers are wrong, or the process ends (docs/limitations.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional

CHANNELS = 16
"""Input channels from which the stride stays. With AVX2 oneDNN is right from 8, the float32 numbers of a vector;
AVX-512, where it was not tried, has vectors of 16."""


def unit_stride(x: Tensor, weight: Tensor, stride: Any, padding: Any = 0) -> tuple[Tensor, Any, Any]:
    """Return input, stride and padding of the same convolution, without a stride if its kernel has one element.

    Args:
        x: (N, C, spatial …) or (C, spatial …).
        weight: (O, C / groups, spatial …).
        stride: A number, or one for each spatial axis.
        padding: As stride; or a name, which stays as it is.
    """
    axes = weight.ndim - 2
    steps = _each(stride, axes)
    if weight.shape[1] >= CHANNELS or weight.shape[2:].numel() != 1 or max(steps) == 1 or padding == "same":
        return x, stride, padding
    if not isinstance(padding, str):
        sizes = _each(padding, axes)
        if any(sizes):
            x = functional.pad(x, [size for each in reversed(sizes) for size in (each, each)])
        padding = [0] * axes
    kept: tuple[Any, ...] = (..., *(slice(None, None, step) for step in steps))
    return x[kept], [1] * axes, padding


def _each(value: int | Sequence[int], axes: int) -> list[int]:
    """Return one number for each axis."""
    values = [value] if isinstance(value, int) else list(value)
    return values * axes if len(values) == 1 else values
