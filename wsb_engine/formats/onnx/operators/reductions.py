"""Reductions over axes, and the positions of extreme elements."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from wsb_engine.formats.onnx.operators.registry import Call, operator


@operator("ArgMax", smooth=False)
def argmax(call: Call, x: Tensor) -> Tensor:
    return _arg(call, x, torch.argmax)


@operator("ArgMin", smooth=False)
def argmin(call: Call, x: Tensor) -> Tensor:
    return _arg(call, x, torch.argmin)


def _arg(call: Call, x: Tensor, function: Callable[..., Tensor]) -> Tensor:
    axis, keep = call.get("axis", 0), bool(call.get("keepdims", 1))
    if not call.get("select_last_index", 0):
        return function(x, dim=axis, keepdim=keep)
    last = x.shape[axis] - 1
    return last - function(x.flip(axis), dim=axis, keepdim=keep)
