"""Operators that pick elements by index."""

from __future__ import annotations

import torch
from torch import Tensor

from wsb_engine.formats.onnx.operators.registry import Call, operator
from wsb_engine.formats.onnx.operators.shapes import axis_of


@operator("Gather")
def gather(call: Call, data: Tensor, indices: Tensor) -> Tensor:
    """Whole slices along one axis; negative indices count from the end."""
    axis = axis_of(call, call.get("axis", 0), data.ndim)
    size = data.shape[axis]
    index = indices.to(torch.int64)
    index = torch.where(index < 0, index + size, index)
    rows = torch.index_select(data, axis, index.reshape(-1))
    return rows.reshape(*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :])
