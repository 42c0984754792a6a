"""Convolutions over one to three spatial axes."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

from wsb_engine.formats.graph.kernels.convolution import unit_stride
from wsb_engine.formats.graph.operators.registry import Call, Static, operator
from wsb_engine.formats.graph.operators.spatial import pad_ends, window

CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {
    1: functional.conv1d,
    2: functional.conv2d,
    3: functional.conv3d,
}
_TRANSPOSED: dict[int, Callable[..., Tensor]] = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}


def _spatial_axes(call: Call, x: Tensor) -> int:
    dims = x.ndim - 2
    if dims not in CONVOLUTIONS:
        raise call.unsupported(f"an input of {dims} spatial axes")
    return dims


@operator("Conv")
def conv(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    dims = _spatial_axes(call, x)
    shape = window(call, x, weight.shape[2:])
    padded, strides, _ = unit_stride(shape.pad(x), weight, shape.strides)
    return CONVOLUTIONS[dims](
        padded,
        weight,
        bias,
        stride=strides,
        dilation=shape.dilations,
        groups=call.get("group", 1),
    )


@operator("ConvTranspose")
def conv_transpose(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the full transposed convolution, padded by ``output_padding`` and cropped by ``pads``."""
    dims = _spatial_axes(call, x)
    strides = call.ints("strides") or (1,) * dims
    dilations = call.ints("dilations") or (1,) * dims
    extra = call.ints("output_padding") or (0,) * dims
    full = _TRANSPOSED[dims](x, weight, None, stride=strides, dilation=dilations, groups=call.get("group", 1))
    sizes = [size + more for size, more in zip(full.shape[2:], extra, strict=True)]
    begin, end = _cropped(call, x, sizes, strides)
    made = pad_ends(full, [-size for size in begin], [more - size for more, size in zip(extra, end, strict=True)])
    return made if bias is None else made + bias.reshape(-1, *[1] * dims)


def _cropped(
    call: Call, x: Tensor, sizes: list[int], strides: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """How much to take off before and after, on each axis."""
    dims = len(sizes)
    mode = call.get("auto_pad", "NOTSET")
    wanted = call.ints("output_shape")
    if wanted is None and mode in ("SAME_UPPER", "SAME_LOWER"):
        wanted = tuple(size * stride for size, stride in zip(x.shape[2:], strides, strict=True))
    if wanted is None:
        pads = (call.ints("pads") if mode == "NOTSET" else None) or (0,) * 2 * dims
        return pads[:dims], pads[dims:]
    total = [size - target for size, target in zip(sizes, wanted[-dims:], strict=True)]
    half = [each // 2 for each in total]
    rest = [each - lower for each, lower in zip(total, half, strict=True)]
    return (tuple(half), tuple(rest)) if mode == "SAME_UPPER" else (tuple(rest), tuple(half))


@operator("Col2Im", static=(1, 2))
def col2im(call: Call, x: Tensor, image: Static, block: Static) -> Tensor:
    """Sum columns back into an image of two spatial axes."""
    if len(image) != 2:
        raise call.unsupported(f"an image of {len(image)} axes")
    dilations = call.ints("dilations") or (1, 1)
    strides = call.ints("strides") or (1, 1)
    pads = call.ints("pads") or (0, 0, 0, 0)
    height, width = (int(size) for size in image)
    padded = (height + pads[0] + pads[2], width + pads[1] + pads[3])
    kernel = (int(block[0]), int(block[1]))
    made = functional.fold(x, padded, kernel, dilation=dilations, stride=strides)
    return made[..., pads[0] : pads[0] + height, pads[1] : pads[1] + width]
