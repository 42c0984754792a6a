"""The device of a worker: who computes on it, and when there is room for another analysis."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Device:
    """The threads of a device, which one analysis has for itself until it says that it needs one only.

    Small analyses use one thread, since more would wait for each other longer than they save: there are as many of them
    at a time as threads.

    Args:
        threads: 1 for what runs one analysis at a time in any case, as a GPU does.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._used: dict[int, int] = {}
        """Threads by job."""
        self._closed = False
        self._changed = asyncio.Event()

    async def room(self) -> bool:
        """Waits until a job may be taken from the queue; False when none is to be taken any more."""
        await self._until(lambda: self._closed or sum(self._used.values()) < self.threads)
        return not self._closed

    def add(self, job: int) -> None:
        """A job was taken from the queue."""
        self._used[job] = self.threads

    def share(self, job: int) -> None:
        """The job needs one thread from now on."""
        if job in self._used:
            self._used[job] = 1
            self._changed.set()

    def leave(self, job: int) -> None:
        """The job does not compute, or not any more; safe to repeat."""
        if self._used.pop(job, None) is not None:
            self._changed.set()

    def close(self) -> None:
        """No further job is taken."""
        self._closed = True
        self._changed.set()

    async def _until(self, reached: Callable[[], bool]) -> None:
        while not reached():
            self._changed.clear()
            await self._changed.wait()
