"""Products under a memory limit: chunks that follow it, and ways to go on when memory runs out all the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from support.forms import crossed, thinned
from torch import Tensor, nn

import wsb_engine as wsb
from wsb_engine.analysis.monitor import Monitor
from wsb_engine.analysis.problem import Problem, pose
from wsb_engine.curvature.cost import Footprint, gradient_footprint
from wsb_engine.curvature.products.autodiff import AutodiffProduct
from wsb_engine.curvature.products.linearized import LinearizedProduct
from wsb_engine.curvature.products.mlp import MLPProduct
from wsb_engine.curvature.products.stepping import SteppingProduct
from wsb_engine.errors import ModelError, ResourceError
from wsb_engine.memory import ran_out

SAMPLES = 7


def convolution(*norm: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 2), *norm, nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)).double()


def batch() -> wsb.Batch:
    x = torch.randn(SAMPLES, 1, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return wsb.Batch(x, torch.arange(SAMPLES) % 3, weights=torch.arange(1, SAMPLES + 1))


def posed(module: nn.Module, **options: object) -> Problem:
    chosen = wsb.Options(**options)
    return pose(wsb.from_module(module), batch(), chosen, Monitor(chosen, None, 0.0))


def directions(problem: Problem, columns: int = 4) -> Tensor:
    shape = (problem.objective.parameters, columns)
    return torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def out_of_memory() -> Exception:
    return torch.OutOfMemoryError("CUDA out of memory")


def allocator() -> Exception:
    return RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: tried 99 bytes")


FAILURES = [out_of_memory, allocator, MemoryError, lambda: RuntimeError("not enough memory: you tried to allocate")]


def crowded(monkeypatch: pytest.MonkeyPatch, most: int, failure: Callable[[], BaseException]) -> list[str]:
    """Lets products run out of memory whenever columns × samples exceed ``most``, and linearised ones always."""
    calls: list[str] = []
    multiply, linearised = AutodiffProduct.__call__, LinearizedProduct.__call__

    def scratch(self: AutodiffProduct, V: Tensor) -> Tensor:
        calls.append(f"{self.samples}×{V.shape[1]}")
        if self.samples * V.shape[1] > most:
            raise failure()
        return multiply(self, V)

    def kept(self: LinearizedProduct, V: Tensor) -> Tensor:
        calls.append("linearised")
        if most:
            raise failure()
        return linearised(self, V)

    monkeypatch.setattr(AutodiffProduct, "__call__", scratch)
    monkeypatch.setattr(LinearizedProduct, "__call__", kept)
    return calls


@pytest.mark.parametrize("fits", thinned([1, 2, 3, 5, 100], 3))
def test_chunks_that_follow_memory_add_up_to_one_chunk(fits: int) -> None:
    problem = posed(convolution())
    V = directions(problem)
    whole = AutodiffProduct(problem.objective, columns=4)
    tight = replace(problem.objective, fits=fits)
    chunked = AutodiffProduct(tight, columns=4)
    assert (whole.samples, chunked.samples) == (SAMPLES, min(SAMPLES, max(1, fits // 5)))
    torch.testing.assert_close(chunked(V), whole(V), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(tight.gradient(), problem.objective.gradient(), rtol=1e-12, atol=1e-15)
    single = AutodiffProduct(tight, columns=1)
    torch.testing.assert_close(single.vector(V[:, 0]), whole(V)[:, 0], rtol=1e-12, atol=1e-15)


def test_fewer_samples_fit_a_smaller_limit() -> None:
    assert [Footprint(1000, 0.0).fits(memory) for memory in (10, 4000, 10_000)] == [1, 2, 5]
    # Vectors of a million parameters take 104 MB; if all memory is theirs, some of it is left all the same.
    sizes = [memory * 10**6 for memory in (80, 160, 200, 1000)]
    assert [Footprint(1_000_000, 0.0).fits(memory, 10**6) for memory in sizes] == [24, 56, 96, 500]
    wide, narrow = posed(convolution(), memory_limit=1 << 30), posed(convolution(), memory_limit=1 << 20)
    assert wide.footprint == narrow.footprint == gradient_footprint(wide.objective)
    assert narrow.objective.fits < wide.objective.fits
    assert narrow.objective.fits * narrow.footprint.bytes <= 1 << 20


def test_a_footprint_counts_every_sample_the_same() -> None:
    """A sample of twice the size has twice the footprint, and a wider layer more operations."""

    def footprint(side: int) -> Footprint:
        module = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
        data = wsb.Batch(torch.randn(4, 1, side, 16), torch.tensor([0, 1, 2, 0]))
        options = wsb.Options()
        return pose(wsb.from_module(module), data, options, Monitor(options, None, 0.0)).footprint

    small, large = footprint(16), footprint(32)
    assert large.bytes == pytest.approx(2 * small.bytes, rel=0.05)
    assert large.operations == pytest.approx(2 * small.operations, rel=0.05)


@pytest.mark.parametrize(("most", "failure"), crossed([1, 4, 9], FAILURES))
def test_running_out_of_memory_steps_down_and_gives_the_same(
    monkeypatch: pytest.MonkeyPatch, most: int, failure: Callable[[], Exception]
) -> None:
    problem = posed(convolution())
    V = directions(problem)
    want = AutodiffProduct(problem.objective, columns=4)(V)
    warnings: list[str] = []
    product = SteppingProduct(LinearizedProduct(problem.objective), lambda code, _: warnings.append(code))
    calls = crowded(monkeypatch, most, failure)
    torch.testing.assert_close(product(V), want, rtol=1e-12, atol=1e-15)
    assert calls[:2] == ["linearised", "7×4"]
    assert set(warnings) == {"memory_step_down"}
    torch.testing.assert_close(product(V), want, rtol=1e-12, atol=1e-15)
    assert calls.count("linearised") == 1


def test_an_mlp_steps_down_too() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(9, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    problem = posed(module)
    product = problem.hessian_product(4)
    assert isinstance(product, SteppingProduct)
    V = directions(problem)
    want = product(V)
    sizes = []
    while (smaller := product.way.smaller()) is not None:
        assert isinstance(smaller, MLPProduct)
        product.way = smaller
        sizes.append(smaller.description)
        torch.testing.assert_close(product(V), want, rtol=1e-12, atol=1e-15)
    assert [size.split()[0] for size in sizes] == ["3", "1"]


def test_when_nothing_smaller_is_left_the_error_has_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    product = posed(convolution()).hessian_product(2)
    crowded(monkeypatch, 0, out_of_memory)
    with pytest.raises(ResourceError) as caught:
        product(torch.zeros(product.parameters, 2, dtype=torch.float64))
    assert caught.value.code == "out_of_memory"
    assert caught.value.advice
    assert caught.value.details["needed"] > 8 * 4 * product.parameters
    assert f"{caught.value.details['needed']:.2g} bytes" in caught.value.message


def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    product = posed(convolution()).hessian_product(1)
    calls = crowded(monkeypatch, 1, lambda: RuntimeError("shapes do not match"))
    with pytest.raises(ModelError, match="shapes") as caught:
        product.vector(torch.zeros(product.parameters, dtype=torch.float64))
    assert caught.value.code == "not_differentiable"
    assert calls == ["7×1"]
    assert not ran_out(ResourceError("out of memory", code="out_of_memory", advice=""))
    assert not ran_out(None)


@pytest.mark.parametrize(
    "text",
    [
        "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory",
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    ],
)
def test_texts_of_libraries_are_known(text: str) -> None:
    assert ran_out(RuntimeError(text))


def test_a_report_says_that_memory_ran_out(monkeypatch: pytest.MonkeyPatch) -> None:
    options = wsb.Options(parameters=("0.*", "3.bias"), relative_gap=1e-3, ends="largest")
    calm = wsb.analyze(wsb.from_module(convolution()), batch(), options, needs=["moments"])
    crowded(monkeypatch, 7, out_of_memory)
    report = wsb.analyze(wsb.from_module(convolution()), batch(), options, needs=["moments"])
    assert "memory_step_down" in [warning.code for warning in report.warnings]
    assert "memory_step_down" not in [warning.code for warning in calm.warnings]
    assert report.moments is not None
    assert calm.moments is not None
    assert report.enclosure is not None
    assert calm.enclosure is not None
    assert report.moments.frobenius_squared == pytest.approx(calm.moments.frobenius_squared, rel=1e-12)
    assert report.enclosure.lambda_max.upper == pytest.approx(calm.enclosure.lambda_max.upper, rel=1e-6)


@pytest.mark.parametrize(
    "norm",
    thinned([nn.GroupNorm(2, 4), nn.LayerNorm([4, 2, 2]), nn.BatchNorm2d(4), nn.InstanceNorm2d(4, affine=True)], 2),
    ids=str,
)
def test_every_kind_of_product_treats_normalisation_alike(norm: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsb_engine.analysis.problem.WORTHWHILE", 0)
    monkeypatch.setattr("wsb_engine.curvature.products.linearized.TRACING_SECONDS", 0)
    problem = posed(convolution(norm))
    objective, step = problem.objective, 1e-5
    v = directions(problem, 1)[:, 0]
    flat = objective.flatten(objective.selected)

    def gradient(by: float) -> Tensor:
        return replace(objective, selected=objective.unflatten(flat + by * step * v)).gradient()

    # torch.func.hessian is no reference: of layer and instance normalisation it is wrong in the second digit.
    want = (8 * (gradient(1) - gradient(-1)) - (gradient(2) - gradient(-2))) / (12 * step)
    product = problem.hessian_product(1)
    assert isinstance(product, SteppingProduct)
    assert isinstance(product.way, LinearizedProduct)
    for way in (product, AutodiffProduct(objective, columns=1)):
        torch.testing.assert_close(way.vector(v), want, rtol=1e-7, atol=1e-9)
    block = AutodiffProduct(objective)(torch.stack([v, 2 * v], dim=1))
    torch.testing.assert_close(block, torch.stack([want, 2 * want], dim=1), rtol=1e-7, atol=1e-9)


def test_a_gradient_that_cannot_be_traced_is_multiplied_from_scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    def untraceable(*_: object) -> None:
        raise NotImplementedError("no rule for this operator")

    monkeypatch.setattr("wsb_engine.analysis.problem.WORTHWHILE", 0)
    monkeypatch.setattr("wsb_engine.curvature.products.linearized.TRACING_SECONDS", 0)
    monkeypatch.setattr("wsb_engine.curvature.products.linearized.linearize", untraceable)
    options = wsb.Options(moments="none", relative_gap=1e-2, ends="largest")
    plain = wsb.analyze(wsb.from_module(convolution()), batch(), options)
    assert plain.enclosure is not None
    assert "memory_step_down" not in [warning.code for warning in plain.warnings]
