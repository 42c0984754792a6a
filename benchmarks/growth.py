"""How time and memory of the exact moments and of one Hessian product grow with N, P, depth and C.

./scripts/bench --only growth

Memory is the peak of resident memory, beyond what was resident before.
"""

from __future__ import annotations

import ctypes
import mmap
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from harness import Curve, show, slope
from moments import moments, posed

from wsb_engine.analysis.problem import Problem

REPEATS = 5
FITTED = 3
"""Number of last points to which the slope is fitted; constant costs dominate the first ones."""
MIB = 1 << 20
libc = ctypes.CDLL(None)
NAMES = {"moments": "the moments", "product": "one product"}


@dataclass(frozen=True)
class Sweep:
    """One size that grows while all others stay fixed."""

    axis: str
    subject: str
    """What stays fixed, for a title."""
    values: Sequence[int]
    shape: Callable[[int], tuple[tuple[int, ...], int]]
    """Widths and samples."""
    reasons: dict[str, str]
    """The expected slope and its reason, by quantity."""
    parameters: bool = False
    """True if the axis shows the number of parameters instead of the value."""


SWEEPS = (
    Sweep(
        "N",
        "784-128-10",
        (250, 500, 1000, 2000),
        lambda n: ((784, 128, 10), n),
        {
            "moments time": "2 if pairs of samples dominate",
            "moments memory": "1 while the tiles of all samples are kept, 0 beyond",
            "product time": "1: each sample is processed once",
            "product memory": "1 up to the chunk that fits",
        },
    ),
    Sweep(
        "P",
        "64-d-10, N = 1000, d = 32 … 512",
        (32, 64, 128, 256, 512),
        lambda d: ((64, d, 10), 1000),
        {
            "moments time": "1: a pair of samples costs C² d in the last hidden layer",
            "moments memory": "1: each sample keeps C d numbers",
            "product time": "1: each parameter is used once per sample",
            "product memory": "1: activations of d units",
        },
        parameters=True,
    ),
    Sweep(
        "depth",
        "64-64-…-10, N = 300",
        (1, 2, 4, 8),
        lambda depth: ((64, *([64] * depth), 10), 300),
        {
            "moments time": "2: pairs of layers",
            "moments memory": "2: each sample keeps a block for each pair of layers; 0 once memory caps the tile",
            "product time": "1: layers",
            "product memory": "1: activations of each layer",
        },
    ),
    Sweep(
        "C",
        "64-64-C, N = 1000",
        (5, 10, 20, 40, 80),
        lambda c: ((64, 64, c), 1000),
        {
            "moments time": "2: inner products of C × C matrices",
            "moments memory": "2: each sample keeps a C × C matrix",
            "product time": "0 to 1: the last layer's share",
            "product memory": "0 to 1: the logits' share",
        },
    ),
)


def rows() -> Iterator[Curve]:
    warm(posed((8, 8, 8, 4), 32))
    for sweep in SWEEPS:
        points = [(value, measure(*sweep.shape(value))) for value in sweep.values]
        for quantity, reason in sweep.reasons.items():
            subject, what = quantity.split()
            series = tuple(
                (found["parameters"] if sweep.parameters else value, found[quantity]) for value, found in points
            )
            grows = slope(series[-FITTED:])
            yield Curve(
                f"{what} of {NAMES[subject]} against {sweep.axis}, {sweep.subject}",
                f"grows as {sweep.axis}^{grows:.2f} at the end ({reason}); {_ends(series, what)}",
                "",
                None,
                axis=sweep.axis,
                subject=sweep.subject,
                quantity=quantity,
                points=series,
                slope=grows,
                reason=reason,
            )


def _ends(series: Sequence[tuple[float, float]], what: str) -> str:
    low, high = (f"{value:.3g} {'s' if what == 'time' else 'MiB'}" for value in (series[0][1], series[-1][1]))
    return f"{low} to {high}"


def measure(sizes: Sequence[int], samples: int) -> dict[str, float]:
    """Measure one point of a sweep."""
    problem = posed(sizes, samples)
    v = torch.randn(problem.objective.parameters, 1)
    product = problem.hessian_product(1)
    found: dict[str, float] = {"parameters": problem.objective.parameters}
    for name, function in (("moments", lambda: moments(problem)), ("product", lambda: product(v))):
        found[f"{name} memory"] = peak(function) / MIB
        found[f"{name} time"] = statistics.median(seconds(function) for _ in range(REPEATS))
    return found


def warm(problem: Problem) -> None:
    """Do once what a process does only once."""
    moments(problem)
    problem.hessian_product(1)(torch.randn(problem.objective.parameters, 1))


def seconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def peak(function: Callable[[], object]) -> float:
    """Return the peak of resident memory in bytes, beyond what was resident before."""
    libc.malloc_trim(0)  # otherwise freed memory would be reused
    # Resets the peak.
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    function()
    return max(resident("VmHWM") - before, mmap.PAGESIZE)


def resident(name: str) -> int:
    """Return a field of /proc/self/status in bytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024


if __name__ == "__main__":
    sys.exit(not show(rows()))
