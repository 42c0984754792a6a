"""The operators of ``aten`` on tensors that a graph may use, as pure torch functions.

Most are torch's own, called by their overload. Those that torch implements without a second derivative, that depend
on the mode (training or not), or whose memory layout ``torch.func`` does not keep, are written out. As for every
kernel of the readers: no writing in place, no Python decision on values, works on meta tensors and under transforms.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from wsb_engine.formats.graph.kernels import bags, elementwise, normalization
from wsb_engine.formats.graph.kernels.convolution import unit_stride
from wsb_engine.formats.graph.kernels.elementwise import SURE
from wsb_engine.formats.graph.kernels.norms import cdist, root, vector_norm, weight_norm
from wsb_engine.formats.graph.kernels.products import bilinear, trilinear
from wsb_engine.formats.graph.kernels.recurrent import STEPS
from wsb_engine.formats.graph.limits import LIMITS
from wsb_engine.formats.graph.plan import Kernel, without_call
from wsb_engine.formats.torchscript.attention import (
    encoder_layer,
    native_multi_head_attention,
    scaled_dot_product_attention,
)
from wsb_engine.formats.torchscript.recurrent import gru, lstm, rnn_relu, rnn_tanh
from wsb_engine.formats.torchscript.values import Call
from wsb_engine.internals import schema_of


@dataclass(frozen=True)
class Operator:
    """An entry of the table."""

    kernel: Kernel
    keeps: bool = False
    """Whether the result may be the first argument itself, without torch's schema saying so."""


TABLE: dict[str, Operator] = {}
"""Name without namespace → operator; one that works in place is found without its underscore."""


def _enter(*names: str, keeps: bool = False) -> Callable[[Kernel], Kernel]:
    def enter(kernel: Kernel) -> Kernel:
        for name in names:
            TABLE[name] = Operator(kernel, keeps)
        return kernel

    return enter


_OPTIONS = frozenset({"layout", "pin_memory", "memory_format", "non_blocking"})


def native(call: Call, *arguments: Any) -> Any:
    """torch's own operator, with floating dtypes made the working one, on the working device."""
    return _own(call, call.node.name.removesuffix("_"), call.node.overload, arguments)


def _own(call: Call, name: str, overload: str, arguments: tuple[Any, ...]) -> Any:
    function = getattr(getattr(torch.ops.aten, name), overload or "default")
    positional, keywords = [], {}
    for parameter, given in zip(schema_of(function).arguments, arguments, strict=False):
        if parameter.name in _OPTIONS:
            continue
        value = given
        if parameter.name == "dtype":
            value = call.dtype(given)
        elif parameter.name == "device":
            value = None
        if parameter.kwarg_only:
            keywords[parameter.name] = value
        else:
            positional.append(value)
    if any(parameter.name == "device" for parameter in schema_of(function).arguments) and name in FACTORIES:
        keywords["device"] = call.device
    return function(*positional, **keywords)


FACTORIES = frozenset({"arange", "eye", "full", "linspace", "ones", "zeros"})
"""Operators that make tensors out of numbers."""

_NATIVE = """
    abs absolute acos acosh adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
    adaptive_max_pool1d adaptive_max_pool2d add addbmm addcdiv addcmul addmm addmv all amax amin any arange argmax
    argmin asin asinh atan atan2 atanh avg_pool1d avg_pool2d avg_pool3d baddbmm bitwise_and bitwise_left_shift
    bitwise_not bitwise_or bitwise_right_shift bitwise_xor bmm broadcast_tensors broadcast_to cat ceil celu
    channel_shuffle chunk clamp clamp_max clamp_min clip clone col2im concat concatenate constant_pad_nd
    conv_transpose1d conv_transpose2d conv_transpose3d copysign cos cosh cosine_similarity cummax
    cummin cumprod cumsum diagonal diff div divide dot einsum elu eq erf erfc exp exp2 expand expand_as expm1 eye
    flatten flip floor floor_divide fmod frac full full_like gather ge gelu greater greater_equal gt hardshrink
    hardtanh hstack im2col index index_add index_put index_select inner isfinite isinf isnan le leaky_relu less
    less_equal linspace log log10 log1p log2 log_sigmoid log_softmax logical_and logical_not logical_or
    logical_xor logsumexp lt masked_fill matmul max max_pool1d max_pool2d max_pool3d maximum mean median meshgrid
    min minimum mm mT movedim mul multiply mv nan_to_num narrow ne neg negative new_full new_ones new_zeros
    not_equal numpy_T one_hot ones ones_like outer permute pixel_shuffle pixel_unshuffle pow prod reciprocal
    reflection_pad1d reflection_pad2d reflection_pad3d relu relu6 remainder repeat repeat_interleave
    replication_pad1d replication_pad2d replication_pad3d roll rot90 round rsqrt rsub scatter scatter_add select
    select_scatter selu sgn sigmoid sign silu sin sinh slice softmax softshrink softsign sort split split_with_sizes
    sqrt square squeeze stack sub subtract sum swapaxes swapdims t take_along_dim tan tanh tensor_split threshold
    tile topk transpose tril triu true_divide trunc unbind unflatten unsqueeze upsample_bicubic2d
    upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d
    upsample_trilinear3d var var_mean vstack where xlogy zeros zeros_like
"""
for _name in _NATIVE.split():
    TABLE[_name] = Operator(native)


@_enter("alias", "contiguous", "lift_fresh", "lift_fresh_copy", "cpu", "cuda", "requires_grad", keeps=True)
def identity(call: Call, x: Tensor, *_: Any) -> Tensor:
    return x


@_enter("alpha_dropout", "dropout", "feature_alpha_dropout", "feature_dropout", keeps=True)
def dropout(call: Call, x: Tensor, p: float, train: bool) -> Tensor:
    """As in inference, whatever the flag."""
    return x


_enter("__and__")(without_call(torch.bitwise_and))
_enter("__lshift__")(without_call(torch.bitwise_left_shift))
_enter("__or__")(without_call(torch.bitwise_or))
_enter("__rshift__")(without_call(torch.bitwise_right_shift))
_enter("__xor__")(without_call(torch.bitwise_xor))
_enter("bilinear")(without_call(bilinear))
_enter("detach")(without_call(torch.detach))
_enter("linear")(without_call(functional.linear))
_enter("pad")(without_call(functional.pad))
_enter("unsafe_chunk")(without_call(torch.chunk))
_enter("unsafe_split", "unsafe_split_with_sizes")(without_call(torch.split))
_enter("vdot")(without_call(torch.dot))
_enter("zero")(without_call(torch.zeros_like))


@_enter("view", "view_as", "reshape", "reshape_as")
def reshape(call: Call, x: Tensor, shape: Any) -> Tensor:
    """Reshape: a view under a transform may lack the strides that it has outside."""
    if call.node.overload == "dtype":
        raise call.unsupported("a view as another dtype")
    return x.reshape(shape.shape if isinstance(shape, Tensor) else shape)


@_enter("to", "type_as", "float", "double", "half", keeps=True)
def convert(call: Call, x: Tensor, *arguments: Any) -> Tensor:
    """Every floating type is the working one; devices are left alone."""
    kind = (call.node.name, call.node.overload)
    if call.node.name in ("float", "double", "half"):
        return x.to(call.working)
    if kind in (("to", "other"), ("type_as", "")):
        other: torch.dtype = arguments[0].dtype
        return x.to(call.working if other.is_floating_point else other)
    position = {"dtype": 0, "dtype_layout": 0, "device": 1, "prim_dtype": 0, "prim_device": 1}
    if call.node.overload not in position:
        raise call.unsupported(f"the overload {call.node.overload!r}")
    dtype = call.dtype(arguments[position[call.node.overload]])
    return x if dtype is None else x.to(dtype)


@_enter("tensor", "as_tensor", "scalar_tensor")
def tensor(call: Call, data: Any, dtype: int | None = None, *_: Any) -> Tensor:
    if isinstance(data, Tensor):
        return data if dtype is None else data.to(call.dtype(dtype))
    return torch.tensor(data, dtype=call.dtype(dtype), device=call.device)


@_enter("fill")
def fill(call: Call, x: Tensor, value: Any) -> Tensor:
    return value.to(x.dtype).expand(x.shape) if isinstance(value, Tensor) else torch.full_like(x, value)


@_enter("copy")
def copy(call: Call, x: Tensor, source: Tensor, *_: Any) -> Tensor:
    return source.to(x.dtype).expand(x.shape)


@_enter("_convolution_mode", "conv1d", "conv2d", "conv3d")
def convolve(
    call: Call,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    *arguments: Any,
) -> Any:
    x, stride, padding = unit_stride(x, weight, stride, padding)
    return native(call, x, weight, bias, stride, padding, *arguments)


@_enter("_convolution", "convolution")
def convolution(
    call: Call, x: Tensor, weight: Tensor, bias: Tensor | None,
    stride: Any, padding: Any, dilation: Any, transposed: bool, *arguments: Any,
) -> Any:  # fmt: skip
    """Convolve; the backend's flags, which follow the groups, have no meaning here."""
    if not transposed:
        x, stride, padding = unit_stride(x, weight, stride, padding)
    return torch.ops.aten.convolution(x, weight, bias, stride, padding, dilation, transposed, *arguments[:2])


@_enter("embedding")
def embedding(call: Call, weight: Tensor, indices: Tensor, *_: Any) -> Tensor:
    rows = torch.index_select(weight, 0, indices.reshape(-1))
    return rows.reshape(*indices.shape, weight.shape[1])


@_enter("embedding_bag")
def embedding_bag(
    call: Call, weight: Tensor, indices: Tensor, offsets: Tensor, scale_by_frequency: bool = False, mode: int = 0,
    sparse: bool = False, weights: Tensor | None = None, ends: bool = False, padding: int | None = None,
) -> Tensor | tuple[Tensor, ...]:  # fmt: skip
    """Reduce bags of rows; torch's own operator has no second derivative."""
    if padding == -1 and call.node.overload != "padding_idx":  # as decomposed programs say that there is none
        padding = None
    call.require_size(indices.numel() * weight.shape[-1], LIMITS.tensor_elements)
    made = bags.as_torch(weight, indices, offsets, mode, weights, ends, padding)
    return made if len(call.node.outputs) > 1 else made[0]


@_enter("cdist")
def distances(call: Call, x1: Tensor, x2: Tensor, order: float = 2.0, mode: int | None = None) -> Tensor:
    """Return the norms of all differences, each of which is computed."""
    rest = torch.broadcast_shapes(x1.shape[:-2], x2.shape[:-2])
    call.require_size(math.prod((*rest, x1.shape[-2], *x2.shape[-2:])), LIMITS.tensor_elements)
    return cdist(x1, x2, order)


@_enter("_trilinear")
def _trilinear(
    call: Call, x: Tensor, y: Tensor, z: Tensor, first: list[int], second: list[int], third: list[int],
    summed: list[int], unrolled: int = 1,
) -> Tensor:  # fmt: skip
    return trilinear(x, y, z, (first, second, third), summed)


@_enter("softplus")
def softplus(call: Call, x: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    """Return the function itself if the threshold is no more than a guard against overflow."""
    return elementwise.softplus(x, beta) if threshold >= SURE else functional.softplus(x, beta, threshold)


@_enter("linalg_vector_norm")
def linalg_vector_norm(
    call: Call, x: Tensor, order: float, dims: list[int] | None, keepdim: bool, dtype: int | None
) -> Tensor:
    return vector_norm(x, order, dims, keepdim, dtype=call.dtype(dtype))


@_enter("norm")
def norm(call: Call, x: Tensor, order: float | None, *arguments: Any) -> Tensor:
    """Over all elements, or over axes; a dtype is the working one whatever it says."""
    dims, keepdim = (*arguments, None, False)[:2] if call.node.overload.endswith("dim") else (None, False)
    return vector_norm(x, 2 if order is None else order, dims, keepdim)


@_enter("_weight_norm")
def _weight_norm(call: Call, direction: Tensor, size: Tensor, dim: int = 0) -> Tensor:
    return weight_norm(direction, size, dim)


@_enter("_weight_norm_interface")
def _weight_norm_interface(call: Call, direction: Tensor, size: Tensor, dim: int = 0) -> tuple[Tensor, Tensor]:
    """Return the weight, and a norm that only derivatives use."""
    return weight_norm(direction, size, dim), size


@_enter("std")
def std(call: Call, x: Tensor, *arguments: Any) -> Tensor:
    return root(_own(call, "var", call.node.overload, (x, *arguments)), 0.5)


@_enter("std_mean")
def std_mean(call: Call, x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    variance, mean = _own(call, "var_mean", call.node.overload, (x, *arguments))
    return root(variance, 0.5), mean


@_enter("slice_scatter")
def slice_scatter(
    call: Call, x: Tensor, source: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Tensor:
    """Write to a slice; torch's own adds to an end that means "to the last", and overflows."""
    last = x.shape[dim] if end is None else min(end, x.shape[dim])
    return torch.slice_scatter(x, source, dim, start, last, step)


@_enter("empty", "empty_like", "new_empty")
def empty(call: Call, *arguments: Any) -> Tensor:
    """Make zeros: what a tensor holds before it is written must not differ from run to run."""
    name = call.node.name.replace("empty", "zeros")
    overload = "" if name == "zeros" else call.node.overload
    made: Tensor = _own(call, name, overload, arguments)
    return made


@_enter("unfold")
def unfold(call: Call, x: Tensor, dim: int, size: int, step: int) -> Tensor:
    dim = dim % x.ndim
    count = (x.shape[dim] - size) // step + 1
    starts = torch.arange(count, device=call.device).reshape(-1, 1) * step
    index = (starts + torch.arange(size, device=call.device)).reshape(-1)
    windows: Tensor = torch.index_select(x, dim, index).unflatten(dim, (count, size))
    return windows.movedim(dim + 1, -1)


@_enter("rrelu")
def rrelu(call: Call, x: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, *_: Any) -> Tensor:
    return functional.leaky_relu(x, (lower + upper) / 2)


_enter("hardsigmoid")(without_call(elementwise.hard_sigmoid))
_enter("hardswish")(without_call(elementwise.hard_swish))
_enter("heaviside")(without_call(elementwise.heaviside))
_enter("logaddexp")(without_call(elementwise.logaddexp))
_enter("mish")(without_call(elementwise.mish))
_enter("prelu")(without_call(elementwise.prelu))


@_enter("glu")
def glu(call: Call, x: Tensor, dim: int = -1) -> Tensor:
    value, gate = x.chunk(2, dim)
    return value * torch.sigmoid(gate)


@_enter("batch_norm")
def batch_norm(
    call: Call, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None, variance: Tensor | None,
    training: bool, momentum: float, epsilon: float, *_: Any,
) -> Tensor:  # fmt: skip
    """As in inference: with the running statistics."""
    if mean is None or variance is None:
        raise call.unsupported("a batch normalisation without running statistics, which mixes the samples,")
    return normalization.batch_norm(x, mean, variance, weight, bias, epsilon)


@_enter("layer_norm")
def layer_norm(
    call: Call, x: Tensor, shape: list[int], weight: Tensor | None, bias: Tensor | None, epsilon: float, *_: Any
) -> Tensor:
    return normalization.layer_norm(x, len(shape), weight, bias, epsilon)


@_enter("rms_norm")
def rms_norm(call: Call, x: Tensor, shape: list[int], weight: Tensor | None, epsilon: float | None) -> Tensor:
    small = torch.finfo(x.dtype).eps if epsilon is None else epsilon
    return normalization.rms_norm(x, len(shape), weight, small)


@_enter("group_norm")
def group_norm(
    call: Call, x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, epsilon: float, *_: Any
) -> Tensor:
    return normalization.group_norm(x, groups, weight, bias, epsilon)


@_enter("instance_norm")
def instance_norm(
    call: Call, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None, variance: Tensor | None,
    use_input_stats: bool, momentum: float, epsilon: float, *_: Any,
) -> Tensor:  # fmt: skip
    if use_input_stats or mean is None or variance is None:
        return normalization.instance_norm(x, weight, bias, epsilon)
    normal = normalization.batch_norm(x, mean, variance, None, None, epsilon)
    return normalization.affine_by_channel(normal, weight, bias)


_enter("scaled_dot_product_attention")(scaled_dot_product_attention)
_enter("_transformer_encoder_layer_fwd")(encoder_layer)
_enter("_native_multi_head_attention")(native_multi_head_attention)
_enter("gru")(gru)
_enter("lstm")(lstm)
_enter("rnn_relu")(rnn_relu)
_enter("rnn_tanh")(rnn_tanh)
for _name, _step in STEPS.items():
    _enter(_name)(without_call(_step))
