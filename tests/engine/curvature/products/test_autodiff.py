"""Hessian-vector products, by hand and by automatic differentiation, against the dense Hessian."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.forms import crossed, thinned
from support.golden import NAMES, Golden
from torch import Tensor, nn

import wsb_engine as wsb
from wsb_engine.analysis.monitor import Monitor
from wsb_engine.analysis.problem import BLOCK_SHARE, Problem, pose
from wsb_engine.curvature.cost import Footprint
from wsb_engine.curvature.products.autodiff import COLUMNS, AutodiffProduct, HessianProduct, Objective
from wsb_engine.curvature.products.linearized import LinearizedProduct, pays
from wsb_engine.curvature.products.mlp import MLPProduct
from wsb_engine.curvature.products.stepping import SteppingProduct
from wsb_engine.curvature.threads import _sum


def problem(classifier: wsb.Classifier, batch: wsb.Batch, **options: object) -> Problem:
    chosen = wsb.Options(**options)
    return pose(classifier, batch, chosen, Monitor(chosen, None, 0.0))


def golden(name: str, **options: object) -> Problem:
    case = Golden(name)
    return problem(wsb.load_model(case.onnx()), wsb.Batch(case.x, case.y), **options)


def way(posed: Problem, columns: int = COLUMNS) -> HessianProduct:
    """How a problem's product multiplies at first."""
    product = posed.hessian_product(columns)
    assert isinstance(product, SteppingProduct)
    return product.way


def dense(objective: Objective) -> Tensor:
    """The Hessian of the whole batch's loss by torch.func.hessian."""
    loss = objective.chunk_loss(slice(0, len(objective.targets.weights)))
    return torch.func.hessian(lambda flat: loss(objective.unflatten(flat)))(objective.flatten(objective.selected))


def columns(parameters: int) -> Tensor:
    return torch.randn(parameters, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("name", thinned(NAMES, 5))
def test_both_products_equal_the_dense_hessian(name: str) -> None:
    posed = golden(name)
    H = dense(posed.objective)
    V = columns(len(H))
    by_hand = way(posed)
    assert isinstance(by_hand, MLPProduct)
    for product in (by_hand, AutodiffProduct(posed.objective)):
        torch.testing.assert_close(product(V), H @ V, rtol=1e-11, atol=1e-13 * float(H.abs().max()))
    twice = posed.objective.twice_backward(V[:, 0].contiguous())
    torch.testing.assert_close(twice, H @ V[:, 0], rtol=1e-11, atol=1e-13 * float(H.abs().max()))


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
    monkeypatch.setattr("wsb_engine.curvature.products.autodiff.PRODUCT_SAMPLES", 4)
    torch.testing.assert_close(AutodiffProduct(posed.objective)(V), H @ V, rtol=1e-11, atol=1e-13)
    tight = way(replace(posed, memory=1 << 16))
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
    product = way(posed)
    assert isinstance(product, AutodiffProduct)
    torch.testing.assert_close(product(V), H @ V, rtol=1e-11, atol=1e-13)


class Encoder(nn.Module):
    """Attention and layer normalisation, whose kernels are the ones without reliable second derivatives."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(4, 2, 6, activation="gelu", batch_first=True, dropout=0.0)
        self.body, self.out = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.out(self.body(x).mean(dim=1))
        return z


def test_products_of_a_transformer_equal_differences_of_its_gradient() -> None:
    x = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    posed = problem(wsb.from_module(Encoder().double()), wsb.Batch(x, torch.tensor([0, 1, 2, 0, 1])))
    objective, step = posed.objective, 1e-5
    v = columns(objective.parameters)[:, 0]
    flat = objective.flatten(objective.selected)

    def gradient(sign: float) -> Tensor:
        return replace(objective, selected=objective.unflatten(flat + sign * step * v)).gradient()

    want = (8 * (gradient(1) - gradient(-1)) - (gradient(2) - gradient(-2))) / (12 * step)
    for product in (AutodiffProduct(objective, columns=1), LinearizedProduct(objective)):
        torch.testing.assert_close(product.vector(v), want, rtol=1e-7, atol=1e-8)
    block = AutodiffProduct(objective)(columns(objective.parameters))
    torch.testing.assert_close(block[:, 0], want, rtol=1e-7, atol=1e-8)


class Unused(nn.Module):
    """A network with a layer that the logits do not depend on, and one in which they are affine."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.idle, self.last = nn.Linear(4, 3), nn.Linear(2, 2), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.last(torch.sigmoid(self.first(x)).square())
        return z


FORWARD: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, Any]]] = {
    "encoder": (Encoder, (3, 4), {}),
    "convolution": (lambda: nn.Sequential(nn.Conv2d(1, 2, 2), nn.GELU(), nn.Flatten(), nn.Linear(8, 3)), (1, 3, 3), {}),
    "parameters that do nothing": (Unused, (4,), {}),
    "a layer alone": (Unused, (4,), {"parameters": ("last.*",)}),
    "nothing that the logits depend on": (Unused, (4,), {"parameters": ("idle.*",)}),
    "coupled": (lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False)), (4,), {}),
}
"""Network, shape of an input, and options."""


@pytest.mark.parametrize(("name", "samples"), crossed(FORWARD, [None, 2]))
@pytest.mark.parametrize("large", [0, 1 << 14], ids=["all large", "none large"])
def test_reverse_mode_gives_the_product_of_forward_mode(
    name: str, samples: int | None, large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsb_engine.curvature.products.autodiff.LARGE", large)
    build, shape, options = FORWARD[name]
    torch.manual_seed(0)
    x, weights = torch.randn(7, *shape, dtype=torch.float64), [1, 2, 0.5, 1, 0, 3, 1]
    posed = problem(wsb.from_module(build().double()), wsb.Batch(x, torch.arange(7) % 3, weights), **options)
    v = columns(posed.objective.parameters)[:, 0]
    forward, reverse = (AutodiffProduct(posed.objective, 1, samples, reverse=mode) for mode in (False, True))
    want = forward.vector(v)
    torch.testing.assert_close(reverse.vector(v), want, rtol=1e-12, atol=1e-13 * float(want.abs().max()))
    assert reverse.reverse
    assert posed.objective.coupled == (name == "coupled")
    gradient = torch.zeros(len(v), dtype=torch.float64)
    posed.objective.add(gradient, posed.objective.chunk_gradient(slice(0, 7)))
    torch.testing.assert_close(posed.objective.gradient(), gradient, rtol=1e-13, atol=1e-15)


def test_reverse_mode_calls_the_gradient_once_for_a_column_and_no_transform(monkeypatch: pytest.MonkeyPatch) -> None:
    product = way(convolutional(), columns=1)
    assert isinstance(product, AutodiffProduct)
    assert product.reverse

    def refused(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("wsb_engine.curvature.products.autodiff.jvp", refused)
    assert product.vector(columns(product.parameters)[:, 0]).isfinite().all()


def test_forward_mode_multiplies_where_work_counts_and_reverse_mode_where_calls_or_memory_do() -> None:
    posed = convolutional()
    much = replace(posed, footprint=replace(posed.footprint, operations=1e12))
    tight = replace(much, memory=100 * posed.objective.parameters)
    modes = [each.from_scratch(each.objective).way.reverse for each in (posed, much, tight)]  # type: ignore[attr-defined]
    assert modes == [True, False, True]


def test_operators_without_a_second_derivative_in_reverse_mode_are_multiplied_in_forward_mode(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    posed = convolutional()
    v = columns(posed.objective.parameters)[:, 0]
    want = AutodiffProduct(posed.objective, 1).vector(v)

    def refused(*_: object) -> Tensor:
        raise RuntimeError("derivative for aten::some_backward is not implemented")

    monkeypatch.setattr(Objective, "twice_backward", refused)
    product = AutodiffProduct(posed.objective, 1, reverse=True)
    assert torch.equal(product.vector(v), want)
    assert not product.reverse


def test_memory_that_runs_out_in_reverse_mode_is_no_missing_derivative(monkeypatch: pytest.MonkeyPatch) -> None:
    posed = convolutional()

    def too_large(*_: object) -> Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(Objective, "twice_backward", too_large)
    product = AutodiffProduct(posed.objective, 1, reverse=True)
    with pytest.raises(RuntimeError, match="allocate"):
        product.vector(columns(posed.objective.parameters)[:, 0])
    assert product.reverse
    smaller = product.smaller()
    assert smaller is not None
    assert smaller.reverse


def convolutional(samples: int = 5, **options: object) -> Problem:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)).double()
    x = torch.randn(samples, 1, 3, 3, dtype=torch.float64)
    batch = wsb.Batch(x, torch.arange(samples) % 3, weights=torch.arange(1, samples + 1))
    return problem(wsb.from_module(module), batch, **options)


def test_a_linearised_product_is_taken_where_it_pays_and_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    posed = convolutional()
    assert isinstance(way(posed, 1), AutodiffProduct)
    monkeypatch.setattr("wsb_engine.analysis.problem.WORTHWHILE", 0)
    monkeypatch.setattr("wsb_engine.curvature.products.linearized.TRACING_SECONDS", 0)
    chosen = way(posed, 1)
    assert isinstance(chosen, LinearizedProduct)
    assert isinstance(way(replace(posed, objective=replace(posed.objective, fits=4)), 1), AutodiffProduct)
    H = dense(posed.objective)
    V = columns(len(H))
    torch.testing.assert_close(chosen(V), H @ V, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(
    ("gradient_seconds", "operators", "products", "traced"),
    [(0.06, 427, 5, False), (0.06, 427, 30, True), (3.0, 427, 30, True), (3.0, 427, 3, False), (0.0, 9, 10**6, True)],
)
def test_tracing_pays_if_the_products_that_follow_save_its_time(
    gradient_seconds: float, operators: int, products: int, traced: bool
) -> None:
    assert pays(gradient_seconds, operators, products, reverse=False) == traced


@pytest.mark.parametrize("reverse", [False, True])
def test_tracing_saves_less_where_products_from_scratch_are_in_reverse_mode(reverse: bool) -> None:
    assert pays(0.0, 427, 30, reverse=reverse) != reverse


def test_a_gradient_of_many_short_operators_is_not_traced_for_few_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsb_engine.analysis.problem.WORTHWHILE", 0)
    posed = convolutional()
    assert posed.footprint.operators > 10
    assert isinstance(way(posed, 1), AutodiffProduct)
    assert isinstance(way(replace(posed, expected=10**4), 1), LinearizedProduct)
    assert convolutional(max_products=4).expected == 4


@pytest.mark.parametrize(
    ("samples", "operations", "chunk"), [(640, 1e6, 64), (640, 1e9, 10), (64, 1e9, 8), (61, 1e9, 9), (5, 1e12, 1)]
)
def test_a_chunk_has_fewer_samples_if_each_takes_long(samples: int, operations: float, chunk: int) -> None:
    posed = convolutional(samples)
    heavy = replace(posed, footprint=Footprint(bytes=1 << 30, operations=operations))
    product = heavy.from_scratch(replace(posed.objective, fits=samples))
    assert isinstance(product, SteppingProduct)
    assert isinstance(product.way, AutodiffProduct)
    assert product.way.samples == chunk


@pytest.mark.parametrize("columns_at_a_time", [1, 4])
def test_threads_of_a_linearised_product_each_have_their_samples(
    columns_at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsb_engine.analysis.problem.WORTHWHILE", 0)
    monkeypatch.setattr("wsb_engine.curvature.products.linearized.TRACING_SECONDS", 0)
    monkeypatch.setattr("wsb_engine.analysis.problem.LEAST_CHUNK", 2)
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    posed = convolutional(samples=7)
    shares: list[int] = []

    def counted(term: Callable[[Any], Tensor], items: Sequence[Any], check: Callable[[], None]) -> Tensor:
        shares.append(len(items))
        return _sum(term, items, check)

    monkeypatch.setattr("wsb_engine.curvature.threads._sum", counted)
    H = dense(posed.objective)
    V = columns(len(H))
    torch.testing.assert_close(way(posed, columns_at_a_time)(V), H @ V, rtol=1e-11, atol=1e-13)
    # Of three samples, three and one.
    assert shares == [1] * (3 * V.shape[1])


@pytest.mark.parametrize(("samples", "vectors", "wanted"), [(64, 9, 4), (3, 9, 3), (64, 2, 2)])
def test_there_are_no_more_threads_than_work_and_memory_allow(
    samples: int, vectors: int, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsb_engine.analysis.problem.WORTHWHILE", 0)
    monkeypatch.setattr("wsb_engine.curvature.products.linearized.TRACING_SECONDS", 0)
    monkeypatch.setattr("wsb_engine.analysis.problem.LEAST_CHUNK", 1)
    monkeypatch.setattr("torch.get_num_threads", lambda: 4)
    threads: list[int] = []
    monkeypatch.setattr("wsb_engine.curvature.products.linearized.Threads", threads.append)
    posed = convolutional(samples)
    memory = int((vectors + 0.5) * 8 * posed.objective.parameters / BLOCK_SHARE)
    way(replace(posed, memory=memory, footprint=replace(posed.footprint, bytes=0)), 1)
    assert threads == [wanted]


def test_single_products_from_scratch_take_as_many_samples_as_caches_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsb_engine.analysis.problem.LEAST_CHUNK", 2)
    posed = convolutional(samples=7)
    H = dense(posed.objective)
    V = columns(len(H))[:, :1]
    for size, samples in ((0, 2), (3 * posed.footprint.bytes, 3), (1 << 30, 7)):
        monkeypatch.setattr("wsb_engine.analysis.problem.CHUNK_BYTES", size)
        # Seven in four pieces of two, in three of three, in one.
        for product in (posed.from_scratch(posed.objective), posed.hessian_product(1)):
            assert isinstance(product, SteppingProduct)
            assert isinstance(product.way, AutodiffProduct)
            assert product.way.samples == samples
            torch.testing.assert_close(product(V), H @ V, rtol=1e-11, atol=1e-13)
