"""Attention, and the rotation of its queries and keys by their positions."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from wsb_engine.formats.graph.kernels.attention import additive, attend, shared_heads, total_bias
from wsb_engine.formats.graph.operators.registry import Call, operator


def _split_heads(call: Call, x: Tensor, heads: int) -> Tensor:
    """(N, T, H·d) → (N, H, T, d)."""
    if heads < 1 or x.shape[2] % heads:
        raise call.wrong(f"can't divide {x.shape[2]} features into {heads} heads")
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


@operator("Attention", activation=True)
def attention(
    call: Call,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    lengths: Tensor | None = None,
) -> object:
    """softmax(Q Kᵀ·scale + bias) V, for multi-head, grouped-query and multi-query attention."""
    packed = query.ndim == 3
    if packed:
        query = _split_heads(call, query, call.get("q_num_heads", 0))
        key = _split_heads(call, key, call.get("kv_num_heads", 0))
        value = _split_heads(call, value, call.get("kv_num_heads", 0))
    offset: int | Tensor = 0
    if past_key is not None and past_value is not None:
        offset = past_key.shape[2]
        key, value = torch.cat([past_key, key], 2), torch.cat([past_value, value], 2)
    elif lengths is not None:
        offset = lengths.reshape(-1, 1, 1, 1) - query.shape[2]
    present = (key, value)
    bias = _bias(call, query, key.shape[2], mask, offset, lengths)
    made = attend(
        query,
        shared_heads(query, key),
        shared_heads(query, value),
        bias,
        scale=call.get("scale", 1.0 / math.sqrt(query.shape[-1])),
        cap=call.get("softcap", 0.0),
    )
    output = made.output.transpose(1, 2).flatten(2) if packed else made.output
    shown = (made.raw, made.capped, made.biased, made.weights)
    return (output, *present, shown[call.get("qk_matmul_output_mode", 0)])


def _bias(
    call: Call, query: Tensor, keys: int, mask: Tensor | None, offset: int | Tensor, lengths: Tensor | None
) -> Tensor | None:
    """What is added to the scores: 0 where a query may look, −∞ where not, or the caller's own numbers."""
    masks = []
    if mask is not None:
        bias = additive(mask, query)
        masks.append(functional.pad(bias, (0, keys - bias.shape[-1]), value=-math.inf))
    position = torch.arange(query.shape[2], device=query.device).reshape(-1, 1) + offset
    column = torch.arange(keys, device=query.device)
    left, right = call.get("left_window_size", -1), call.get("right_window_size", -1)
    right = 0 if call.get("is_causal", 0) else right
    if right >= 0:
        masks.append(column <= position + right)
    if left >= 0:
        masks.append(column >= position - left)
    if lengths is not None:
        masks.append(column < lengths.reshape(-1, 1, 1, 1))
    return total_bias(masks, query)


@operator("RotaryEmbedding")
def rotary_embedding(call: Call, x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None = None) -> Tensor:
    """Rotate pairs of features by an angle that grows with the position."""
    packed = x.ndim == 3
    heads = _split_heads(call, x, call.get("num_heads", 0)) if packed else x
    width = call.get("rotary_embedding_dim", 0) or heads.shape[-1]
    turned, rest = heads[..., :width], heads[..., width:]
    if positions is not None:
        cos = functional.embedding(positions, cos)
        sin = functional.embedding(positions, sin)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    if call.get("interleaved", 0):
        first, second = turned[..., 0::2], turned[..., 1::2]
    else:
        first, second = turned.chunk(2, dim=-1)
    real, imaginary = cos * first - sin * second, sin * first + cos * second
    if call.get("interleaved", 0):
        turned = torch.stack([real, imaginary], dim=-1).flatten(-2)
    else:
        turned = torch.cat([real, imaginary], dim=-1)
    made = torch.cat([turned, rest], dim=-1)
    return made.transpose(1, 2).reshape(x.shape) if packed else made
