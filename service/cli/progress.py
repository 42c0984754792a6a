"""Progress on stderr: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

from service.rendering.numbers import interval
from wsb_engine.progress import InterimEnclosure

ProgressSink = Callable[[dict[str, Any]], None]
KNOWN_SECONDS = 10.0
"""Shortest interval between two lines that say what is certified."""


@contextmanager
def shown_progress() -> Iterator[ProgressSink]:
    """Yield a function that shows progress messages (phase, fraction, enclosure)."""
    if sys.stderr.isatty():
        with _bar() as sink:
            yield sink
    else:
        yield _Lines()


@contextmanager
def _bar() -> Iterator[ProgressSink]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<12}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    last = (TimeElapsedColumn(), TextColumn("{task.fields[known]}"))
    with Progress(*columns, *last, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("starting", total=1.0, known="")

        def show(message: dict[str, Any]) -> None:
            phase, fraction = _parts(message)
            # A square bracket would begin a tag.
            progress.update(task, description=phase, completed=fraction, known=_known(message).replace("[", r"\["))

        yield show


class _Lines:
    """Prints a line at the start of a phase, one for each further quarter of it, and at times what is certified."""

    def __init__(self) -> None:
        self._last: tuple[str, int] | None = None
        self._told, self._next = "", time.monotonic() + KNOWN_SECONDS

    def __call__(self, message: dict[str, Any]) -> None:
        phase, fraction = _parts(message)
        quarter = int(fraction * 4)
        if (phase, quarter) != self._last:
            self._last = (phase, quarter)
            self._write(f"{phase} {fraction:.0%}")
        known = _known(message)
        if known != self._told and time.monotonic() >= self._next:
            self._told, self._next = known, time.monotonic() + KNOWN_SECONDS
            self._write(f"so far: {known}")

    def _write(self, line: str) -> None:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def _known(message: dict[str, Any]) -> str:
    """Say what is certified so far; empty if nothing is."""
    try:
        known = InterimEnclosure.model_validate(message.get("enclosure"))
    except ValidationError:
        return ""
    return f"λ_max in {interval(known.lambda_max)} after {known.hessian_vector_products} products"


def _parts(message: dict[str, Any]) -> tuple[str, float]:
    fraction = message.get("fraction", 0)
    return str(message.get("phase", "")), float(fraction) if isinstance(fraction, int | float) else 0.0
