"""Constants that are computed rather than learned, told by their values.

Exporters fold what does not depend on the inputs: attention masks, sines and cosines of positions, distances. No
training run ends in such values, so they identify the constant wherever the file has lost its name.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_SWITCHED_OFF = -1e4
"""Masks use −∞, the lowest float, or −10000 and below; no trained weight comes near."""
_LEAST = 4
"""Elements, or independent equations, below which values prove nothing."""
_TOLERANCE = 1e-3
"""Relative; covers sines of large angles in float32, and learned values miss it by orders of magnitude."""
_ROWS = 64
"""Positions that are looked at."""


def switches_off(tensor: Tensor) -> bool:
    """Return whether some numbers are so low that they switch positions off before a softmax."""
    return bool((tensor <= _SWITCHED_OFF).any())


def is_mask(tensor: Tensor) -> bool:
    """Return whether a tensor only switches positions: very low numbers, or 0 and one other number (or twice it)."""
    if switches_off(tensor):
        return True
    if tensor.numel() < _LEAST or not bool((tensor == 0).any()):
        return False
    size = tensor.abs()
    largest = size.max()
    if not bool(largest > 0):
        return False
    return bool(((size == 0) | (size == largest) | (2 * size == largest)).all()) and not bool(
        (tensor > 0).any() & (tensor < 0).any()
    )


def is_grid(tensor: Tensor) -> bool:
    """Return whether the values are evenly spaced coordinates or indices, at least three different ones."""
    if tensor.numel() < _LEAST:
        return False
    values = torch.unique(tensor.double())
    if len(values) < 3 or not bool(torch.isfinite(values).all()):
        return False
    steps = values.diff()
    return float(steps.max() - steps.min()) <= 1e-5 * float(steps.mean())


def is_distance(tensor: Tensor) -> bool:
    """Return whether each matrix consists of small multiples of one number: distances times a slope, as in ALiBi."""
    if tensor.ndim < 2 or min(tensor.shape[-2:]) < 2 or tensor.numel() < 2 * _LEAST:
        return False
    matrices = tensor.reshape(-1, tensor.shape[-2] * tensor.shape[-1]).double()
    size = torch.where(matrices <= _SWITCHED_OFF, 0.0, matrices).abs()
    if not bool(torch.isfinite(size).all()):
        return False
    unit = torch.where(size > 0, size, torch.inf).amin(dim=1, keepdim=True)
    multiples = torch.where(size > 0, size / unit, 0.0)
    near = (multiples - multiples.round()).abs() <= _TOLERANCE * multiples.clamp(min=1)
    return bool(near.all()) and 2 <= float(multiples.max()) <= max(tensor.shape[-2:])


def is_sinusoidal(tensor: Tensor) -> bool:
    """Return whether a table holds sines or cosines of positions, along whichever axis these lie."""
    table = tensor.squeeze().double()
    if tensor.numel() < 2 * _LEAST or not 1 <= table.ndim <= 4 or not _varies(table):
        return False
    for axis, size in enumerate(table.shape):
        rows = table.movedim(axis, 0)[:_ROWS].reshape(min(size, _ROWS), -1)
        if _oscillates(rows) or _is_paired(rows):
            return True
    return False


def are_sine_and_cosine(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors lie on a circle, element by element."""
    return a.shape == b.shape and a.numel() >= _LEAST and _is_circle(a.double(), b.double())


def _varies(tensor: Tensor) -> bool:
    return bool((tensor != tensor.reshape(-1)[0]).any())


def _oscillates(rows: Tensor) -> bool:
    """Return whether x_{k+1} + x_{k−1} = 2 cos(w) x_k in every column that varies, for some w of the column."""
    positions, columns = rows.shape
    rows = rows[:, (rows != rows[0]).any(dim=0)]
    if positions < 4 or (positions - 3) * rows.shape[1] < _LEAST or 4 * rows.shape[1] < columns:
        return False
    middle, sides = rows[1:-1], rows[2:] + rows[:-2]
    norm = (middle * middle).sum(dim=0)
    twice = (middle * sides).sum(dim=0) / torch.where(norm > 0, norm, 1.0)
    size = float(rows.abs().max())
    return float((sides - twice * middle).abs().max()) <= _TOLERANCE * size and float(twice.abs().max()) <= 2 + 1e-3


def _is_paired(rows: Tensor) -> bool:
    """Return whether columns pair up as sine and cosine: next to each other, by halves, or by halves of halves."""
    rows = rows[(rows != 0).any(dim=1)]  # rows of zeros stand for padding and class tokens
    positions, columns = rows.shape
    if positions < 2 or columns < 2 or columns % 2 or positions * columns // 2 <= _LEAST:
        return False
    half, quarter = columns // 2, columns // 4
    layouts = [(rows[:, 0::2], rows[:, 1::2]), (rows[:, :half], rows[:, half:])]
    if columns % 4 == 0:
        parts = rows.reshape(positions, 2, 2, quarter)
        layouts.append((parts[:, :, 0].reshape(positions, half), parts[:, :, 1].reshape(positions, half)))
    return any(_is_circle(sine, cosine) for sine, cosine in layouts)


def _is_circle(a: Tensor, b: Tensor) -> bool:
    if not _varies(a.abs()):
        return False
    squares = a * a + b * b
    return float(squares.max() - squares.min()) <= _TOLERANCE * float(squares.max())


def on_circles(tensors: Sequence[Tensor]) -> list[bool]:
    """Return for each tensor of one shape whether another of them is its sine or cosine."""
    found = [False] * len(tensors)
    for first in range(len(tensors)):
        for second in range(first):
            if are_sine_and_cosine(tensors[first], tensors[second]):
                found[first] = found[second] = True
    return found
