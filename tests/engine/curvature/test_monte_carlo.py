"""Rounding of results that cancel between operators is in the certificate; decisions by data are not moved."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import mpmath  # type: ignore[import-untyped]
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import wsb
from wsb_engine.curvature.monte_carlo import MonteCarloArithmetic

SIZE = 2.0**-43
OUT = (0.3, -0.2, 0.1)
Y = np.array([0, 1, 2, 1])
NEAR_ONE = np.array([[1.0], [1.01], [0.97], [1.03]])
MILLISECONDS = 1.7e12 + np.array([[0.0, 3e7, 8e7], [1e7, 2e7, 9e7], [0.0, 5e7, 6e7], [2e7, 2.5e7, 7e7]])

EIGHTHS = np.random.default_rng(0).integers(-16, 17, (4, 8)) / 8


class Readout(nn.Module):
    """Logits that depend on three weights, through a feature of the input."""

    factor: Tensor

    def __init__(self, feature: Callable[[Tensor], Tensor], factor: float) -> None:
        super().__init__()
        self.register_buffer("factor", torch.tensor(factor, dtype=torch.float64))
        self.out = nn.Parameter(torch.tensor([OUT], dtype=torch.float64))
        self.feature = feature

    def forward(self, x: Tensor) -> Tensor:
        return self.feature(x * self.factor) @ self.out


def _normal_cdf(x: Any) -> Any:
    return mpmath.erfc(-x / mpmath.sqrt(2)) / 2


def _deviation(row: Sequence[Any]) -> Any:
    mean = mpmath.fsum(row) / len(row)
    return mpmath.sqrt(mpmath.fsum((number - mean) ** 2 for number in row) / len(row)) / 10**8


def _deviation_by_squares(x: Tensor) -> Tensor:
    return torch.sqrt((x * x).mean(1, keepdim=True) - x.mean(1, keepdim=True) ** 2) / 1e8


def _in_groups(x: Tensor) -> Tensor:
    images = (x + 2.0**20).view(-1, 2, 2, 2).contiguous(memory_format=torch.channels_last)
    return F.group_norm(images, 1)[:, :1, 0, 0]


def _standardised(row: Sequence[Any]) -> Any:
    mean = mpmath.fsum(row) / len(row)
    variance = mpmath.fsum((number - mean) ** 2 for number in row) / len(row)
    return (row[0] - mean) / mpmath.sqrt(variance + mpmath.mpf(1e-5))


FEATURES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Sequence[Any]], Any], float, np.ndarray]] = {
    "gelu": (F.gelu, lambda x: x[0] * _normal_cdf(x[0]), -5.0, NEAR_ONE),
    "gelu, flat": (F.gelu, lambda x: x[0] * _normal_cdf(x[0]), -9.5, NEAR_ONE),
    "gelu written out": (
        lambda x: x * (0.5 * (torch.erf(x / math.sqrt(2)) + 1)),
        lambda x: x[0] * _normal_cdf(x[0]),
        -6.0,
        NEAR_ONE,
    ),
    "normal cdf": (torch.special.ndtr, lambda x: _normal_cdf(x[0]), -6.0, NEAR_ONE),
    "1 - sigmoid": (lambda x: 1 - torch.sigmoid(x), lambda x: 1 / (1 + mpmath.exp(x[0])), 20.0, NEAR_ONE),
    "1 - 1 / (1 + exp)": (lambda x: 1 - 1 / (1 + torch.exp(-x)), lambda x: 1 / (1 + mpmath.exp(x[0])), 20.0, NEAR_ONE),
    "1 - tanh": (lambda x: 1 - torch.tanh(x), lambda x: 2 / (1 + mpmath.exp(2 * x[0])), 10.0, NEAR_ONE),
    "log(1 + exp)": (lambda x: torch.log(1 + torch.exp(x)), lambda x: mpmath.log1p(mpmath.exp(x[0])), -25.0, NEAR_ONE),
    "log softmax": (
        lambda x: -F.log_softmax(torch.cat([x, -x], 1), 1)[:, :1],
        lambda x: mpmath.log1p(mpmath.exp(-2 * x[0])),
        10.0,
        NEAR_ONE,
    ),
    "logsumexp": (
        lambda x: torch.logsumexp(torch.cat([x, torch.zeros_like(x)], 1), 1, keepdim=True),
        lambda x: mpmath.log1p(mpmath.exp(x[0])),
        -20.0,
        NEAR_ONE,
    ),
    "exp - 1": (lambda x: torch.exp(x) - 1, lambda x: mpmath.expm1(x[0]), 1e-6, NEAR_ONE),
    "in place": (lambda x: torch.tanh(x).mul_(-1).add_(1), lambda x: 2 / (1 + mpmath.exp(2 * x[0])), 10.0, NEAR_ONE),
    "root of a difference of squares": (_deviation_by_squares, _deviation, 1.0, MILLISECONDS),
    "group norm": (_in_groups, _standardised, 1.0, EIGHTHS),
}


def largest_eigenvalue(feature: Callable[[Sequence[Any]], Any], factor: float, x: np.ndarray) -> mpmath.mpf:
    """λ_max of H by the three weights: mean a² (diag p − p pᵀ)."""
    H = mpmath.zeros(3, 3)
    for row in x:
        a = feature([mpmath.mpf(float(number)) * factor for number in row])
        exponentials = [mpmath.exp(mpmath.mpf(weight) * a) for weight in OUT]
        p = [each / mpmath.fsum(exponentials) for each in exponentials]
        for i in range(3):
            for j in range(3):
                H[i, j] += a * a * (p[i] * (i == j) - p[i] * p[j]) / len(x)
    return max(mpmath.eigsy(H, eigvals_only=True))


@pytest.mark.parametrize("name", FEATURES)
def test_no_certificate_excludes_the_truth_where_results_cancel(name: str) -> None:
    feature, exact, factor, x = FEATURES[name]
    options = wsb.Options(dtype="float64", device="cpu", moments="none")
    report = wsb.analyze(wsb.from_module(Readout(feature, factor)), wsb.Batch(x, Y), options)
    with mpmath.workdps(60):
        truth = largest_eigenvalue(exact, factor, x)
        assert report.enclosure is not None
        assert mpmath.mpf(report.enclosure.lambda_max.lower) <= truth <= mpmath.mpf(report.enclosure.lambda_max.upper)
    gap = report.enclosure.lambda_max.relative_gap
    assert name == "gelu, flat" or (gap is not None and gap < 1e-2)


class Scaled(nn.Module):
    """Logits that depend on one weight, through a function with a small slope."""

    SCALE = 1e4

    def __init__(self, function: Callable[[Tensor], Tensor], weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float64))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.SCALE * self.function(x * self.weight) * torch.tensor([OUT], dtype=torch.float64)
        return z


SLOPES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Any], Any], float]] = {
    "x - tanh": (lambda x: x - torch.tanh(x), lambda x: x - mpmath.tanh(x), 1e-5),
    "x - sin": (lambda x: x - torch.sin(x), lambda x: x - mpmath.sin(x), 1e-5),
    "x / 4 - sigmoid": (
        lambda x: x / 4 + 0.5 - torch.sigmoid(x),
        lambda x: x / 4 + mpmath.mpf(0.5) - 1 / (1 + mpmath.exp(-x)),
        1e-4,
    ),
}


@pytest.mark.parametrize("name", SLOPES)
def test_no_certificate_excludes_the_truth_where_derivatives_cancel(name: str) -> None:
    function, exact, weight = SLOPES[name]
    options = wsb.Options(dtype="float64", device="cpu", moments="none")
    batch = wsb.Batch(NEAR_ONE, np.full((4, 3), 1 / 3))
    report = wsb.analyze(wsb.from_module(Scaled(function, weight)), batch, options)

    def loss(at: Any) -> Any:
        total = mpmath.mpf(0)
        for number in NEAR_ONE[:, 0]:
            z = [Scaled.SCALE * mpmath.mpf(factor) * exact(mpmath.mpf(float(number)) * at) for factor in OUT]
            total += mpmath.log(mpmath.fsum(map(mpmath.exp, z))) - mpmath.fsum(z) / 3
        return total / len(NEAR_ONE)

    with mpmath.workdps(80):
        step, at = mpmath.mpf(10) ** -25, mpmath.mpf(weight)
        truth = (loss(at + step) - 2 * loss(at) + loss(at - step)) / step**2
        assert report.enclosure is not None
        assert mpmath.mpf(report.enclosure.lambda_max.lower) <= truth <= mpmath.mpf(report.enclosure.lambda_max.upper)
    gap = report.enclosure.lambda_max.relative_gap
    assert gap is not None
    assert gap < 0.2


class Decides(nn.Module):
    """A layer of parameters that the data choose, by arithmetic on numbers at the edges of bins."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.bins = nn.Linear(1, 3), nn.Embedding(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        bins = torch.floor(x[:, 1:] / 0.5).long()
        places = torch.cumsum(torch.ones_like(x), 1).long()
        chosen = self.bins(bins[:, 0]) + self.bins(places[:, 1])
        masked = (1.0 - (x[:, :1] > 0).to(x.dtype)) * torch.finfo(x.dtype).min
        attended = torch.softmax(torch.cat([masked + self.head.bias[:1], x[:, :1]], 1), 1)[:, :1]
        z: Tensor = self.head(torch.tanh(x[:, :1])) + chosen + attended
        return z


def test_decisions_by_data_do_not_widen_the_enclosure() -> None:
    torch.manual_seed(0)
    x = np.array([[0.3, 1.5], [-0.2, 1.0], [0.9, 2.0], [0.4, 3.0]])
    options = wsb.Options(dtype="float64", device="cpu", moments="none")
    report = wsb.analyze(wsb.from_module(Decides().double()), wsb.Batch(x, Y), options)
    assert report.enclosure is not None
    assert report.enclosure.rounding is not None
    assert report.enclosure.rounding.slack <= 1e-11 * report.enclosure.lambda_max.upper
    assert not report.messages("rounding_in_part")


def arithmetic(seed: int = 0) -> MonteCarloArithmetic:
    return MonteCarloArithmetic(seed, SIZE, torch.device("cpu"))


def test_results_move_by_about_the_size_and_the_same_for_a_seed() -> None:
    x = torch.linspace(0.1, 3, 300_000, dtype=torch.float64)
    with arithmetic():
        moved = torch.exp(x)
    relative = (moved / torch.exp(x) - 1) / SIZE
    common = float(relative.mean())
    assert 0.01 < abs(common) <= math.sqrt(3)
    assert float((relative - common).abs().max()) <= math.sqrt(3) + 0.01
    assert float((relative - common).square().mean()) == pytest.approx(1, rel=0.01)
    with arithmetic():
        assert torch.equal(torch.exp(x), moved)
    with arithmetic(1):
        assert not torch.equal(torch.exp(x), moved)


EXACT: dict[str, Callable[[Tensor], Tensor]] = {
    "view": lambda x: x.view(-1),
    "transposed copy": lambda x: x.t().contiguous(),
    "concatenation": lambda x: torch.cat([x, -x]),
    "rectifier": torch.relu,
    "choice": lambda x: torch.where(x > 0, x, x.abs()),
    "written rows": lambda x: x.clone().index_put_((torch.tensor([0]),), x[1]),
    "slice assigned": lambda x: x.clone().fill_diagonal_(0.1),
    "largest": lambda x: x.amax(1),
    "pooling": lambda x: F.max_pool1d(x, 2),
    "padding": lambda x: F.pad(x, (1, 1)),
    "rows of a table": lambda x: F.embedding(torch.tensor([0, 2]), x),
    "shapes without numbers": lambda x: torch.zeros_like(torch.exp(torch.empty_like(x, device="meta")), device="cpu"),
    "single precision": lambda x: torch.exp(x.float()),
    "integers": lambda x: torch.floor(x) * 3 + torch.ones_like(x).cumsum(1),
    "halves": lambda x: torch.floor(x) / 2 + 0.5,
    "positions": lambda x: torch.arange(5, dtype=torch.float64) * 2,
}


@pytest.mark.parametrize("name", EXACT)
def test_what_does_not_round_does_not_move(name: str) -> None:
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with arithmetic():
        got = EXACT[name](x.clone())
    assert torch.equal(got, EXACT[name](x.clone()))


ROUNDING: dict[str, Callable[[Tensor], Tensor]] = {
    "product": lambda x: x @ x.t(),
    "sum in place": lambda x: x.clone().add_(0.1),
    "nearly saturated": lambda x: torch.tanh(x.sign() * 15),
    "error function of integers": lambda x: torch.erf(torch.full_like(x, 5)),
    "written through a view": lambda x: _through_a_view(x.clone()),
    "normalisation": lambda x: F.layer_norm(x, (6,)),
    "spectrum": lambda x: torch.fft.rfft(x).real,
    "third of integers": lambda x: torch.ones_like(x) / 3,
    "large integers": lambda x: torch.full_like(x, 3.0**30) * 3.0**10,
}


def _through_a_view(x: Tensor) -> Tensor:
    x[0].mul_(1.1)
    return x


@pytest.mark.parametrize("name", ROUNDING)
def test_what_may_round_moves(name: str) -> None:
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with arithmetic():
        got = ROUNDING[name](x.clone())
    expected = ROUNDING[name](x.clone())
    assert not torch.equal(got, expected)
    assert torch.allclose(got, expected, rtol=1e-11, atol=1e-11)


def test_saturated_results_move_by_a_few_units_in_the_last_place() -> None:
    x = torch.full((100,), 400.0, dtype=torch.float64)
    for function in (torch.tanh, torch.sigmoid, torch.erf):
        with arithmetic():
            moved = (function(x) - 1).abs()
        assert 2.0**-53 < float(moved.max()) <= 2.0**-48


def test_zeros_and_numbers_at_the_end_of_the_range_stay() -> None:
    x = torch.tensor([0.0, torch.finfo(torch.float64).max, -torch.inf], dtype=torch.float64)
    with arithmetic():
        assert torch.equal(x * 1.0, x)
