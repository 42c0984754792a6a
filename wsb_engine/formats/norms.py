"""Norms and divisions by them, with torch's derivatives where those are a matter of convention.

At a zero vector a norm has no derivative. torch's own takes 0 there, to every order; √(Σ x²) written out multiplies 0
by ∞ in forward mode.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def vector_norm(x: Tensor, order: float, dims: Sequence[int], *, keepdim: bool = False) -> Tensor:
    """‖x‖_p over some axes."""
    norm: Tensor = torch.linalg.vector_norm(x, order, list(dims), keepdim=keepdim)
    return norm


def normalised(x: Tensor, norm: Tensor) -> Tensor:
    """x / norm, and x itself where the norm is 0: no branch divides by 0."""
    return x / torch.where(norm == 0, torch.ones_like(norm), norm)


def root(x: Tensor, exponent: float | Tensor) -> Tensor:
    """x^exponent of sums of squares or powers, which is a norm: with slope 0 at 0."""
    zero = x == 0
    return torch.where(zero, torch.zeros_like(x), torch.where(zero, torch.ones_like(x), x).pow(exponent))
