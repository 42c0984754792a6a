"""The device of a worker: which jobs compute on it, and when there is room for another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from service.kit.devices import engine_names, owned


def options_here(worker: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of an analysis with the names that a worker's devices have in its children."""
    names = dict(zip(owned(worker), engine_names(worker), strict=True))
    leading = next(iter(names.values()))
    if wanted.get("devices") is not None:
        several = names.values() if wanted["devices"] == "all" else map(names.__getitem__, wanted["devices"])
        return {**wanted, "devices": list(several)}
    if wanted["device"] == "auto" and leading != "cpu":
        return dict(wanted)  # the child chooses between the CPU and its current GPU, which is the leading one
    return {**wanted, "device": names.get(wanted["device"], leading)}


class Device:
    """The threads of a device; an analysis occupies all of them until it reports that it needs only one.

    Small analyses use one thread, because with more the threads would wait for each other longer than they save; as
    many of them run at once as there are threads.

    Args:
        threads: Number of threads; 1 for a device that runs one analysis at a time, such as a GPU.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._used: dict[int, int] = {}
        """Occupied threads by job."""
        self._closed = False
        self._changed = asyncio.Event()
        self.problem: str | None = None
        """Why the device does not work any more."""
        self.failed = asyncio.Event()
        """Set once it does not."""

    async def room(self) -> bool:
        """Wait until a job may be taken from the queue; False if no more are to be taken."""
        await self._until(lambda: self._closed or sum(self._used.values()) < self.threads)
        return not self._closed

    def add(self, job: int) -> None:
        """Record that a job was taken from the queue."""
        self._used[job] = self.threads

    def share(self, job: int) -> None:
        """Record that the job needs only one thread from now on."""
        if job in self._used:
            self._used[job] = 1
            self._changed.set()

    def leave(self, job: int) -> None:
        """Record that the job no longer computes; safe to repeat."""
        if self._used.pop(job, None) is not None:
            self._changed.set()

    def close(self) -> None:
        """Stop taking jobs."""
        self._closed = True
        self._changed.set()

    def fail(self, problem: str) -> None:
        """Take no more jobs, because the device does not work any more."""
        self.problem = problem
        self.failed.set()
        self.close()

    async def _until(self, reached: Callable[[], bool]) -> None:
        while not reached():
            self._changed.clear()
            await self._changed.wait()
