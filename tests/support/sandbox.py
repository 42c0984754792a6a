"""Sandboxes that the tests of a process share; each analysis runs in a separate child, as always."""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

from service.child.entry import PRELOAD
from service.cli.progress import ProgressSink
from service.sandbox import Job, Outcome, Zygote

FAKE_ENTRY = Path(__file__).parents[1] / "service" / "fake"


class _Shared(Zygote):
    async def close(self) -> None:
        """Stay for the next test: starting takes longer than any small analysis."""


def fake_zygote(kind: type[Zygote] = Zygote) -> Zygote:
    """Return a zygote for the fake entry, which has imported what costs each child most of its time."""
    return kind(("service.child.entry", "fake_entry"), python_path=[FAKE_ENTRY])


class Background:
    """Zygotes with the engine and with the fake entry, and their loop in a thread that lasts as long as this process.

    They start at their first use.
    """

    def __init__(self) -> None:
        self.engine: Zygote = _Shared(PRELOAD)
        self.fake = fake_zygote(_Shared)
        self.loop = asyncio.new_event_loop()
        self.loop.set_default_executor(ThreadPoolExecutor(32))
        self._thread = threading.Thread(target=self.loop.run_forever, name="services", daemon=True)
        self._thread.start()
        atexit.register(self._end)

    def call(self, awaitable: Any) -> Future[Any]:
        """Begin to run a coroutine in the loop."""
        return asyncio.run_coroutine_threadsafe(awaitable, self.loop)

    async def run(self, job: Job, progress: ProgressSink) -> Outcome:
        """Run a job with the engine for a caller in another loop."""
        outcome: Outcome = await asyncio.wrap_future(self.call(self.engine.run(job, progress)))
        return outcome

    def _end(self) -> None:
        for zygote in (self.engine, self.fake):
            self.call(Zygote.close(zygote)).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


background = cache(Background)


@asynccontextmanager
async def shared() -> AsyncIterator[Callable[[Job, ProgressSink], Awaitable[Outcome]]]:
    """Stand in for the sandbox of a command that runs in this process."""
    yield background().run
