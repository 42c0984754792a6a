"""What the comparisons share: interleaved timings, medians, and a row that says whether its target was met."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Row:
    """One claim, with what was measured."""

    name: str
    measured: str
    target: str
    """Empty where a figure is only told."""
    met: bool | None
    """None where there is no target."""

    def __str__(self) -> str:
        mark = {True: "met", False: "MISSED", None: ""}[self.met]
        return f"{self.name:<58} {self.measured:<58} {self.target:<24} {mark}"


def alternate(
    functions: Mapping[str, Callable[[], object]], *, repeats: int = 7, warmup: int = 1
) -> dict[str, list[float]]:
    """Seconds of each function, called in turns so that what slows the machine slows all of them."""
    for function in functions.values():
        for _ in range(warmup):
            function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(seconds: Mapping[str, list[float]], ours: str, theirs: str) -> float:
    """Median over the turns of theirs / ours: how often ours fits into theirs."""
    return statistics.median(b / a for a, b in zip(seconds[ours], seconds[theirs], strict=True))


def milliseconds(values: list[float]) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle * 1e3:.3g} ms ({low * 1e3:.3g}–{high * 1e3:.3g})"


def machine() -> str:
    """Processor count, load, threads and versions, for the head of a table."""
    load = os.getloadavg()[0]
    return (
        f"{os.cpu_count()} cores, load {load:.2f}, {torch.get_num_threads()} threads, "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )


def show(rows: Iterable[Row]) -> bool:
    """Prints the machine and each row as it comes; whether no target was missed."""
    print(machine())
    met = True
    for row in rows:
        print(row, flush=True)
        met = met and row.met is not False
    return met
