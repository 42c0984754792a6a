"""What convolution and pooling share: the window's geometry along each spatial axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from wsb_engine.formats.graph.operators.registry import Call


@dataclass(frozen=True)
class Window:
    """A sliding window over the spatial axes; every list has an entry for each of them."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]
    """Padding before."""
    end: tuple[int, ...]
    """Padding after; negative if the window does not reach the input's end."""
    overhang: tuple[int, ...]
    """Part of ``end`` that is there only because ``ceil_mode`` lets the last window hang over."""

    @property
    def dims(self) -> int:
        return len(self.kernel)

    def pad(self, x: Tensor, value: float = 0.0) -> Tensor:
        return pad_ends(x, self.begin, self.end, value)


def pad_ends(x: Tensor, begin: Sequence[int], end: Sequence[int], value: float = 0.0) -> Tensor:
    """Pad the last axes with a constant, or crop them if a size is negative."""
    if not any(begin) and not any(end):
        return x
    pairs = [size for pair in zip(reversed(begin), reversed(end), strict=True) for size in pair]
    return functional.pad(x, pairs, value=value)


def window(call: Call, x: Tensor, kernel: Sequence[int]) -> Window:
    """Return the geometry of a Conv or pooling node.

    Args:
        call: Attributes ``auto_pad``, ``pads``, ``strides``, ``dilations`` and ``ceil_mode``.
        x: Input of shape (N, C, spatial …).
        kernel: Sizes of the window.
    """
    dims = x.ndim - 2
    strides = call.ints("strides") or (1,) * dims
    dilations = call.ints("dilations") or (1,) * dims
    mode = call.get("auto_pad", "NOTSET")
    if dims < 1 or any(len(each) != dims for each in (kernel, strides, dilations)):
        raise call.wrong(f"its attributes do not fit an input of {dims} spatial axes")
    if min(*kernel, *strides, *dilations) < 1:
        raise call.wrong("has a size, stride or dilation below 1")
    spans = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    begin, end, overhang = [0] * dims, [0] * dims, [0] * dims
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        for axis, (size, stride, span) in enumerate(zip(x.shape[2:], strides, spans, strict=True)):
            total = max((-(-size // stride) - 1) * stride + span - size, 0)
            begin[axis] = total // 2 if mode == "SAME_UPPER" else total - total // 2
            end[axis] = total - begin[axis]
    elif mode in ("NOTSET", "VALID"):
        pads = call.ints("pads") if mode == "NOTSET" else None
        pads = pads or (0,) * 2 * dims
        if len(pads) != 2 * dims:
            raise call.wrong(f"pads {list(pads)} do not fit {dims} spatial axes")
        begin, end = list(pads[:dims]), list(pads[dims:])
        for axis in range(dims):
            room = x.shape[2 + axis] + begin[axis] + end[axis] - spans[axis]
            steps = room // strides[axis]
            if call.get("ceil_mode", 0) and room % strides[axis]:
                # A window may hang over the end, but must start before it.
                steps += (steps + 1) * strides[axis] < x.shape[2 + axis] + begin[axis]
            overhang[axis] = max(steps * strides[axis] - room, 0)
            end[axis] += overhang[axis]
    else:
        raise call.wrong(f"auto_pad {mode!r} is unknown")
    return Window(tuple(kernel), tuple(strides), tuple(dilations), tuple(begin), tuple(end), tuple(overhang))
