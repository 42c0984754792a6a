"""Operators that only rearrange elements, and those that make tensors of a given shape."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wsb_engine.formats.onnx.operators.registry import Call, Static, operator
from wsb_engine.formats.onnx.tensors import dtype_of, element_count


def axis_of(call: Call, axis: int, rank: int) -> int:
    """The axis counted from the front."""
    if not -rank <= axis < max(rank, 1):
        raise call.wrong(f"axis {axis} does not exist in a tensor of rank {rank}")
    return axis + rank if axis < 0 else axis


def working_dtype(call: Call, element_type: int) -> torch.dtype:
    """The dtype of a Cast's target: every floating type is the working one."""
    dtype = dtype_of(element_type, call.node.label)
    return call.working if dtype.is_floating_point else dtype


@operator("Identity", "Optional")
def identity(call: Call, x: Tensor) -> Tensor:
    return x


@operator("Dropout")
def dropout(call: Call, x: Tensor, ratio: Tensor | None = None, training: Static | None = None) -> object:
    """As in inference: the input itself, and a mask that keeps everything."""
    return (x, torch.ones_like(x, dtype=torch.bool)) if len(call.node.outputs) > 1 else x


@operator("Cast")
def cast(call: Call, x: Tensor) -> Tensor:
    return convert(x, working_dtype(call, call.get("to", 0)))


@operator("CastLike")
def cast_like(call: Call, x: Tensor, like: Tensor) -> Tensor:
    return convert(x, call.working if like.is_floating_point() else like.dtype)


def convert(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A conversion that lets derivatives through between floating types."""
    return x if x.dtype == dtype else x.to(dtype)


@operator("Reshape", static=(1,), since=5)
def reshape(call: Call, x: Tensor, shape: Static) -> Tensor:
    """0 keeps the input's size, unless ``allowzero``."""
    sizes = [int(size) for size in shape.tolist()]
    if not call.get("allowzero", 0):
        if any(size == 0 and axis >= x.ndim for axis, size in enumerate(sizes)):
            raise call.wrong(f"shape {sizes} copies a size that an input of rank {x.ndim} does not have")
        sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return x.reshape(sizes)


@operator("Flatten")
def flatten(call: Call, x: Tensor) -> Tensor:
    """To a matrix: the axes before ``axis``, and the rest."""
    axis = call.get("axis", 1)
    axis += x.ndim if axis < 0 else 0
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@operator("Transpose")
def transpose(call: Call, x: Tensor) -> Tensor:
    order = call.ints("perm")
    return x.permute(tuple(reversed(range(x.ndim))) if order is None else order)


@operator("Squeeze", static=(1,))
def squeeze(call: Call, x: Tensor, axes: Static | None = None) -> Tensor:
    chosen = call.ints("axes") if axes is None else tuple(axes.tolist())
    if chosen is None:
        return x.squeeze()
    dims = {axis_of(call, axis, x.ndim) for axis in chosen}
    if any(x.shape[axis] != 1 for axis in dims):
        raise call.wrong(f"can't squeeze axes {sorted(dims)} of shape {list(x.shape)}")
    return x.reshape([size for axis, size in enumerate(x.shape) if axis not in dims])


@operator("Unsqueeze", static=(1,))
def unsqueeze(call: Call, x: Tensor, axes: Static | None = None) -> Tensor:
    chosen = call.ints("axes") if axes is None else tuple(axes.tolist())
    if not chosen:
        raise call.wrong("has no axes")
    rank = x.ndim + len(chosen)
    for axis in sorted(axis_of(call, axis, rank) for axis in chosen):
        x = x.unsqueeze(axis)
    return x


@operator("Concat")
def concat(call: Call, *parts: Tensor) -> Tensor:
    return torch.cat(parts, dim=call.get("axis", 0))


@operator("Shape")
def shape_of(call: Call, x: Tensor) -> Tensor:
    rank = x.ndim
    start, end = call.get("start", 0), call.get("end", rank)
    return torch.tensor(list(x.shape)[slice(start, end)], dtype=torch.int64)


@operator("Size")
def size_of(call: Call, x: Tensor) -> Tensor:
    return torch.tensor(x.numel(), dtype=torch.int64)


@operator("ConstantOfShape", static=(0,), since=9)
def constant_of_shape(call: Call, shape: Static) -> Tensor:
    sizes = tuple(int(size) for size in shape.tolist())
    element_count(sizes, call.node.label)
    value = call.get("value", torch.zeros(1))
    dtype = call.working if value.dtype.is_floating_point else value.dtype
    return value.reshape(-1)[:1].to(call.device, dtype).reshape([1] * len(sizes)).expand(sizes)
