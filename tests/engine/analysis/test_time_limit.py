"""What a short time limit leaves: λ_max comes first. The clock counts products, so that no machine is too slow."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from support.eager import eager_hessian, randomised
from torch import Tensor, nn

import wsb_engine as wsb
from wsb_engine.analysis.rounding import LEAST_DIFFERENCES, MOVED, PERTURBATIONS
from wsb_engine.curvature.closed_form.mlp import Network
from wsb_engine.curvature.closed_form.sums import TileSource
from wsb_engine.curvature.products.stepping import SteppingProduct

PRODUCT = 1e4
"""Seconds that a product takes by this clock; all else takes none beside it."""
X = torch.randn(12, 1, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.arange(12) % 3


class Clock:
    """Time in products."""

    def __init__(self) -> None:
        self.products, self._began = 0.0, time.perf_counter()

    def seconds(self) -> float:
        return self._began + PRODUCT * self.products


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    counting, product = Clock(), SteppingProduct.__call__

    def counted(self: SteppingProduct, V: Tensor) -> Tensor:
        image = product(self, V)
        counting.products += V.shape[1]
        return image

    monkeypatch.setattr(SteppingProduct, "__call__", counted)
    monkeypatch.setattr(time, "perf_counter", counting.seconds)
    return counting


def convolution() -> nn.Module:
    return randomised(nn.Sequential(nn.Conv2d(1, 3, 3), nn.GELU(), nn.Flatten(), nn.Linear(27, 3)))


def perceptron() -> nn.Module:
    return randomised(nn.Sequential(nn.Flatten(), nn.Linear(25, 8), nn.Tanh(), nn.Linear(8, 3)))


def analysed(module: nn.Module, products: float, **options: Any) -> wsb.Report:
    options = {"moments": "none", "ends": "largest", "time_limit": products * PRODUCT, **options}
    return wsb.analyze(wsb.from_module(module), wsb.Batch(X, Y), wsb.Options.model_validate(options))


def enclosing(report: wsb.Report) -> int:
    """Products of an enclosure that ran out of time."""
    assert report.enclosure is not None
    assert report.enclosure.stopped_by == "time"
    assert report.products is not None
    return report.products["enclosure"]


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("limit", [12, 24])
def test_most_of_a_short_time_goes_to_the_largest_eigenvalue(limit: int) -> None:
    module = convolution()
    report = analysed(module, limit)
    assert enclosing(report) >= limit / 2
    assert report.messages("rounding_cut")
    found = report.enclosure
    assert found is not None
    truth = float(torch.linalg.eigvalsh(eager_hessian(module, X, Y))[-1])
    assert found.lambda_max.lower <= truth <= found.lambda_max.upper


@pytest.mark.usefixtures("clock")
def test_what_rounding_lacks_follows_after_the_enclosure_if_there_is_time() -> None:
    report = analysed(convolution(), 30, max_products=4)
    assert report.enclosure is not None
    assert report.enclosure.stopped_by == "products"
    assert report.messages("rounding_cut")
    assert not report.messages("time_limit")
    assert report.products is not None
    assert report.products["rounding"] >= 4 * PERTURBATIONS + 3 * MOVED  # along a random vector and two Ritz vectors


@pytest.mark.usefixtures("clock")
def test_the_slack_of_fewer_perturbations_is_wider() -> None:
    module = convolution()
    few, all_ = (analysed(module, limit, relative_gap=0.9).enclosure for limit in (8, 1000))
    assert few is not None
    assert all_ is not None
    assert few.rounding_slack > 2 * all_.rounding_slack


@pytest.mark.usefixtures("clock")
def test_an_ample_time_limit_changes_nothing() -> None:
    module = convolution()
    limited, free = analysed(module, 1000), analysed(module, 1000, time_limit=None)
    assert limited.enclosure == free.enclosure
    assert limited.warnings == free.warnings


@pytest.mark.usefixtures("clock")
def test_in_single_precision_too() -> None:
    module = convolution()
    report = analysed(module, 36, dtype="float32", relative_gap=1e-9)
    assert enclosing(report) >= 12
    assert report.products is not None
    assert 2 * LEAST_DIFFERENCES <= report.products["rounding"] < 20
    assert report.messages("rounding_cut")
    assert report.enclosure is not None
    truth = float(torch.linalg.eigvalsh(eager_hessian(module, X, Y))[-1])
    assert report.enclosure.lambda_max.lower <= truth <= report.enclosure.lambda_max.upper


def test_a_proof_that_takes_too_long_becomes_a_measurement(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "proven" in str(analysed(perceptron(), 1000).enclosure)

    def slow(net: Network, source: TileSource, weights: Tensor, *, memory: int, scales: object) -> None:
        for row in range(len(weights)):
            source(row, row + 1)
            clock.products += 30

    monkeypatch.setattr("wsb_engine.analysis.rounding.running_error", slow)
    report = analysed(perceptron(), 100)
    assert report.enclosure is not None
    assert report.enclosure.rounding is not None
    assert report.enclosure.rounding.how == "measured"
    assert any("proof" in message for message in report.messages("rounding_cut"))


@pytest.mark.slow
def test_blocks_that_the_time_does_not_reach_are_left_open_and_the_others_stay(clock: Clock) -> None:
    options = {"max_products": 8, "layers": "certified"}
    whole = analysed(convolution(), 900, **options)
    assert whole.products is not None
    assert whole.layers is not None
    assert None not in [layer.lambda_max for layer in whole.layers]
    clock.products = 0.0
    cut = analysed(convolution(), sum(whole.products.values()) - 3, **options)
    assert cut.layers is not None
    assert [layer.lambda_max is None for layer in cut.layers] == [False, True]
    assert "without λ_max of all blocks" in cut.messages("time_limit")[0]
