"""Show what limits each case: its share of the rate of matrix products and of memory, and where its time goes.

    python benchmarks/limits.py

Prints the table in docs/performance.md. Operations are those of matrix products and convolutions; bytes are those that
each operation reads and writes, as if nothing stayed in a cache.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import products
import torch
from growth import seconds
from harness import machine
from moments import FORMS, layout_of, posed
from operations import Operations
from torch.utils.flop_counter import FlopCounterMode

import wsb_engine as wsb
from wsb_engine.analysis.problem import Problem
from wsb_engine.curvature.closed_form.sums import add_terms, no_sums

REPEATS = 5
LARGE = 1e12
"""Operations of a plan above which only every 64th term is computed."""
SHOWN = 4


@dataclass(frozen=True)
class Machine:
    flops: dict[torch.dtype, float]
    """Floating-point operations per second of a product of two square matrices."""
    bandwidth: float
    """Bytes per second, read and written, of a copy larger than every cache."""


def this_machine() -> Machine:
    rates = {}
    for dtype in (torch.float32, torch.float64):
        A = torch.randn(2048, 2048, dtype=dtype)
        rates[dtype] = 2 * 2048**3 / statistics.median(seconds(lambda A=A: A @ A) for _ in range(REPEATS + 2))
    source = torch.ones(1 << 27)
    target = torch.empty_like(source)
    copied = statistics.median(seconds(lambda: target.copy_(source)) for _ in range(REPEATS + 2))
    return Machine(rates, 2 * source.numel() * source.itemsize / copied)


def cases() -> Iterator[tuple[str, Callable[[], object], torch.dtype]]:
    for name, (sizes, samples) in {"784-128-10, N = 1000": ((784, 128, 10), 1000), **FORMS}.items():
        problem = posed(sizes, samples)
        yield f"q, {name}", _sums(problem), torch.float32
    for case in products.cases():
        y = torch.randint(0, 10, (len(case.x),))
        product = products.ours(case.module.eval(), case.x, y)
        for columns in (1, products.BLOCK):
            V = torch.randn(sum(p.numel() for p in case.module.parameters()), columns)
            operator = product(columns)
            yield f"H·V of {columns}, {case.name}", lambda V=V, operator=operator: operator(V), torch.float32
    random = np.random.default_rng(0)
    batch = wsb.Batch(random.random((500, 30)), random.integers(0, 18, 500))
    options = wsb.Options(moments="none", enclosure=False, spectrum="dense", dtype="float64", device="cpu")
    classifier = wsb.from_module(torch.nn.Sequential(torch.nn.Linear(30, 60), torch.nn.Tanh(), torch.nn.Linear(60, 18)))
    yield "dense spectrum, P ≈ 3000", lambda: wsb.analyze(classifier, batch, options), torch.float64


def _sums(problem: Problem) -> Callable[[], object]:
    assert problem.structure is not None
    net, weights, layout = problem.structure.net, problem.objective.targets.weights, layout_of(problem)
    parts = 64 if layout.cost > LARGE else 1

    def sums() -> None:
        with torch.no_grad():
            for _ in add_terms(net, problem.tile, weights, layout, no_sums(net, weights), count=parts):
                pass

    return sums


def row(name: str, function: Callable[[], object], dtype: torch.dtype, limits: Machine) -> str:
    function()
    took = statistics.median(seconds(function) for _ in range(REPEATS))
    with FlopCounterMode(display=False) as counter:
        function()
    with Operations() as operations:
        function()
    flops = counter.get_total_flops()
    rate, moved = flops / took / limits.flops[dtype], operations.bytes / took / limits.bandwidth
    whole = sum(operations.seconds.values())
    into = ", ".join(f"{name} {part / whole:.0%}" for name, part in operations.seconds.most_common(SHOWN))
    return f"| {name} | {took:.3g} s | {flops / 1e9:.3g} | {rate:.0%} | {moved:.0%} | {into} |"


def main() -> None:
    limits = this_machine()
    print(machine())
    print(
        f"A matrix product: {limits.flops[torch.float32] / 1e9:.0f} GFLOP/s in float32, "
        f"{limits.flops[torch.float64] / 1e9:.0f} in float64; a copy: {limits.bandwidth / 1e9:.0f} GB/s\n"
    )
    print("| | time | GFLOP | share of matrix product rate | share of memory bandwidth | where its time goes |")
    print("|---|---|---|---|---|---|")
    for name, function, dtype in cases():
        print(row(name, function, dtype, limits), flush=True)


if __name__ == "__main__":
    main()
