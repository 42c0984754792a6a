"""No way of multiplying writes into the columns it is given, and none depends on what was multiplied before."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from support.forms import crossed, full
from torch import Tensor, nn

import wsb_engine as wsb
from wsb_engine.analysis.members import Devices
from wsb_engine.analysis.monitor import Monitor
from wsb_engine.analysis.problem import Problem, pose
from wsb_engine.curvature.products.autodiff import AutodiffProduct, HessianProduct
from wsb_engine.curvature.products.linearized import LinearizedProduct
from wsb_engine.curvature.team import SplitProduct

WAYS: dict[str, Callable[[Problem, int], HessianProduct]] = {
    "by hand": lambda problem, columns: problem.hessian_product(columns),
    "from scratch": lambda problem, columns: AutodiffProduct(problem.objective, columns),
    "linearised": lambda problem, columns: LinearizedProduct(problem.objective, columns),
    "split": lambda problem, columns: SplitProduct(
        problem.objective, columns, Devices(problem, [torch.device("cpu")] * 2), problem.count
    ),
}
SUBSETS = [("*",), ("*bias",), ("0.weight", "2.bias"), ("*", "!0.weight"), ("2.weight",)]


def posed(samples: int, parameters: tuple[str, ...], dtype: str, classes: int, memory: int) -> Problem:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, classes)).double()
    rng = np.random.default_rng(0)
    batch = wsb.Batch(rng.normal(size=(samples, 3)), rng.integers(0, max(classes, 2), samples))
    options = wsb.Options(parameters=parameters, dtype=dtype, memory_limit=memory)
    return pose(wsb.from_module(module), batch, options, Monitor(options, None, 0.0))


@pytest.mark.parametrize("classes", [full(1), 3])
@pytest.mark.parametrize(("parameters", "dtype", "samples"), crossed(SUBSETS, ("float64", "float32"), (7, 1, 2)))
@pytest.mark.parametrize("way", WAYS)
def test_columns_are_left_alone_and_products_repeat(
    way: str, parameters: tuple[str, ...], samples: int, dtype: str, classes: int
) -> None:
    problem = posed(samples, parameters, dtype, classes, 1 << 30)
    if way == "linearised" and samples == 1:
        pytest.skip("one sample is never linearised")
    P = problem.objective.parameters
    for columns in {1, min(3, P)}:
        product = WAYS[way](problem, columns)
        V = torch.randn(P, columns, generator=torch.manual_seed(1), dtype=torch.float64).to(problem.objective.dtype)
        before = V.clone()
        first = product(V).clone()
        assert torch.equal(V, before)
        product(torch.ones_like(V))
        assert torch.equal(product(V), first)
        for i in range(columns):
            want = problem.objective.twice_backward(before[:, i])
            scale = float(want.abs().max()) + 1e-30
            unit = torch.finfo(problem.objective.dtype).eps
            torch.testing.assert_close(first[:, i], want, rtol=0, atol=1e4 * unit * scale)


def test_a_last_chunk_of_one_sample_is_no_exception() -> None:
    """With so little memory, chunks of some samples leave one over."""
    problem = posed(9, ("*bias",), "float64", 3, 1 << 20)
    product = problem.hessian_product(1)
    way = product.way  # type: ignore[attr-defined]
    way._rows, way._cached = 4, None
    v = torch.randn(problem.objective.parameters, 1, dtype=torch.float64)
    before = v.clone()
    found = product(v)
    assert torch.equal(v, before)
    torch.testing.assert_close(found[:, 0], problem.objective.twice_backward(v[:, 0]), rtol=1e-12, atol=1e-14)


def test_products_of_recurrent_layers_follow_their_parameters() -> None:
    """Their weights are kept in a list besides, which must not be what is multiplied by."""

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.body, self.out = nn.GRU(2, 3, batch_first=True), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            z: Tensor = self.out(self.body(x)[0][:, -1])
            return z

    module, rng = Last().double(), np.random.default_rng(0)
    batch = wsb.Batch(rng.normal(size=(5, 4, 2)), rng.integers(0, 2, 5))
    report = wsb.analyze(wsb.from_module(module), batch, wsb.Options(parameters=("body.*",), spectrum="dense"))
    assert report.spectrum is not None
    assert report.spectrum.eigenvalues[0] > 1e-4
