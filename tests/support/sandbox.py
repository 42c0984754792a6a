"""The engine in a sandbox that the tests of a process share; each analysis runs in a separate child, as always."""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

from service.child.entry import PRELOAD
from service.cli.progress import ProgressSink
from service.sandbox import Job, Outcome, Zygote


class _Shared(Zygote):
    async def close(self) -> None:
        """Stay for the next test: starting takes longer than any small analysis."""


class Background:
    """A zygote with the engine, and its event loop in a thread that lasts as long as this process."""

    def __init__(self) -> None:
        self.zygote: Zygote = _Shared(PRELOAD)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        atexit.register(self._end)

    def call(self, awaitable: Any) -> Future[Any]:
        """Begin to run a coroutine in the loop."""
        return asyncio.run_coroutine_threadsafe(awaitable, self._loop)

    async def run(self, job: Job, progress: ProgressSink) -> Outcome:
        """Run a job for a caller in another loop."""
        outcome: Outcome = await asyncio.wrap_future(self.call(self.zygote.run(job, progress)))
        return outcome

    def _end(self) -> None:
        self.call(Zygote.close(self.zygote)).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


background = cache(Background)


@asynccontextmanager
async def shared() -> AsyncIterator[Callable[[Job, ProgressSink], Awaitable[Outcome]]]:
    """Stand in for the sandbox of a command that runs in this process."""
    yield background().run
