"""Compare exact moments with a public stochastic estimator, and with every other way of summing them.

./scripts/peers && PYTHONPATH=.peers .venv/bin/python benchmarks/moments.py
"""

from __future__ import annotations

import itertools
import math
import statistics
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal
from unittest import mock

import numpy as np
import torch
from harness import Row, alternate, show
from operations import Operations
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import wsb_engine as wsb
from wsb_engine.analysis.monitor import Monitor
from wsb_engine.analysis.problem import Problem, pose
from wsb_engine.curvature import closed_form
from wsb_engine.curvature.closed_form.layout import Layout, cheapest_layout
from wsb_engine.curvature.closed_form.sums import add_terms, finish, no_sums
from wsb_engine.curvature.closed_form.tiles import Tile, make_tile

Prefer = Literal["auto", "pairs", "block"]
BLOCK = 16
PROBES = 200
"""Number of probes from which the estimator's variance is measured."""


def mlp(sizes: Sequence[int]) -> nn.Sequential:
    """Return a tanh network of these widths."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for d_in, d_out in itertools.pairwise(sizes):
        layers += [nn.Linear(d_in, d_out), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def posed(sizes: Sequence[int], samples: int, *, dtype: Literal["float32", "float64"] = "float32") -> Problem:
    """Pose the problem of a random batch on a random network."""
    random = np.random.default_rng(0)
    x = random.random((samples, sizes[0]), dtype=np.float32)
    batch = wsb.Batch(x, random.integers(0, sizes[-1], samples))
    options = wsb.Options(dtype=dtype, device="cpu")
    return pose(wsb.from_module(mlp(sizes)), batch, options, Monitor(options, None, 0.0))


def moments(problem: Problem) -> tuple[float, float]:
    """Compute q; return (seconds, q)."""
    result = summed(problem, layout_of(problem))
    assert result.q is not None
    return result.seconds, result.q


def against_estimator() -> Iterator[Row]:
    """Compare exact q with Hutchinson's estimator at a standard error of 1 %."""
    from curvlinops import HessianLinearOperator
    from curvlinops.sampling import rademacher

    problem = posed((784, 128, 10), 1000)
    module = mlp((784, 128, 10))
    (x,), y = problem.objective.inputs.values(), problem.objective.targets.y
    operator = HessianLinearOperator(
        module, nn.CrossEntropyLoss(), list(module.parameters()), [(x, y)], check_deterministic=False
    )
    moments(problem)
    ours = [moments(problem) for _ in range(7)]
    seconds, q = statistics.median(s for s, _ in ours), ours[0][1]
    squares, times = [], []
    torch.manual_seed(1)
    for _ in range(PROBES // BLOCK):
        started = time.perf_counter()
        # As curvlinops' hutchinson_squared_fro draws them by default, which would multiply all columns at once.
        Z = torch.stack([rademacher(operator.shape[1], "cpu", torch.float32) for _ in range(BLOCK)], dim=1)
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
    """Measure the rate of the closed form's matrix products as a share of torch.matmul's."""
    with FlopCounterMode(display=False) as counter:
        moments(problem)
    flops = counter.get_total_flops()
    rates = []
    A = torch.randn(2048, 2048)
    for _ in range(5):
        with Operations() as operations:
            moments(problem)
        started = time.perf_counter()
        A @ A
        peak = 2 * 2048**3 / (time.perf_counter() - started)
        rates.append(flops / operations.products / peak)
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
    "1000 classes, N = 100": ((64, 64, 1000), 100),
    "20 features, N = 50 000": ((20, 32, 5), 50_000),
}
REPEATED = 3.0
"""Seconds up to which a sum is repeated five times; a longer one runs once, and its row says so."""
WHOLE = 3.0
"""Seconds after which the chosen sum is stopped and extrapolated, and its row says so."""


@dataclass(frozen=True)
class Sum:
    """One way of summing q; if it was stopped, ``q`` is None and the seconds are extrapolated to the whole sum."""

    seconds: float
    q: float | None = None

    def __str__(self) -> str:
        return f"{self.seconds:.3g} s{'' if self.q is not None else ', extrapolated'}"


class Making:
    """Counts tiles as they are computed, and the seconds that this takes."""

    def __init__(self) -> None:
        self.tiles, self.seconds = 0, 0.0

    def __call__(self, *arguments: Any) -> Tile:
        started = time.perf_counter()
        tile = make_tile(*arguments)
        self.tiles, self.seconds = self.tiles + 1, self.seconds + time.perf_counter() - started
        return tile


def summed(problem: Problem, layout: Layout, limit: float = math.inf) -> Sum:
    """Sum in this layout; after ``limit`` seconds stop and extrapolate the time."""
    assert problem.structure is not None
    net, weights = problem.structure.net, problem.objective.targets.weights
    making = Making()
    started = time.perf_counter()
    with torch.no_grad(), mock.patch.object(closed_form.sums, "make_tile", making):
        sums = no_sums(net, weights)
        for fraction in add_terms(net, problem.tile, weights, layout, sums):
            seconds = time.perf_counter() - started
            if seconds > limit and 0 < fraction < 1:
                return Sum(_whole(layout, len(weights), fraction, seconds, making))
        q = finish(sums, layout).frobenius_squared
    return Sum(time.perf_counter() - started, q)


def _whole(layout: Layout, samples: int, fraction: float, seconds: float, making: Making) -> float:
    """Extrapolate the seconds of a whole sum from the fraction that is done.

    All pairs of tiles cost the same, but a tile is paired with fewer at the start. Blocks differ, and the largest
    comes first: only that block counts, as if the others cost nothing, which favours a way that was not chosen.
    """
    if layout.blocks:
        return seconds / (fraction if layout.pairs else min(1.0, fraction * len(layout.blocks)))
    tiles = math.ceil(samples / layout.tile)
    made = sum(tiles - first for first in range(0, tiles, layout.kept))
    return (seconds - making.seconds) / fraction + made * making.seconds / making.tiles


def layout_of(problem: Problem, prefer: Prefer = "auto") -> Layout:
    assert problem.structure is not None
    samples, itemsize = len(problem.objective.targets.weights), problem.objective.dtype.itemsize
    return cheapest_layout(problem.structure.net, samples, memory=problem.memory, itemsize=itemsize, prefer=prefer)


def forms() -> Iterator[Row]:
    """Compare the chosen way of summing with the others."""
    for name, (sizes, samples) in FORMS.items():
        problem = posed(sizes, samples)
        chosen = layout_of(problem)
        others = {prefer: layout_of(problem, prefer) for prefer in ("pairs", "block")}
        differing = {prefer: other for prefer, other in others.items() if other.forms != chosen.forms}
        same = " and ".join(prefer for prefer in others if prefer not in differing) or "a mixture"
        yield _compared(name, problem, chosen, same, differing)


def _compared(name: str, problem: Problem, chosen: Layout, same: str, others: Mapping[str, Layout]) -> Row:
    first = summed(problem, chosen, WHOLE)
    # Blocks alone need no pairs of samples; these would be visited only to measure coherence.
    with mock.patch.object(closed_form.sums, "COHERENCE_SAMPLES", 0):
        found = {other: summed(problem, layout, REPEATED) for other, layout in others.items()}
    if first.q is not None:
        for other, result in found.items():
            assert result.q is None or abs(result.q - first.q) <= 1e-4 * first.q, f"{name}: {other} gives a different q"
    medians = {same: first.seconds}
    if first.seconds < REPEATED:
        # Only ways that come close are worth a median; one that was stopped is far slower.
        near = {
            other: others[other]
            for other, result in found.items()
            if result.q is not None and result.seconds < 2 * first.seconds
        }
        turns = {way: partial(summed, problem, layout) for way, layout in {same: chosen, **near}.items()}
        medians = {way: statistics.median(s) for way, s in alternate(turns, repeats=5, warmup=0).items()}
    took = medians[same]
    best = min(took, *(medians.get(other, result.seconds) for other, result in found.items()))
    rest = [
        f"{other} {medians[other]:.3g} s" if other in medians else f"{other} {'' if result.q else 'at least '}{result}"
        for other, result in found.items()
    ]
    mine = f"{took:.3g} s" if first.seconds < REPEATED else f"{first}, once" if first.q is not None else str(first)
    return Row(
        f"q, {name}", f"{same}, chosen: {mine}; {', '.join(rest)}", "within 1.3 × of the best", took <= 1.3 * best
    )


def rows() -> Iterator[Row]:
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    yield from against_estimator()
    yield from forms()


if __name__ == "__main__":
    sys.exit(not show(rows()))
