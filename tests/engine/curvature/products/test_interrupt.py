"""Work that is interrupted between chunks of samples, and goes on afterwards as if it had not been."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from support.forms import crossed
from torch import Tensor, nn

import wsb_engine as wsb
from wsb_engine.analysis.monitor import Monitor
from wsb_engine.analysis.problem import Problem, pose
from wsb_engine.curvature.gauss_newton import general_trace, mlp_trace
from wsb_engine.curvature.products.autodiff import AutodiffProduct, HessianProduct, Objective
from wsb_engine.curvature.products.linearized import LinearizedProduct
from wsb_engine.curvature.products.mlp import MLPProduct
from wsb_engine.curvature.products.stepping import SteppingProduct
from wsb_engine.curvature.threads import Threads

SAMPLES = 30


class StoppedError(RuntimeError):
    """What a caller may raise: any error."""


@dataclass
class Clock:
    """Stops at one of its calls, and counts all."""

    stop: int | None = None
    calls: int = 0

    def __call__(self) -> None:
        self.calls += 1
        if self.calls == self.stop:
            raise StoppedError("time is up")


def posed(clock: Clock) -> Problem:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    batch = wsb.Batch(torch.randn(SAMPLES, 4, dtype=torch.float64), torch.arange(SAMPLES) % 3)
    options = wsb.Options()
    problem = pose(wsb.from_module(module), batch, options, Monitor(options, None, 0.0))
    return replace(problem, objective=replace(problem.objective, interrupt=clock, fits=7))


def by_hand(problem: Problem) -> MLPProduct:
    assert problem.structure is not None
    mlp, net = problem.structure.mlp, problem.structure.net
    product = MLPProduct(problem.objective, mlp, net, problem.tile, memory=1 << 30, columns=3)
    product._rows = 7
    return product


def stepping(problem: Problem) -> SteppingProduct:
    def refuse(code: str, _: str) -> None:
        raise AssertionError(f"stepped down: {code}")

    return SteppingProduct(LinearizedProduct(problem.objective, 3, 7), refuse)


def vectors(objective: Objective) -> Tensor:
    shape = (objective.parameters, 3)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def multiplying(make: Callable[[Problem], HessianProduct]) -> Work:
    def work(problem: Problem) -> Callable[[], Tensor]:
        product = make(problem)
        return lambda: product(vectors(problem.objective))

    return work


Work = Callable[[Problem], Callable[[], Tensor]]
"""From a problem to work that can be done more than once."""
WORK: dict[str, Work] = {
    "gradient": lambda problem: problem.objective.gradient,
    "twice backward": lambda problem: lambda: problem.objective.twice_backward(vectors(problem.objective)[:, 0]),
    "product from scratch": multiplying(lambda problem: AutodiffProduct(problem.objective, 3, 7)),
    "linearised product": multiplying(stepping),
    "linearised product of threads": multiplying(lambda problem: LinearizedProduct(problem.objective, 3, 7, threads=2)),
    "product by hand": multiplying(by_hand),
    "trace of a general model": lambda problem: lambda: torch.tensor(general_trace(problem.objective, 3)),
}


@pytest.mark.parametrize(("name", "stop"), crossed(WORK, (3, 1, 2, 5)))
def test_work_stops_between_chunks_and_can_be_done_again(name: str, stop: int) -> None:
    calm = Clock()
    want = WORK[name](posed(calm))()
    assert calm.calls >= 5
    clock = Clock(stop)
    work = WORK[name](posed(clock))
    with pytest.raises(StoppedError):
        work()
    assert clock.calls == stop
    torch.testing.assert_close(work(), want, rtol=1e-13, atol=1e-15)


def test_an_interrupted_linearisation_is_not_taken_for_one_that_fails() -> None:
    problem = posed(Clock(2))
    product = stepping(problem)
    with pytest.raises(StoppedError):
        product(vectors(problem.objective))
    assert isinstance(product.way, LinearizedProduct)


def test_a_trace_stops_at_any_operator() -> None:
    calm = Clock()
    problem = posed(calm)
    v = vectors(problem.objective)[:, :1]
    whole = replace(problem, objective=replace(problem.objective, fits=SAMPLES))
    want = LinearizedProduct(whole.objective)(v)
    assert calm.calls > 50
    # In the trace, its evaluation, and the product.
    for stop in (2, calm.calls // 3, 2 * calm.calls // 3, calm.calls):
        clock = Clock(stop)
        product = LinearizedProduct(replace(whole.objective, interrupt=clock))
        with pytest.raises(StoppedError):
            product(v)
        assert clock.calls == stop
    torch.testing.assert_close(product(v), want, rtol=0, atol=0)


def test_the_trace_of_a_perceptron_stops_between_tiles() -> None:
    clock = Clock(3)
    problem = posed(clock)
    assert problem.structure is not None
    weights = problem.objective.targets.weights
    with pytest.raises(StoppedError):
        mlp_trace(problem.structure.net, problem.tile, weights, rows=7)
    assert clock.calls == 3


def test_other_threads_stop_when_the_callers_thread_does() -> None:
    begun, stopped = threading.Event(), threading.Event()
    made: list[int] = []

    def term(i: int) -> Tensor:
        made.append(i)
        if i % 2:  # of the other thread
            begun.set()
            assert stopped.wait(timeout=30)
        return torch.ones(1)

    def check() -> None:
        assert begun.wait(timeout=30)
        try:
            raise StoppedError
        finally:
            threading.Timer(0.2, stopped.set).start()

    with pytest.raises(StoppedError):
        Threads(2).sum(term, range(40), check=check)
    assert made == [1]
