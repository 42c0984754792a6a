"""G and H − G, against matrices by double backward."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import mpmath
import numpy as np
import pytest
import torch
from support.curvature import CLASSES, SAMPLES, Known, general, known, largest, mlp, perceptron
from support.forms import crossed, full
from torch import Tensor, nn

import wsb_engine as wsb
from wsb_engine.curvature import gauss_newton as module

NETWORKS = pytest.mark.parametrize("network", [mlp, general], ids=lambda network: network.__name__)


def part(given: Known, **options: object) -> wsb.report.GaussNewton:
    """Of an analysis of nothing else."""
    found = given.analyze(gauss_newton=True, moments="none", enclosure=False, **options).gauss_newton
    assert found is not None
    return found


@pytest.mark.parametrize(("network", "dtype"), crossed([mlp, general], ["float64", "float32"]))
def test_both_parts_are_enclosed(network: Callable[[], Known], dtype: str) -> None:
    given, gap = network(), 1e-5 if dtype == "float64" else 2e-2
    found = part(given, dtype=dtype)
    norm = float(torch.linalg.matrix_norm(given.hessian - given.gauss_newton, 2))
    for interval, value in ((found.lambda_max, largest(given.gauss_newton)), (found.remainder, norm)):
        assert interval is not None
        assert interval.lower - 1e-13 <= value <= interval.upper + 1e-13
        assert interval.upper - interval.lower <= gap * value


@NETWORKS
def test_the_eigenvalues_are_those_of_the_matrix(network: Callable[[], Known]) -> None:
    given = network()
    found = part(given)
    assert found.eigenvalues is not None
    values = torch.linalg.eigvalsh(given.gauss_newton).flip(0)[: len(found.eigenvalues)]
    assert (found.order, len(found.eigenvalues)) == (SAMPLES * CLASSES, min(SAMPLES * CLASSES, len(given.gradient)))
    torch.testing.assert_close(torch.tensor(found.eigenvalues, dtype=torch.float64), values, rtol=0, atol=1e-13)


@NETWORKS
def test_of_few_parameters_the_matrix_itself_is_solved(network: Callable[[], Known]) -> None:
    given = network()
    last = [name for name in given.places if name.endswith("bias")]
    found = part(given, parameters=tuple(last))
    index = torch.cat([given.places[name] for name in last])
    want = torch.linalg.eigvalsh(given.gauss_newton[index][:, index]).flip(0)
    assert found.eigenvalues is not None
    torch.testing.assert_close(torch.tensor(found.eigenvalues, dtype=torch.float64), want, rtol=0, atol=1e-13)


@pytest.mark.slow
def test_rows_that_do_not_fit_at_once_meet_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = part(general()).eigenvalues
    monkeypatch.setattr(module, "ENTRIES", 4 * CLASSES * len(general().gradient))
    assert part(general()).eigenvalues == pytest.approx(whole, rel=1e-12, abs=1e-15)


def test_beyond_the_largest_order_the_ends_are_still_certified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ORDER", SAMPLES * CLASSES - 1)
    found = part(mlp())
    assert found.eigenvalues is None
    assert found.lambda_max is not None


def test_the_trace_of_the_moments_is_the_sum_of_the_eigenvalues() -> None:
    report = mlp().analyze(gauss_newton=True)
    assert report.moments is not None
    assert report.gauss_newton is not None
    assert report.moments.gauss_newton_trace == pytest.approx(sum(report.gauss_newton.eigenvalues or []), rel=1e-12)


def test_of_a_linear_model_nothing_remains() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    options = wsb.Options(gauss_newton=True)
    report = wsb.analyze(wsb.from_module(torch.nn.Linear(3, 3).double()), wsb.Batch(x, y), options)
    assert report.gauss_newton is not None
    assert report.enclosure is not None
    assert report.gauss_newton.remainder is None or report.gauss_newton.remainder.upper < 1e-12
    assert report.gauss_newton.lambda_max is not None
    assert report.gauss_newton.lambda_max.lower <= report.enclosure.lambda_max.upper
    assert report.gauss_newton.lambda_max.upper >= report.enclosure.lambda_max.lower


def focal(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    p = z.softmax(1).gather(1, y.unsqueeze(1)).squeeze(1)
    return (-((1 - p) ** 2) * p.log()).mean()


def test_of_a_loss_that_is_not_convex_both_parts_are_certified_without_a_spectrum() -> None:
    torch.manual_seed(0)
    given = known(perceptron(), focal)
    found = part(given, loss="focal")
    norm = float(torch.linalg.matrix_norm(given.hessian - given.gauss_newton, 2))
    for interval, value in ((found.lambda_max, largest(given.gauss_newton)), (found.remainder, norm)):
        assert interval is not None
        assert interval.lower - 1e-13 <= value <= interval.upper + 1e-13
    assert found.eigenvalues is None


def test_positions_are_rows_of_the_matrix() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(3, 4, 2, dtype=torch.float64), torch.randint(3, (3, 4))
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 3)).double()
    options = wsb.Options(gauss_newton=True, moments="basis")
    report = wsb.analyze(wsb.from_module(module), wsb.Batch(x, y), options)
    assert report.gauss_newton is not None
    assert report.moments is not None
    assert report.gauss_newton.eigenvalues is not None
    assert (report.gauss_newton.order, len(report.gauss_newton.eigenvalues)) == (36, 21)
    assert sum(report.gauss_newton.eigenvalues) == pytest.approx(report.moments.gauss_newton_trace, rel=1e-11)


class Skipping(nn.Module):
    """No perceptron, because the inputs skip the hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(2, 2, bias=False), nn.Linear(2, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(torch.tanh(self.inner(x)) + x)
        return logits


@pytest.mark.parametrize("gamma", [0.5, 2.0, full(0.0), full(5.0)])
def test_a_sample_that_is_confidently_wrong_is_enclosed(gamma: float) -> None:
    torch.manual_seed(12)
    model, x = Skipping().double(), torch.tensor([[0.7, -0.4]], dtype=torch.float64)
    with torch.no_grad():
        model.out.weight.copy_(20 * torch.randn(3, 2))
    with mpmath.workdps(50):
        inner, out = (mpmath.matrix(layer.weight.tolist()) for layer in (model.inner, model.out))
        row = mpmath.matrix(x[0].tolist())
        tangent = (inner * row).apply(mpmath.tanh)
        z = list(out * (tangent + row))
        p = [mpmath.exp(v) / mpmath.fsum(map(mpmath.exp, z)) for v in z]
        u = [mpmath.mpf(j == 1) - p[j] for j in range(3)]
        complement, log = p[0] + p[2], mpmath.log(p[1])
        slope = gamma * complement ** (gamma - 1) * p[1] * log - complement**gamma
        bend = -gamma * (gamma - 1) * complement ** (gamma - 2) * log * p[1] ** 2
        bend += 2 * gamma * complement ** (gamma - 1) * p[1] + complement**gamma
        S = mpmath.matrix(3)
        for j, k in itertools.product(range(3), repeat=2):
            S[j, k] = (bend + slope) * u[j] * u[k] - slope * ((j == k) * p[j] - p[j] * p[k])
        J = mpmath.matrix(3, 4)
        for c, i, j in itertools.product(range(3), range(2), range(2)):
            J[c, 2 * i + j] = out[c, i] * (1 - tangent[i] ** 2) * row[j]
        truth = mpmath.eigsy(J.T * S * J, eigvals_only=True)[3]
    options = wsb.Options(
        loss="focal", focal_gamma=gamma, parameters=("inner.weight",), gauss_newton=True, dtype="float64", device="cpu"
    )
    found = wsb.analyze(wsb.from_module(model), wsb.Batch(x.numpy(), np.array([1])), options).gauss_newton
    assert found is not None
    assert found.lambda_max is not None
    assert complement > 1 - 1e-9
    assert found.lambda_max.lower <= truth <= found.lambda_max.upper
