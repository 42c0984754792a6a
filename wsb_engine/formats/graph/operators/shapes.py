"""Operators that only rearrange elements, and those that make tensors of a given shape."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wsb_engine.formats.graph.operators.registry import Call, Static, operator
from wsb_engine.formats.graph.tensors import dtype_of, element_count


def axis_of(call: Call, axis: int, rank: int) -> int:
    """Return the axis counted from the front."""
    if not -rank <= axis < max(rank, 1):
        raise call.wrong(f"axis {axis} does not exist in a tensor of rank {rank}")
    return axis + rank if axis < 0 else axis


def working_dtype(call: Call, element_type: int) -> torch.dtype:
    """Return the dtype of a Cast's target: every floating type is the working one."""
    dtype = dtype_of(element_type, call.node.label)
    return call.working if dtype.is_floating_point else dtype


operator("Identity", "Optional", elementwise=True)(lambda call, x: x)


@operator("Dropout", elementwise=True)
def dropout(call: Call, x: Tensor, ratio: Tensor | None = None, training: Static | None = None) -> object:
    """As in inference: the input itself, and a mask that keeps everything."""
    return (x, torch.ones_like(x, dtype=torch.bool)) if len(call.node.outputs) > 1 else x


@operator("Cast", elementwise=True)
def cast(call: Call, x: Tensor) -> Tensor:
    return convert(x, working_dtype(call, call.get("to", 0)))


@operator("CastLike")
def cast_like(call: Call, x: Tensor, like: Tensor) -> Tensor:
    return convert(x, call.working if like.is_floating_point() else like.dtype)


def convert(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a conversion that lets derivatives through between floating types."""
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


@operator("Expand", static=(1,), since=8)
def expand(call: Call, x: Tensor, shape: Static) -> Tensor:
    """Broadcast both ways: a size of 1 in the target keeps the input's."""
    sizes = torch.broadcast_shapes(x.shape, [int(size) for size in shape.tolist()])
    element_count(tuple(sizes), call.node.label)
    return x.expand(sizes)


@operator("Tile", static=(1,), since=6)
def tile(call: Call, x: Tensor, repeats: Static) -> Tensor:
    times = [int(count) for count in repeats.tolist()]
    element_count(tuple(size * count for size, count in zip(x.shape, times, strict=True)), call.node.label)
    return x.repeat(times)


@operator("Slice", static=(1, 2, 3, 4))
def slice_(
    call: Call,
    x: Tensor,
    starts: Static | None = None,
    ends: Static | None = None,
    axes: Static | None = None,
    steps: Static | None = None,
) -> Tensor:
    """Bounds are attributes before opset 10, inputs since; a negative step runs backwards."""
    first = call.ints("starts") if starts is None else tuple(starts.tolist())
    last = call.ints("ends") if ends is None else tuple(ends.tolist())
    if first is None or last is None:
        raise call.wrong("has no starts or no ends")
    chosen = call.ints("axes") if axes is None else tuple(axes.tolist())
    chosen = tuple(range(len(first))) if chosen is None else chosen
    strides = (1,) * len(first) if steps is None else tuple(steps.tolist())
    for start, end, axis, step in zip(first, last, chosen, strides, strict=True):
        dim = axis_of(call, axis, x.ndim)
        # A backwards slice that runs past the front has no end in Python.
        stop = None if step < 0 and end < -x.shape[dim] else end
        taken = range(*slice(start, stop, step).indices(x.shape[dim]))
        if taken.step > 0:
            index = (slice(None),) * dim + (slice(taken.start, max(taken.stop, taken.start), taken.step),)
            x = x[index]
        else:
            x = torch.index_select(x, dim, torch.arange(taken.start, taken.stop, taken.step, device=x.device))
    return x


@operator("Split", static=(1,))
def split(call: Call, x: Tensor, sizes: Static | None = None) -> tuple[Tensor, ...]:
    dim = axis_of(call, call.get("axis", 0), x.ndim)
    given = call.ints("split") if sizes is None else tuple(sizes.tolist())
    if given is None:
        parts = call.get("num_outputs", len(call.node.outputs))
        chunk = -(-x.shape[dim] // parts)
        given = tuple(min(chunk, x.shape[dim] - chunk * index) for index in range(parts))
    return tuple(torch.split(x, list(given), dim))


@operator("Pad", static=(1, 2, 3))
def pad(
    call: Call, x: Tensor, pads: Static | None = None, value: Static | None = None, axes: Static | None = None
) -> Tensor:
    """Amounts are attributes before opset 11, inputs since; negative ones crop."""
    amounts = call.ints("pads") if pads is None else tuple(int(size) for size in pads.tolist())
    if amounts is None:
        raise call.wrong("has no pads")
    fill = call.get("value", 0.0) if value is None else value.reshape(-1)[0].item()
    chosen = range(x.ndim) if axes is None else [axis_of(call, axis, x.ndim) for axis in axes.tolist()]
    mode = call.get("mode", "constant")
    half = len(amounts) // 2
    ends = {axis: (amounts[i], amounts[half + i]) for i, axis in enumerate(chosen)}
    sizes = tuple(size + sum(ends.get(axis, (0, 0))) for axis, size in enumerate(x.shape))
    element_count(sizes, call.node.label)
    if mode == "constant":
        pairs = [amount for axis in reversed(range(x.ndim)) for amount in ends.get(axis, (0, 0))]
        return torch.nn.functional.pad(x, pairs, value=fill)
    for axis, (before, after) in ends.items():
        positions = torch.arange(-before, x.shape[axis] + after, device=x.device)
        x = torch.index_select(x, axis, _border(call, mode, x.shape[axis], positions))
    return x


def _border(call: Call, mode: str, size: int, positions: Tensor) -> Tensor:
    """Which element each position of a padded axis repeats."""
    if mode == "edge":
        return positions.clamp(0, size - 1)
    if mode == "wrap":
        return positions.remainder(size)
    if mode == "reflect":
        period = max(2 * (size - 1), 1)
        folded = positions.remainder(period)
        return torch.minimum(folded, period - folded) if size > 1 else torch.zeros_like(positions)
    raise call.wrong(f"mode {mode!r} is unknown")


@operator("CenterCropPad", static=(1,), since=18)
def center_crop_pad(call: Call, x: Tensor, shape: Static) -> Tensor:
    """Crop, or pad with zeros, on both sides; an odd element goes to the end."""
    axes = [axis_of(call, axis, x.ndim) for axis in call.ints("axes") or range(x.ndim)]
    pairs = dict.fromkeys(range(x.ndim), (0, 0))
    for axis, target in zip(axes, shape.tolist(), strict=True):
        more = int(target) - x.shape[axis]
        before = more // 2 if more >= 0 else -(-more // 2)
        pairs[axis] = (before, more - before)
    element_count(tuple(size + sum(pairs[axis]) for axis, size in enumerate(x.shape)), call.node.label)
    return torch.nn.functional.pad(x, [amount for axis in reversed(range(x.ndim)) for amount in pairs[axis]])


@operator("DepthToSpace")
def depth_to_space(call: Call, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    b = call.get("blocksize", 1)
    if call.get("mode", "DCR") == "DCR":
        blocks = x.reshape(n, b, b, c // (b * b), h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        blocks = x.reshape(n, c // (b * b), b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    return blocks.reshape(n, c // (b * b), h * b, w * b)


@operator("SpaceToDepth")
def space_to_depth(call: Call, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    b = call.get("blocksize", 1)
    blocks = x.reshape(n, c, h // b, b, w // b, b)
    order = (0, 3, 5, 1, 2, 4) if call.get("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    return blocks.permute(order).reshape(n, c * b * b, h // b, w // b)


@operator("Range", static=(0, 1, 2), since=11)
def range_(call: Call, start: Static, limit: Static, delta: Static) -> Tensor:
    first, last, step = (each.reshape(-1)[0].item() for each in (start, limit, delta))
    count = max(math.ceil((last - first) / step), 0)
    element_count((count,), call.node.label)
    dtype = torch.from_numpy(start.reshape(-1)[:1].copy()).dtype
    made: Tensor = torch.arange(count, dtype=dtype, device=call.device) * step + first
    return made.to(dtype)


@operator("EyeLike", since=9)
def eye_like(call: Call, x: Tensor) -> Tensor:
    rows, columns = x.shape
    dtype = working_dtype(call, call.get("dtype", 0)) if "dtype" in call.node.attributes else x.dtype
    row = torch.arange(rows, device=call.device).reshape(-1, 1)
    column = torch.arange(columns, device=call.device)
    return (column - row == call.get("k", 0)).to(dtype)


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
