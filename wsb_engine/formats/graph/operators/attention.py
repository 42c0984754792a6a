"""Attention, written out: torch's fused kernels have no second derivative on a CPU."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from wsb_engine.formats.graph.operators.registry import Call, operator


def _split_heads(call: Call, x: Tensor, heads: int) -> Tensor:
    """(N, T, H·d) → (N, H, T, d)."""
    if heads < 1 or x.shape[2] % heads:
        raise call.wrong(f"can't divide {x.shape[2]} features into {heads} heads")
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


@operator("Attention")
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
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scale = call.get("scale", 1.0 / math.sqrt(query.shape[-1]))
    raw = (query * math.sqrt(scale)) @ (key * math.sqrt(scale)).transpose(-1, -2)
    cap = call.get("softcap", 0.0)
    capped = torch.tanh(raw / cap) * cap if cap > 0 else raw
    bias = _bias(call, query, key.shape[2], mask, offset, lengths)
    biased = capped if bias is None else capped + bias
    weights = torch.softmax(biased, dim=-1)
    if bias is not None:  # a query that may look at nothing gives zeros, not NaN
        blind = torch.isneginf(bias).all(dim=-1, keepdim=True)
        safe = torch.where(blind, torch.zeros_like(biased), biased)
        weights = torch.where(blind, torch.zeros_like(biased), torch.softmax(safe, dim=-1))
    made = weights @ value
    if packed:
        made = made.transpose(1, 2).flatten(2)
    shown = {0: raw, 1: capped, 2: biased, 3: weights}[call.get("qk_matmul_output_mode", 0)]
    return (made, *present, shown)


def _bias(
    call: Call, query: Tensor, keys: int, mask: Tensor | None, offset: int | Tensor, lengths: Tensor | None
) -> Tensor | None:
    """What is added to the scores: 0 where a query may look, −∞ where not, or the caller's own numbers."""
    low = torch.full((), -math.inf, dtype=query.dtype, device=query.device)
    zero = torch.zeros((), dtype=query.dtype, device=query.device)
    parts = []
    if mask is not None:
        bias = torch.where(mask, zero, low) if mask.dtype == torch.bool else mask
        parts.append(functional.pad(bias, (0, keys - bias.shape[-1]), value=-math.inf))
    position = torch.arange(query.shape[2], device=query.device).reshape(-1, 1) + offset
    column = torch.arange(keys, device=query.device)
    left, right = call.get("left_window_size", -1), call.get("right_window_size", -1)
    right = 0 if call.get("is_causal", 0) else right
    if right >= 0:
        parts.append(torch.where(column <= position + right, zero, low))
    if left >= 0:
        parts.append(torch.where(column >= position - left, zero, low))
    if lengths is not None:
        parts.append(torch.where(column < lengths.reshape(-1, 1, 1, 1), zero, low))
    if not parts:
        return None
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


@operator("RotaryEmbedding")
def rotary_embedding(call: Call, x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None = None) -> Tensor:
    """Rotates pairs of features by an angle that grows with the position."""
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
