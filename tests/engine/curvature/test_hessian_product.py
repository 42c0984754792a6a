"""Hessian-vector products, by hand and by automatic differentiation, against the dense Hessian."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.golden import NAMES, Golden
from torch import Tensor, nn

import wsb_engine as wsb
from wsb_engine.curvature.hessian_product import AutodiffProduct, Objective
from wsb_engine.curvature.mlp_product import MLPProduct
from wsb_engine.problem import Problem, pose
from wsb_engine.run import Run


def problem(classifier: wsb.Classifier, batch: wsb.Batch, **options: object) -> Problem:
    chosen = wsb.Options(**options)
    return pose(classifier, batch, chosen, Run(chosen, None, 0.0))


def golden(name: str, **options: object) -> Problem:
    case = Golden(name)
    return problem(wsb.load_model(case.onnx()), wsb.Batch(case.x, case.y), **options)


def dense(objective: Objective) -> Tensor:
    """The Hessian of the whole batch's loss by torch.func.hessian."""
    loss = objective.chunk_loss(slice(0, len(objective.targets.weights)))
    return torch.func.hessian(lambda flat: loss(objective.unflatten(flat)))(objective.flatten(objective.selected))


def columns(parameters: int) -> Tensor:
    return torch.randn(parameters, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("name", NAMES)
def test_both_products_equal_the_dense_hessian(name: str) -> None:
    posed = golden(name)
    H = dense(posed.objective)
    V = columns(len(H))
    by_hand = posed.hessian_product()
    assert isinstance(by_hand, MLPProduct)
    for product in (by_hand, AutodiffProduct(posed.objective)):
        torch.testing.assert_close(product(V), H @ V, rtol=1e-11, atol=1e-13 * float(H.abs().max()))


@pytest.mark.parametrize(
    "patterns", [("w1", "b1"), ("w0",), ("b*",), ("w*",), ("!w1",), ("!b0",), ("b0", "w2"), ("w1", "b2")]
)
def test_products_of_a_subset_equal_the_block_of_the_hessian(patterns: tuple[str, ...]) -> None:
    posed = golden("deep_tanh", parameters=patterns)
    H = dense(posed.objective)
    V = columns(len(H))
    for product in (posed.hessian_product(), AutodiffProduct(posed.objective)):
        torch.testing.assert_close(product(V), H @ V, rtol=1e-11, atol=1e-13)


def test_ragged_chunks_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    posed = golden("deep_tanh")
    H = dense(posed.objective)
    V = columns(len(H))
    monkeypatch.setattr("wsb_engine.curvature.hessian_product.PRODUCT_SAMPLES", 4)
    torch.testing.assert_close(AutodiffProduct(posed.objective)(V), H @ V, rtol=1e-11, atol=1e-13)
    tight = replace(posed, memory=1 << 16).hessian_product()
    assert isinstance(tight, MLPProduct)
    torch.testing.assert_close(tight(V), H @ V, rtol=1e-11, atol=1e-13)


def test_the_gradient_is_that_of_the_weighted_loss() -> None:
    posed = golden("gelu_soft_labels")
    loss = posed.objective.chunk_loss(slice(0, 10))
    want = torch.func.grad(lambda flat: loss(posed.objective.unflatten(flat)))(
        posed.objective.flatten(posed.objective.selected)
    )
    torch.testing.assert_close(posed.objective.gradient(), want, rtol=1e-12, atol=1e-15)


def test_a_convolutional_network_has_products_too() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)).double()
    x = torch.randn(6, 1, 3, 3, dtype=torch.float64)
    posed = problem(wsb.from_module(module), wsb.Batch(x, torch.tensor([0, 1, 2, 0, 1, 2])))
    H = dense(posed.objective)
    V = columns(len(H))
    product = posed.hessian_product()
    assert isinstance(product, AutodiffProduct)
    torch.testing.assert_close(product(V), H @ V, rtol=1e-11, atol=1e-13)
