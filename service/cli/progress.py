"""Progress on stderr: a bar on a terminal, a line for each phase elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from pydantic import ValidationError

from wsb_engine.costs import Estimate
from wsb_engine.presentation.numbers import duration, interval
from wsb_engine.progress import InterimEnclosure

ProgressSink = Callable[[dict[str, Any]], None]
KNOWN_SECONDS = 10.0
"""Shortest interval between two lines that say what is certified."""
JUDGED_SECONDS, JUDGED_FRACTION = 1.0, 0.05
"""How much of a phase tells how long it will take; before that the estimate counts."""
TOLD_SECONDS = 1.0
"""Shortest rest of an analysis that is worth a word."""


class Step(NamedTuple):
    """What a message says, in words."""

    phase: str
    """Such as ``enclosure``; with an estimate, ``3 of 5: enclosure``."""
    fraction: float | None
    """Fraction of the phase that is done; None if the message does not say."""
    detail: str
    """Why nothing goes on, products so far, and an estimate of what is left; empty if none of these is known."""


class Follower:
    """Turns progress messages into words; keeps what it takes to estimate the rest."""

    def __init__(self) -> None:
        self._begun: list[str] = []
        """Phases so far, in order."""
        self._estimate: Estimate | None = None
        self._since = time.monotonic()
        """When the current phase began."""

    def step(self, message: dict[str, Any]) -> Step:
        """Take the next message (phase, fraction, reason, hessian_vector_products, estimate)."""
        phase, fraction = str(message.get("phase", "")), message.get("fraction")
        done = float(fraction) if isinstance(fraction, int | float) else None
        if phase not in self._begun:
            self._begun.append(phase)
            self._since = time.monotonic()
        self._estimate = self._estimate or _estimate(message)
        reason = [str(message["reason"])] if "reason" in message else []
        parts = [*reason, *self._products(message, phase), *self._rest(phase, done or 0.0)]
        return Step(f"{self._place(phase)}{phase}", done, ", ".join(parts))

    def _place(self, phase: str) -> str:
        """Return ``n of m: `` for a phase of the estimate."""
        names = [] if self._estimate is None else [each.name for each in self._estimate.phases]
        if phase not in names:
            return ""
        begun = [name for name in self._begun if name in names]
        return f"{begun.index(phase) + 1} of {len(names)}: "

    def _products(self, message: dict[str, Any], phase: str) -> list[str]:
        count = message.get("hessian_vector_products")
        if not isinstance(count, int) or count <= 0:
            return []
        expected = 0 if self._estimate is None or phase != "enclosure" else self._estimate.products
        return [f"{count} of about {expected} products" if expected > count else f"{count} products"]

    def _rest(self, phase: str, fraction: float) -> list[str]:
        """Estimate what is left: of this phase by how fast it goes, of later ones as the estimate says."""
        if self._estimate is None:
            return []
        seconds = {each.name: each.seconds for each in self._estimate.phases}
        later = sum(cost for name, cost in seconds.items() if name not in self._begun)
        elapsed, here = time.monotonic() - self._since, (1 - fraction) * seconds.get(phase, 0.0)
        if fraction >= JUDGED_FRACTION and elapsed >= JUDGED_SECONDS:
            here = elapsed * (1 - fraction) / fraction
        left = here + later
        return [f"about {duration(left)} left"] if left >= TOLD_SECONDS else []


@contextmanager
def shown_progress() -> Iterator[ProgressSink]:
    """Yield a function that shows progress messages (phase, fraction, enclosure, estimate)."""
    if sys.stderr.isatty():
        with _bar() as sink:
            yield sink
    else:
        yield _Lines()


@contextmanager
def _bar() -> Iterator[ProgressSink]:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.text import Text

    # Without a total the bar pulses and has no percentage: work is done, but nobody knows how much of it.
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=12), TaskProgressColumn(), TimeElapsedColumn())
    progress, known, follower = Progress(*columns, TextColumn("{task.fields[detail]}")), Text(), Follower()
    task = progress.add_task("start", total=None, detail="")
    with Live(Group(progress, known), console=Console(stderr=True), transient=True, refresh_per_second=10):

        def show(message: dict[str, Any]) -> None:
            step = follower.step(message)
            known.plain = f"so far: {found}" if (found := _known(message)) else ""
            total = None if step.fraction is None else 1.0
            progress.update(
                task, description=step.phase, total=total, completed=step.fraction or 0.0, detail=step.detail
            )

        yield show


class _Lines:
    """Prints a line at the start of a phase, and at times what is certified."""

    def __init__(self) -> None:
        self._follower = Follower()
        self._phase = ""
        self._told, self._next = "", time.monotonic() + KNOWN_SECONDS

    def __call__(self, message: dict[str, Any]) -> None:
        step, phase = self._follower.step(message), str(message.get("phase", ""))
        if phase != self._phase:
            self._phase = phase
            self._write(", ".join(filter(None, (step.phase, step.detail))))
        known = _known(message)
        if known != self._told and time.monotonic() >= self._next:
            self._told, self._next = known, time.monotonic() + KNOWN_SECONDS
            self._write(f"so far: {known}")

    def _write(self, line: str) -> None:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def _estimate(message: dict[str, Any]) -> Estimate | None:
    try:
        return Estimate.model_validate(message.get("estimate"))
    except ValidationError:
        return None


def _known(message: dict[str, Any]) -> str:
    """Say what is certified so far; empty if nothing is."""
    try:
        known = InterimEnclosure.model_validate(message.get("enclosure"))
    except ValidationError:
        return ""
    return f"λ_max in {interval(known.lambda_max)} after {known.hessian_vector_products} products"
