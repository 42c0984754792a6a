"""Exact moments: beside a public stochastic estimator, beside every other way of summing them, and how cost grows.

./scripts/peers && PYTHONPATH=.peers .venv/bin/python benchmarks/moments.py
"""

from __future__ import annotations

import itertools
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from harness import Row, show
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import wsb_engine as wsb
from wsb_engine.curvature.closed_form import closed_form
from wsb_engine.curvature.plan import plan
from wsb_engine.problem import Problem, pose
from wsb_engine.run import Run

Prefer = Literal["auto", "pairs", "block"]
BLOCK = 16
PROBES = 200
"""From which the estimator's variance is measured."""


def mlp(sizes: Sequence[int]) -> nn.Sequential:
    """A tanh network of these widths."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for d_in, d_out in itertools.pairwise(sizes):
        layers += [nn.Linear(d_in, d_out), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def posed(sizes: Sequence[int], samples: int, *, dtype: Literal["float32", "float64"] = "float32") -> Problem:
    """A random batch on a random network."""
    random = np.random.default_rng(0)
    x = random.random((samples, sizes[0]), dtype=np.float32)
    batch = wsb.Batch(x, random.integers(0, sizes[-1], samples))
    options = wsb.Options(dtype=dtype, device="cpu")
    return pose(wsb.from_module(mlp(sizes)), batch, options, Run(options, None, 0.0))


def moments(problem: Problem, prefer: Prefer = "auto") -> tuple[float, float]:
    """(seconds, q)."""
    assert problem.structure is not None
    net, weights = problem.structure.net, problem.objective.targets.weights
    started = time.perf_counter()
    with torch.no_grad():
        layout = plan(
            net, len(weights), memory=problem.memory, itemsize=problem.objective.dtype.itemsize, prefer=prefer
        )
        q = closed_form(net, problem.tile, weights, layout).frobenius_squared
    return time.perf_counter() - started, q


def against_estimator() -> Iterator[Row]:
    """Row 1: exact q against Hutchinson's estimator to one sigma of 1 %."""
    from curvlinops import HessianLinearOperator

    problem = posed((784, 128, 10), 1000)
    module = mlp((784, 128, 10))
    (x,), y = problem.objective.inputs.values(), problem.objective.targets.y.argmax(dim=1)
    operator = HessianLinearOperator(
        module, nn.CrossEntropyLoss(), list(module.parameters()), [(x, y)], check_deterministic=False
    )
    moments(problem)
    ours = [moments(problem) for _ in range(7)]
    seconds, q = statistics.median(s for s, _ in ours), ours[0][1]
    squares, times = [], []
    torch.manual_seed(1)
    for _ in range(PROBES // BLOCK):
        Z = torch.randn(operator.shape[1], BLOCK)
        started = time.perf_counter()
        image = operator @ Z
        times.append(time.perf_counter() - started)
        squares += image.square().sum(dim=0).tolist()
    error = abs(statistics.fmean(squares) - q) / (statistics.stdev(squares) / math.sqrt(len(squares)))
    assert error < 5, f"the estimator is {error} standard errors away from q"
    needed = (statistics.stdev(squares) / (0.01 * q)) ** 2
    theirs = needed * statistics.median(times) / BLOCK
    yield Row(
        "‖H‖_F² of 784-128-10, N = 1000",
        f"exact in {seconds:.3f} s; curvlinops to 1 %: {needed:.0f} products, {theirs:.1f} s: {theirs / seconds:.0f} ×",
        "at least 50 ×",
        theirs / seconds >= 50,
    )
    yield _rate(problem)


def _rate(problem: Problem) -> Row:
    """How near the matrix products of the closed form come to torch.matmul's rate."""
    with FlopCounterMode(display=False) as counter:
        moments(problem)
    flops = counter.get_total_flops()
    rates = []
    A = torch.randn(2048, 2048)
    for _ in range(5):
        with profile(activities=[ProfilerActivity.CPU]) as events:
            moments(problem)
        products = sum(
            event.self_cpu_time_total
            for event in events.key_averages()
            if event.key in ("aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm", "aten::addbmm")
        )
        started = time.perf_counter()
        A @ A
        peak = 2 * 2048**3 / (time.perf_counter() - started)
        rates.append(flops / (products * 1e-6) / peak)
    share = statistics.median(rates)
    return Row(
        "its matrix products, as a share of torch.matmul's rate",
        f"{share:.0%} ({min(rates):.0%}–{max(rates):.0%}), {flops / 1e9:.0f} GFLOP",
        "at least 60 %",
        share >= 0.6,
    )


FORMS: dict[str, tuple[tuple[int, ...], int]] = {
    "3 hidden layers of 256, N = 2000": ((784, 256, 256, 256, 10), 2000),
    "5 hidden layers of 256, N = 2000": ((784, 256, 256, 256, 256, 256, 10), 2000),
    "2000 hidden, N = 500": ((100, 2000, 10), 500),
    "100 classes, N = 1000": ((64, 128, 100), 1000),
    "1000 classes, N = 300": ((64, 64, 1000), 300),
    "20 features, N = 50 000": ((20, 32, 5), 50_000),
}


def forms(*, slowest: float = 120.0) -> Iterator[Row]:
    """Row 2: the chosen way of summing against the others; one that would take too long is told, not run."""
    for name, (sizes, samples) in FORMS.items():
        problem = posed(sizes, samples)
        chosen, q = moments(problem)
        best, told = chosen, []
        for prefer in ("pairs", "block"):
            expected = _expected(problem, prefer) / _expected(problem, "auto") * chosen
            if expected > slowest:
                told.append(f"{prefer} not run, {expected:.0f} s expected")
                continue
            seconds, other = moments(problem, prefer)
            assert abs(other - q) <= 1e-4 * q, f"{name}: {prefer} gives {other}, not {q}"
            best = min(best, seconds)
            told.append(f"{prefer} {seconds:.2f} s")
        yield Row(
            f"moments, {name}",
            f"chosen {chosen:.2f} s; {', '.join(told)}",
            "within 1.3 × of the best",
            chosen <= 1.3 * best,
        )


def _expected(problem: Problem, prefer: Prefer) -> float:
    assert problem.structure is not None
    samples, itemsize = len(problem.objective.targets.weights), problem.objective.dtype.itemsize
    return plan(problem.structure.net, samples, memory=problem.memory, itemsize=itemsize, prefer=prefer).cost


GROWTH: dict[str, tuple[Sequence[int], Callable[[int], tuple[tuple[int, ...], int]]]] = {
    "N": ((500, 1000, 2000, 4000), lambda n: ((784, 128, 10), n)),
    "hidden width": ((64, 128, 256, 512), lambda d: ((64, d, 10), 1000)),
    "depth": ((1, 2, 4, 8), lambda depth: ((64, *([64] * depth), 10), 1000)),
    "C": ((5, 10, 20, 40, 80), lambda c: ((64, 64, c), 1000)),
}


def growth() -> dict[str, list[tuple[int, float]]]:
    """Seconds of the moments against one size at a time."""
    found = {}
    for name, (values, shape) in GROWTH.items():
        points = []
        for value in values:
            problem = posed(*shape(value))
            moments(problem)
            points.append((value, statistics.median(moments(problem)[0] for _ in range(3))))
        found[name] = points
    return found


def slope(points: Sequence[tuple[int, float]]) -> float:
    """Of the line through the logarithms."""
    x, y = np.log([point[0] for point in points]), np.log([point[1] for point in points])
    return float(np.polyfit(x, y, 1)[0])


def rows() -> Iterator[Row]:
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    yield from against_estimator()
    yield from forms()


if __name__ == "__main__":
    met = show(rows())
    for name, points in growth().items():
        print(f"time of the moments against {name}: slope {slope(points):.2f}", *(f"{x}: {s:.3f} s" for x, s in points))
    sys.exit(not met)
