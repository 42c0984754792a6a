"""Operators that pick or place elements by index."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from wsb_engine.formats.graph.operators.registry import Call, Static, operator
from wsb_engine.formats.graph.operators.shapes import axis_of


def _from_front(indices: Tensor, size: int) -> Tensor:
    """Indices counted from the front; negative ones count from the end."""
    index = indices.to(torch.int64)
    return torch.where(index < 0, index + size, index)


@operator("Gather")
def gather(call: Call, data: Tensor, indices: Tensor) -> Tensor:
    """Whole slices along one axis."""
    axis = axis_of(call, call.get("axis", 0), data.ndim)
    index = _from_front(indices, data.shape[axis])
    rows = torch.index_select(data, axis, index.reshape(-1))
    return rows.reshape((*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :]))


@operator("GatherElements", since=11)
def gather_elements(call: Call, data: Tensor, indices: Tensor) -> Tensor:
    axis = axis_of(call, call.get("axis", 0), data.ndim)
    return torch.gather(data, axis, _from_front(indices, data.shape[axis]))


@operator("GatherND", since=11)
def gather_nd(call: Call, data: Tensor, indices: Tensor) -> Tensor:
    """Gather slices; the last axis of the indices holds positions in the axes of the data after the batch axes."""
    batch = call.get("batch_dims", 0)
    return data[_positions(data, indices, batch)]


def _positions(data: Tensor, indices: Tensor, batch: int = 0) -> tuple[Tensor, ...]:
    """Advanced-indexing arrays for the leading axes of the data."""
    depth = indices.shape[-1]
    own = [_from_front(indices[..., i], data.shape[batch + i]) for i in range(depth)]
    rows = []
    for axis in range(batch):
        shape = [1] * (indices.ndim - 1)
        shape[axis] = data.shape[axis]
        rows.append(torch.arange(data.shape[axis], device=data.device).reshape(shape))
    return (*rows, *own)


@operator("ScatterND", since=11)
def scatter_nd(call: Call, data: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    reduction = call.get("reduction", "none")
    positions = _positions(data, indices)
    if reduction in ("none", "add"):
        return torch.index_put(data, positions, updates, accumulate=reduction == "add")
    # Flattened, so that the elementwise scatter with its reductions applies.
    depth = indices.shape[-1]
    flat = torch.zeros_like(positions[0])
    for axis, position in enumerate(positions):
        flat = flat * data.shape[axis] + position
    rows = data.reshape(-1, *data.shape[depth:]) if depth < data.ndim else data.reshape(-1)
    source = updates.reshape(flat.numel(), *data.shape[depth:])
    target = flat.reshape(-1, *[1] * (source.ndim - 1)).expand(source.shape)
    made = torch.scatter_reduce(rows, 0, target, source, _REDUCTIONS[reduction])
    return made.reshape(data.shape)


_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@operator("ScatterElements", "Scatter", since=9)
def scatter_elements(call: Call, data: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    axis = axis_of(call, call.get("axis", 0), data.ndim)
    index = _from_front(indices, data.shape[axis])
    reduction = call.get("reduction", "none")
    if reduction == "none":
        return torch.scatter(data, axis, index, updates)
    return torch.scatter_reduce(data, axis, index, updates, _REDUCTIONS[reduction])


@operator("OneHot", static=(1,), since=9)
def one_hot(call: Call, indices: Tensor, depth: Static, values: Tensor) -> Tensor:
    size = int(depth.reshape(-1)[0])
    axis = axis_of(call, call.get("axis", -1), indices.ndim + 1)
    index = _from_front(indices, size).unsqueeze(axis)
    shape = [1] * (indices.ndim + 1)
    shape[axis] = size
    hot = index == torch.arange(size, device=indices.device).reshape(shape)
    return torch.where(hot, values[1], values[0])


@operator("Compress", static=(1,), since=9)
def compress(call: Call, x: Tensor, condition: Static) -> Tensor:
    kept = torch.as_tensor(condition.reshape(-1).nonzero()[0], device=x.device)
    if "axis" not in call.node.attributes:
        return torch.index_select(x.reshape(-1), 0, kept)
    return torch.index_select(x, axis_of(call, call.get("axis", 0), x.ndim), kept)


@operator("NonZero", since=9, concrete=True)
def non_zero(call: Call, x: Tensor) -> Tensor:
    return torch.nonzero(x).T


@operator("ReverseSequence", since=10)
def reverse_sequence(call: Call, x: Tensor, lengths: Tensor) -> Tensor:
    """Reverse the first elements of each sequence and leave the rest."""
    batch, time = call.get("batch_axis", 1), call.get("time_axis", 0)
    steps = torch.arange(x.shape[time], device=x.device)
    ends = lengths.to(torch.int64).reshape(-1, 1)
    index = torch.where(steps < ends, ends - 1 - steps, steps)  # (batch, time)
    index = index if batch < time else index.T
    shape = [size if axis in (batch, time) else 1 for axis, size in enumerate(x.shape)]
    return torch.gather(x, time, index.reshape(shape).expand(x.shape))


@operator("TensorScatter", since=24)
def tensor_scatter(call: Call, past: Tensor, update: Tensor, write: Tensor | None = None) -> Tensor:
    """Write a block into a cache at each sample's own position."""
    axis = axis_of(call, call.get("axis", -2), past.ndim)
    start = torch.zeros(past.shape[0], dtype=torch.int64, device=past.device) if write is None else write
    steps = torch.arange(update.shape[axis], device=past.device)
    index = start.reshape(-1, 1) + steps
    if call.get("mode", "linear") == "circular":
        index = index % past.shape[axis]
    shape = [size if dim in (0, axis) else 1 for dim, size in enumerate(update.shape)]
    return torch.scatter(past, axis, index.reshape(shape).expand(update.shape), update)


@operator("Trilu", static=(1,), since=14)
def trilu(call: Call, x: Tensor, k: Static | None = None) -> Tensor:
    function: Callable[..., Tensor] = torch.triu if call.get("upper", 1) else torch.tril
    return function(x, diagonal=0 if k is None else int(k.reshape(-1)[0]))
