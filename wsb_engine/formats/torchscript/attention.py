"""Attention as TorchScript calls it, and the fused layers that contain it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from wsb_engine.formats.graph.kernels.attention import attend, shared_heads, total_bias
from wsb_engine.formats.graph.kernels.normalization import layer_norm
from wsb_engine.formats.torchscript.values import Call


def scaled_dot_product_attention(
    call: Call, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, dropout: float = 0.0,
    causal: bool = False, scale: float | None = None, grouped: bool = False,
) -> Tensor:  # fmt: skip
    """softmax(Q Kᵀ·scale + mask) V over the last two axes; dropout as in inference."""
    if grouped:
        key, value = shared_heads(query, key), shared_heads(query, value)
    masks = [] if mask is None else [mask]
    if causal:
        rows = torch.arange(query.shape[-2], device=call.device).reshape(-1, 1)
        masks.append(torch.arange(key.shape[-2], device=call.device) <= rows)
    return attend(query, key, value, total_bias(masks, query), scale=scale).output


def _self_attention(
    call: Call, x: Tensor, heads: int, weight: Tensor, bias: Tensor | None, out: Tensor, out_bias: Tensor | None
) -> Tensor:
    """Multi-head attention of (N, T, D) with itself, the three projections packed in one weight."""
    projected = functional.linear(x, weight, bias)
    split = projected.reshape(*x.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4)
    made = scaled_dot_product_attention(call, split[0], split[1], split[2])
    return functional.linear(made.transpose(1, 2).flatten(2), out, out_bias)


def encoder_layer(
    call: Call, x: Tensor, width: int, heads: int, qkv: Tensor, qkv_bias: Tensor, out: Tensor, out_bias: Tensor,
    use_gelu: bool, norm_first: bool, epsilon: float, norm_weight_1: Tensor, norm_bias_1: Tensor,
    norm_weight_2: Tensor, norm_bias_2: Tensor, weight_1: Tensor, bias_1: Tensor, weight_2: Tensor, bias_2: Tensor,
    mask: Tensor | None = None, mask_type: int | None = None,
) -> Tensor:  # fmt: skip
    """Compute the fast path of ``nn.TransformerEncoderLayer`` as its slow path does."""
    if mask is not None:
        raise call.unsupported("a mask")
    if x.ndim != 3:
        raise call.unsupported("an input without a batch axis")

    def norm_1(y: Tensor) -> Tensor:
        return layer_norm(y, 1, norm_weight_1, norm_bias_1, epsilon)

    def norm_2(y: Tensor) -> Tensor:
        return layer_norm(y, 1, norm_weight_2, norm_bias_2, epsilon)

    def attend(y: Tensor) -> Tensor:
        return _self_attention(call, y, heads, qkv, qkv_bias, out, out_bias)

    def feed_forward(y: Tensor) -> Tensor:
        hidden = functional.linear(y, weight_1, bias_1)
        return functional.linear(functional.gelu(hidden) if use_gelu else torch.relu(hidden), weight_2, bias_2)

    if norm_first:
        x = x + attend(norm_1(x))
        return x + feed_forward(norm_2(x))
    x = norm_1(x + attend(x))
    return norm_2(x + feed_forward(x))


def native_multi_head_attention(
    call: Call, query: Tensor, key: Tensor, value: Tensor, width: int, heads: int, qkv: Tensor, qkv_bias: Tensor,
    out: Tensor, out_bias: Tensor, mask: Tensor | None = None, need_weights: bool = True, *_: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Compute the fast path of ``nn.MultiheadAttention``, for attention of an input with itself."""
    if mask is not None:
        raise call.unsupported("a mask")
    if key is not query or value is not query:
        raise call.unsupported("attention to another tensor")
    if need_weights:
        raise call.unsupported("giving out the attention weights")
    made = _self_attention(call, query, heads, qkv, qkv_bias, out, out_bias)
    return made, torch.zeros(0, dtype=made.dtype, device=call.device)
