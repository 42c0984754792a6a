"""Constants that are told by their values: what was computed is recognised, and what was drawn or trained is not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from wsb_engine.formats.graph import tables


def angles(positions: int, size: int) -> Tensor:
    return torch.arange(positions)[:, None] * 10000.0 ** (-torch.arange(size) / size)


def grid_of_positions(rows: int, columns: int, size: int) -> Tensor:
    """The table of masked autoencoders: half of the columns for either coordinate, a row of zeros for the class."""
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    halves = [each.reshape(-1, 1) * 10000.0 ** (-torch.arange(size) / size) for each in (x, y)]
    parts = [function(half) for half in halves for function in (torch.sin, torch.cos)]
    return torch.cat([torch.zeros(1, 4 * size), torch.cat(parts, dim=1)])


ANGLES = angles(6, 4)
SINUSOIDAL = {
    "cosines alone": ANGLES.cos(),
    "sines alone, after a first position": angles(9, 4)[3:].sin(),
    "interleaved": torch.stack([ANGLES.sin(), ANGLES.cos()], dim=-1).reshape(6, 8),
    "by halves": torch.cat([ANGLES.sin(), ANGLES.cos()], dim=1),
    "by halves, scaled": 0.7 * torch.cat([ANGLES.sin(), ANGLES.cos()], dim=1),
    "repeated for rotations": torch.cat([ANGLES.cos(), ANGLES.cos()], dim=1)[None, None],
    "with tokens before the last axis but one": ANGLES.cos()[None, :, None, :],
    "a long table": torch.cat([angles(512, 64).sin(), angles(512, 64).cos()], dim=1),
    "a padding row": torch.cat([torch.zeros(1, 8), torch.cat([ANGLES.sin(), ANGLES.cos()], dim=1)]),
    "of two coordinates": grid_of_positions(3, 4, 2),
}


@pytest.mark.parametrize("table", SINUSOIDAL.values(), ids=SINUSOIDAL.keys())
def test_sines_of_positions_are_recognised(table: Tensor) -> None:
    assert tables.is_sinusoidal(table.float())


def alibi(heads: int, size: int, *, causal: bool) -> Tensor:
    distance = (torch.arange(size)[:, None] - torch.arange(size)).float()
    slopes = 2.0 ** -torch.arange(1, heads + 1)[:, None, None]
    bias = -slopes * distance.abs()
    return bias.masked_fill(distance < 0, -math.inf) if causal else bias


DRAWN = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in range(5) for shape in (
    (6, 8), (1, 5, 8), (2, 6, 6), (1, 1, 8), (8,), (4, 1, 1), (3, 7),
)]  # fmt: skip


@pytest.mark.parametrize("tensor", [*DRAWN, torch.ones(6, 8), torch.zeros(2, 6, 6), torch.randn(1, 8).expand(6, 8)])
def test_drawn_and_constant_numbers_are_no_table(tensor: Tensor) -> None:
    assert not tables.is_sinusoidal(tensor)
    assert not tables.is_mask(tensor)
    assert not tables.is_distance(tensor)
    assert not tables.is_grid(tensor)
    assert not tables.are_sine_and_cosine(tensor, torch.randn_like(tensor))


def test_sine_and_cosine_are_recognised_together_however_few_positions_there_are() -> None:
    few = angles(2, 4)
    assert tables.are_sine_and_cosine(few.cos(), few.sin())
    assert tables.on_circles([few.cos(), torch.ones(2, 4), few.sin()]) == [True, False, True]


@pytest.mark.parametrize("heads", [1, 2, 8])
@pytest.mark.parametrize("causal", [False, True])
def test_distances_times_a_slope_are_recognised(heads: int, causal: bool) -> None:
    assert tables.is_distance(alibi(heads, 6, causal=causal))


@pytest.mark.parametrize(
    "mask",
    [
        torch.full((4, 4), -math.inf).triu(1),
        torch.full((4, 4), torch.finfo(torch.float32).min).triu(1),
        torch.full((4, 4), -100.0).triu(1),
        torch.full((4, 4), -10000.0).triu(1),
        torch.ones(4, 4).tril(),
        torch.full((4, 4), -100.0).triu(1) + torch.full((4, 4), -100.0).triu(2),
    ],
)
def test_masks_are_recognised(mask: Tensor) -> None:
    assert tables.is_mask(mask)


@pytest.mark.parametrize("grid", [torch.arange(5.0), torch.linspace(-1, 1, 7).expand(7, 7), torch.arange(8.0) / 8])
def test_coordinates_are_recognised(grid: Tensor) -> None:
    assert tables.is_grid(grid)
