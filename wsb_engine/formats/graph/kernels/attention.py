"""Attention, written out: torch's fused kernels have no second derivative on a CPU."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Attention:
    """softmax(scores + bias) V, and what is computed on the way."""

    output: Tensor
    """(…, T, d_v)."""
    raw: Tensor
    """Q Kᵀ·scale, (…, T, S)."""
    capped: Tensor
    biased: Tensor
    weights: Tensor


def attend(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, *, scale: float | None = None, cap: float = 0.0
) -> Attention:
    """Scaled dot-product attention over the last two axes.

    Args:
        query: Shape (…, T, d).
        key: Shape (…, S, d).
        value: Shape (…, S, d_v).
        bias: Added to the scores, (…, T, S); a query whose row is −∞ throughout gives zeros, not NaN.
        scale: Factor of the scores, 1/√d by default.
        cap: Bound of the scores, approached by a tanh; 0 for none.
    """
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    root = math.sqrt(abs(factor))  # on both sides, as ONNX and torch do against overflow
    raw = (query * math.copysign(root, factor)) @ (key * root).transpose(-2, -1)
    capped = torch.tanh(raw / cap) * cap if cap > 0 else raw
    if bias is None:
        weights = torch.softmax(capped, -1)
        return Attention(weights @ value, raw, capped, capped, weights)
    biased = capped + bias
    blind = torch.isneginf(bias).all(-1, keepdim=True)
    seen = torch.softmax(torch.where(blind, torch.zeros_like(biased), biased), -1)
    weights = torch.where(blind, torch.zeros_like(biased), seen)
    return Attention(weights @ value, raw, capped, biased, weights)


def additive(mask: Tensor, like: Tensor) -> Tensor:
    """Return a mask as a bias: 0 where a boolean one is true, −∞ elsewhere; any other is a bias already."""
    if mask.dtype != torch.bool:
        return mask
    return torch.where(mask, like.new_zeros(()), like.new_full((), -math.inf))


def total_bias(masks: Sequence[Tensor], like: Tensor) -> Tensor | None:
    """Return the sum of masks as biases; None if there are none."""
    return functools.reduce(torch.add, [additive(mask, like) for mask in masks]) if masks else None


def shared_heads(query: Tensor, key: Tensor) -> Tensor:
    """Keys or values (…, heads, S, d), each head repeated for the group of query heads that share it."""
    groups = query.shape[-3] // key.shape[-3]
    return key.repeat_interleave(groups, -3) if groups > 1 else key
