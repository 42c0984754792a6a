"""Progress on stderr: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

ProgressSink = Callable[[dict[str, Any]], None]


@contextmanager
def shown_progress() -> Iterator[ProgressSink]:
    """Yield a function that shows progress messages (phase, fraction)."""
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
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("starting", total=1.0)

        def show(message: dict[str, Any]) -> None:
            phase, fraction = _parts(message)
            progress.update(task, description=phase, completed=fraction)

        yield show


class _Lines:
    """Prints one line at the start of a phase, and one for each further quarter of it."""

    def __init__(self) -> None:
        self._last: tuple[str, int] | None = None

    def __call__(self, message: dict[str, Any]) -> None:
        phase, fraction = _parts(message)
        quarter = int(fraction * 4)
        if (phase, quarter) != self._last:
            self._last = (phase, quarter)
            sys.stderr.write(f"{phase} {fraction:.0%}\n")
            sys.stderr.flush()


def _parts(message: dict[str, Any]) -> tuple[str, float]:
    fraction = message.get("fraction", 0)
    return str(message.get("phase", "")), float(fraction) if isinstance(fraction, int | float) else 0.0
