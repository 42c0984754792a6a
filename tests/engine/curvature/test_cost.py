"""What a sample is taken to cost in memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import wsb_engine as wsb
from wsb_engine.analysis.monitor import Monitor
from wsb_engine.analysis.problem import Problem, pose
from wsb_engine.curvature.cost import WORKING_SHARE

MEMORY = 8 << 20


def posed(module: nn.Module, dtype: str) -> Problem:
    x = torch.randn(40, 6, 10, 10, generator=torch.Generator().manual_seed(0))
    options = wsb.Options(device="cpu", dtype=dtype, memory_limit=MEMORY)
    return pose(wsb.from_module(module), wsb.Batch(x, torch.arange(40) % 2), options, Monitor(options, None, 0.0))


class Mean(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return z.mean(dim=(2, 3))


def network(first: nn.Module) -> nn.Module:
    return nn.Sequential(first, Mean())


@pytest.mark.parametrize(
    ("first", "unfolded"),
    [
        (nn.Conv2d(6, 2, 5, padding=2), 6 * 25 * 100),
        (nn.Conv2d(6, 2, 5, groups=2), 3 * 25 * 36),
        (nn.ConvTranspose2d(6, 2, 3), 2 * 9 * 100),
        (nn.Conv2d(6, 2, 1), 0),
    ],
)
def test_the_patches_that_a_convolution_unfolds_count(first: nn.Module, unfolded: int) -> None:
    footprint = posed(network(first), "float64").footprint
    assert footprint.unfolded == 8 * unfolded
    assert footprint.held == footprint.bytes + 8 * unfolded


def test_convolutions_in_single_precision_unfold_nothing_but_in_their_checks() -> None:
    single, double = (posed(network(nn.Conv2d(6, 2, 5)), dtype).footprint for dtype in ("float32", "float64"))
    assert single.held == single.bytes
    assert single.unfolded == double.unfolded > 0
    assert double.held <= single.in_double().held < 1.1 * double.held  # the loss is in float64 in both


def test_checks_of_float32_in_float64_stay_within_their_share_of_the_memory_limit() -> None:
    single, double = (
        posed(network(nn.Conv2d(6, 2, 9, padding=4)), dtype).objective for dtype in ("float32", "float64")
    )
    assert single.in_double().fits <= double.fits < single.fits // 2


def test_a_chunk_of_a_wide_kernel_stays_within_its_share_of_the_memory_limit() -> None:
    problem = posed(network(nn.Conv2d(6, 2, 9, padding=4)), "float64")
    patches = 8 * 6 * 81 * 100
    chunk = next(problem.objective.chunks())
    assert 0 < (chunk.stop - chunk.start) * patches <= WORKING_SHARE * MEMORY
    assert chunk.stop < 40
