"""Pooling over windows and over all spatial axes."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from wsb_engine.formats.graph.kernels.norms import root, vector_norm
from wsb_engine.formats.graph.operators.convolution import CONVOLUTIONS
from wsb_engine.formats.graph.operators.registry import Call, operator
from wsb_engine.formats.graph.operators.spatial import Window, pad_ends, window

_MAXIMA: dict[int, Callable[..., Tensor]] = {
    1: functional.max_pool1d,
    2: functional.max_pool2d,
    3: functional.max_pool3d,
}


def _window(call: Call, x: Tensor) -> Window:
    if x.ndim - 2 not in _MAXIMA:
        raise call.unsupported(f"an input of {x.ndim - 2} spatial axes")
    return window(call, x, call.ints("kernel_shape") or ())


@operator("MaxPool")
def max_pool(call: Call, x: Tensor) -> Tensor:
    shape = _window(call, x)
    exact = x if x.is_floating_point() else x.to(torch.float64)
    padded = shape.pad(exact, -math.inf)
    made = _MAXIMA[shape.dims](padded, shape.kernel, shape.strides, dilation=shape.dilations)
    return made.to(x.dtype)


def _window_sums(x: Tensor, shape: Window) -> Tensor:
    """Sum over the windows of a padded input, each channel separately."""
    planes = x.reshape(-1, 1, *x.shape[2:])
    ones = torch.ones(1, 1, *shape.kernel, dtype=x.dtype, device=x.device)
    sums = CONVOLUTIONS[shape.dims](planes, ones, stride=shape.strides, dilation=shape.dilations)
    return sums.reshape(*x.shape[:2], *sums.shape[2:])


@operator("AveragePool")
def average_pool(call: Call, x: Tensor) -> Tensor:
    """Padding counts as elements only with ``count_include_pad``; what hangs over the padding never does."""
    shape = _window(call, x)
    counted = torch.ones(1, 1, *x.shape[2:], dtype=x.dtype, device=x.device)
    if call.get("count_include_pad", 0):
        own = [end - over for end, over in zip(shape.end, shape.overhang, strict=True)]
        counted = pad_ends(counted, shape.begin, own, 1.0)
        counted = pad_ends(counted, [0] * shape.dims, shape.overhang)
    else:
        counted = shape.pad(counted)
    return _window_sums(shape.pad(x), shape) / _window_sums(counted, shape)


@operator("LpPool")
def lp_pool(call: Call, x: Tensor) -> Tensor:
    """(Σ |x|^p)^(1/p) over each window."""
    order = call.get("p", 2)
    shape = _window(call, x)
    return root(_window_sums(shape.pad(x.abs().pow(order)), shape), 1.0 / order)


def _spatial(x: Tensor) -> list[int]:
    return list(range(2, x.ndim))


@operator("GlobalAveragePool")
def global_average_pool(call: Call, x: Tensor) -> Tensor:
    return x.mean(dim=_spatial(x), keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(call: Call, x: Tensor) -> Tensor:
    return x.amax(dim=_spatial(x), keepdim=True)


@operator("GlobalLpPool")
def global_lp_pool(call: Call, x: Tensor) -> Tensor:
    order = call.get("p", 2)
    return vector_norm(x, order, _spatial(x), keepdim=True)
