"""Shared by the comparisons: interleaved timings, medians, and rows that say whether a target was met."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import platform
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection

import numpy as np
import torch


@dataclass(frozen=True)
class Row:
    """One claim, with what was measured."""

    name: str
    measured: str
    target: str
    """Empty if there is none."""
    met: bool | None
    """None if there is no target."""

    def __str__(self) -> str:
        mark = {True: "met", False: "MISSED", None: ""}[self.met]
        return f"{self.name:<58} {self.measured:<58} {self.target:<24} {mark}"


@dataclass(frozen=True)
class Curve(Row):
    """A quantity that grows with one size, for a plot with two logarithmic axes."""

    axis: str = ""
    subject: str = ""
    """What stays fixed."""
    quantity: str = ""
    points: tuple[tuple[float, float], ...] = ()
    slope: float = 0.0
    """Slope of the line through the logarithms of the last points."""
    reason: str = ""


def alternate(
    functions: Mapping[str, Callable[[], object]], *, repeats: int = 7, warmup: int = 1, before: int = 0
) -> dict[str, list[float]]:
    """Time functions in turns, so that whatever slows the machine slows all of them.

    Args:
        functions: The functions by name.
        repeats: Number of timed calls of each.
        warmup: Number of calls of each before the first turn.
        before: Number of calls of each just before it is timed, for functions that are used many times in a row.

    Returns:
        Seconds of each call, by name.
    """
    for function in functions.values():
        for _ in range(warmup):
            function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            for _ in range(before):
                function()
            started = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(seconds: Mapping[str, list[float]], ours: str, theirs: str) -> float:
    """Return the median over the turns of theirs / ours: how many times faster ours is."""
    return statistics.median(b / a for a, b in zip(seconds[ours], seconds[theirs], strict=True))


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the slope of the line through the logarithms."""
    x, y = np.log(np.array(points)).T
    return float(np.polyfit(x, y, 1)[0])


def duration(values: Sequence[float]) -> str:
    """Format median and range in seconds, or in milliseconds below one second."""
    if statistics.median(values) < 1:
        return milliseconds(list(values))
    return f"{statistics.median(values):.3g} s ({min(values):.3g}–{max(values):.3g})"


def milliseconds(values: list[float]) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle * 1e3:.3g} ms ({low * 1e3:.3g}–{high * 1e3:.3g})"


def machine() -> str:
    """Describe processors, load, threads and versions, for the head of a table."""
    load = os.getloadavg()[0]
    return (
        f"{os.cpu_count()} cores, load {load:.2f}, {torch.get_num_threads()} torch threads "
        f"(OMP_WAIT_POLICY {os.environ.get('OMP_WAIT_POLICY', 'unset')}), "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )


def show(rows: Iterable[Row]) -> bool:
    """Print the machine and each row as it comes; return True if no target was missed."""
    print(machine())
    met = True
    for row in rows:
        print(row, flush=True)
        met = met and row.met is not False
    return met


def rows_apart(module: str) -> Iterator[Row]:
    """Yield the rows of a module, run in a separate process so that memory and threads do not affect the next."""
    return apart(partial(_rows_of, module), module)


def apart(rows: Callable[[], Iterable[Row]], name: str) -> Iterator[Row]:
    """Yield what a function yields in a separate process; a row with this name says if that failed."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(rows, sender))
    process.start()
    sender.close()
    try:
        while True:
            yield receiver.recv()
    except EOFError:
        process.join()
    finally:
        receiver.close()
        process.terminate()
        process.join()
    if process.exitcode:
        yield Row(name, f"exited with {process.exitcode}: see above", "rows", False)


def end_with_what_was_started() -> None:
    """Make SIGTERM raise, so that every context manager is exited."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def _rows_of(module: str) -> Iterable[Row]:
    rows: Iterable[Row] = importlib.import_module(module).rows()
    return rows


def _send(rows: Callable[[], Iterable[Row]], sender: Connection) -> None:
    end_with_what_was_started()
    for row in rows():
        sender.send(row)
