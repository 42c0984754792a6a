"""Norms and divisions by them, with torch's derivatives where those are a matter of convention.

At a zero vector a norm has no derivative. torch's own takes 0 there, to every order; √(Σ x²) written out multiplies 0
by ∞.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_SURE = (0, 1, 2, math.inf, -math.inf)
"""Orders for which all of torch's derivatives at 0 are finite."""


def vector_norm(
    x: Tensor,
    order: float = 2,
    dim: int | Sequence[int] | None = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """‖x‖_p over some axes, all of them by default; as ``torch.linalg.vector_norm``."""
    if order in _SURE:
        return _vector_norm(x, order, dim, keepdim, dtype)
    axes = [dim] if isinstance(dim, int) else range(x.ndim) if dim is None else dim
    zero = (x == 0).all(list(axes), keepdim=True)
    some = _vector_norm(torch.where(zero, torch.ones_like(x), x), order, dim, keepdim, dtype)
    return torch.where(zero.reshape(some.shape), torch.zeros_like(some), some)


def _vector_norm(
    x: Tensor, order: float, dim: int | Sequence[int] | None, keepdim: bool, dtype: torch.dtype | None
) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, order, dim, keepdim, dtype=dtype)
    return norm


def cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: object = None) -> Tensor:
    """Return the norms of all differences of rows, as ``torch.cdist``: (…, P, D), (…, R, D) → (…, P, R).

    Args:
        x1: The first rows.
        x2: The second rows.
        p: Order of the norm.
        compute_mode: How torch computes it, which changes nothing but rounding.
    """
    return vector_norm(x1.unsqueeze(-2) - x2.unsqueeze(-3), p, -1)


def normalised(x: Tensor, norm: Tensor) -> Tensor:
    """x / norm, and x itself where the norm is 0: no branch divides by 0."""
    return x / torch.where(norm == 0, torch.ones_like(norm), norm)


def weight_norm(direction: Tensor, size: Tensor, dim: int = 0) -> Tensor:
    """Return size · direction / ‖direction‖ for each slice along an axis, or for the whole tensor if it is −1.

    Written out because the second derivative of torch's function is not symmetric.
    """
    others = None if dim == -1 else [axis for axis in range(direction.ndim) if axis != dim]
    return direction * (size / vector_norm(direction, 2, others, others is not None))


def root(x: Tensor, exponent: float | Tensor) -> Tensor:
    """x^exponent of sums of squares or powers, which is a norm: with slope 0 at 0."""
    zero = x == 0
    return torch.where(zero, torch.zeros_like(x), torch.where(zero, torch.ones_like(x), x).pow(exponent))
