"""Normalisations, written out so that they have derivatives of every order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def by_channel(parameter: Tensor, x: Tensor) -> Tensor:
    """(C,) → (C, 1, …), to broadcast against x of shape (N, C, …)."""
    return parameter.reshape(-1, *[1] * (x.ndim - 2))


def affine(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """x · scale + shift, either of which may be left out."""
    x = x if scale is None else x * scale
    return x if shift is None else x + shift


def affine_by_channel(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """Return x · scale + shift with a scale and a shift for each channel of x, (N, C, …)."""
    return affine(x, *(None if each is None else by_channel(each, x) for each in (scale, shift)))


def standardised(x: Tensor, dims: Sequence[int], epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """(x − mean) / √(variance + ε) over some axes, the mean, and the factor 1/√(variance + ε)."""
    axes = list(dims)
    mean = x.mean(dim=axes, keepdim=True)
    centred = x - mean
    factor = torch.rsqrt(centred.square().mean(dim=axes, keepdim=True) + epsilon)
    return centred * factor, mean, factor


def layer_norm(x: Tensor, axes: int, scale: Tensor | None, shift: Tensor | None, epsilon: float) -> Tensor:
    """Over the last ``axes`` axes."""
    return affine(standardised(x, range(-axes, 0), epsilon)[0], scale, shift)


def rms_norm(x: Tensor, axes: int, scale: Tensor | None, epsilon: float) -> Tensor:
    """x / √(mean x² + ε) · scale over the last ``axes`` axes."""
    square = x.square().mean(dim=list(range(-axes, 0)), keepdim=True)
    return affine(x * torch.rsqrt(square + epsilon), scale, None)


def instance_norm(x: Tensor, scale: Tensor | None, shift: Tensor | None, epsilon: float) -> Tensor:
    """Over all axes but those of samples and channels."""
    return affine_by_channel(standardised(x, range(2, x.ndim), epsilon)[0], scale, shift)


def grouped(x: Tensor, groups: int, epsilon: float) -> Tensor:
    """x of shape (N, C, …), standardised over each group of channels: (N, groups, C/groups · …)."""
    return standardised(x.reshape(x.shape[0], groups, -1), [2], epsilon)[0]


def group_norm(x: Tensor, groups: int, scale: Tensor | None, shift: Tensor | None, epsilon: float) -> Tensor:
    """Over each group of channels, with a scale and a shift for each channel."""
    return affine_by_channel(grouped(x, groups, epsilon).reshape(x.shape), scale, shift)


def batch_norm(
    x: Tensor, mean: Tensor, variance: Tensor, scale: Tensor | None, shift: Tensor | None, epsilon: float
) -> Tensor:
    """As in inference: with the running statistics of each channel."""
    factor = affine(torch.rsqrt(variance + epsilon), scale, None)
    return affine_by_channel(x - by_channel(mean, x), factor, shift)
