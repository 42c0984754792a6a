"""The caller's handle: runs jobs in children of a zygote, and replaces a zygote that has died."""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from service.sandbox.cgroup import has_killed, job_group
from service.sandbox.diagnosis import Evidence, ProgressCallback, diagnose, observe, oom_kill_count
from service.sandbox.errors import SandboxError
from service.sandbox.job import LOG_NAME, Job, JobError, Outcome, Place
from service.sandbox.process import Running, ZygoteProcess, encoded, first_done
from service.sandbox.protocol import FrameDecoder

_CHUNK_BYTES = 16 << 10
"""Bytes read at once: few enough that decoding their frames blocks the event loop for milliseconds only."""

_LOG_TAIL_BYTES = 16 << 10


class Zygote:
    """Runs jobs, each in a fresh child forked from one preloaded process; several may run concurrently.

    Use it in one event loop, as an async context manager or with ``start`` and ``close``. The loop's thread must
    outlive it, because the kernel ends the zygote and its children when that thread ends.

    Args:
        preload: Modules to import before the first fork. None of them may start a thread on import.
        python_path: Folders to import from, before those of this process.
        start_seconds: Time limit for the imports.
    """

    def __init__(
        self, preload: Sequence[str] = (), *, python_path: Sequence[Path] = (), start_seconds: float = 120.0
    ) -> None:
        self._preload = tuple(preload)
        self._python_path = tuple(python_path)
        self._start_seconds = start_seconds
        self._process: ZygoteProcess | None = None
        self._starting = asyncio.Lock()
        self._closed = False

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def pid(self) -> int | None:
        """Process id of the zygote; None if none is running."""
        return self._process.pid if self._process is not None and self._process.alive else None

    async def start(self) -> None:
        """Start the zygote now rather than with the first job.

        Raises:
            SandboxError: if it can't be started.
        """
        await self._live_process()

    async def close(self) -> None:
        """End the zygote; running jobs end as crashed."""
        self._closed = True
        async with self._starting:
            if self._process is not None:
                await self._process.stop()
                self._process = None

    async def run(self, job: Job, on_progress: ProgressCallback | None = None) -> Outcome:
        """Run one job to its end, in a child that is forked now.

        Raises:
            As ``Child.run``.
        """
        child = Child(await self._live_process(), job)
        try:
            return await child.run(job.request, job.seconds, on_progress)
        finally:
            await child.end()

    async def fork(self, place: Place) -> Child:
        """Fork a child before its request is known; the caller must end it.

        Raises:
            SandboxError: if no zygote can be started or no child forked.
            OSError: if the log file can't be created in the job folder.
        """
        child = Child(await self._live_process(), place)
        try:
            await child.fork()
        except BaseException:
            await child.end()
            raise
        return child

    async def _live_process(self) -> ZygoteProcess:
        async with self._starting:
            if self._closed:
                raise RuntimeError("this Zygote is closed")
            if self._process is None or not self._process.alive:
                self._process = await ZygoteProcess.start(self._preload, self._python_path, self._start_seconds)
            return self._process


class Child:
    """A child that runs one request; created by a ``Zygote``."""

    def __init__(self, process: ZygoteProcess, place: Place) -> None:
        self.place = place
        self._process = process
        self._running: Running | None = None
        self._closing = ExitStack()
        self._log = os.open(
            place.folder / LOG_NAME, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW, 0o600
        )
        self._closing.callback(os.close, self._log)
        self._group = self._closing.enter_context(job_group(place.group, place.limits.memory_bytes))

    @property
    def waits(self) -> bool:
        """Whether it has been forked and waits for a request."""
        return self._running is not None and not self._running.ended.done()

    async def fork(self) -> None:
        """Fork it now rather than with its request.

        Raises:
            SandboxError: if it can't be forked.
        """
        async with self._process.turn:
            self._running = running = self._process.launch(self.place, self._log, self._group)
            await first_done(running.forked)
        if running.fork_failure is not None:
            raise SandboxError(
                f"No process could be forked for the job: {running.fork_failure}.",
                code="fork_failed",
                advice="Give the worker more memory, or a higher limit on processes.",
            )

    async def run(
        self, request: dict[str, Any], seconds: float, on_progress: ProgressCallback | None = None
    ) -> Outcome:
        """Run its request to the end; may be called once.

        Cancelling this, or an exception in ``on_progress``, which propagates, kills the child and its process group and
        waits until they are gone.

        Args:
            request: JSON-compatible argument of the entry; numbers must be finite.
            seconds: Wall-clock limit.
            on_progress: Called with each progress report of the entry.

        Raises:
            SandboxError: if no child can be forked; the job has then not begun.
            TypeError, ValueError: if the request is not JSON-compatible.
        """
        content = encoded({"request": request, "seconds": seconds})
        started = time.monotonic()
        evidence = Evidence()
        oom_kills = oom_kill_count()
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                if self._running is None:
                    await self.fork()
                assert self._running is not None  # noqa: S101 - it has been forked
                self._running.tell(content)
                decoder = FrameDecoder(self.place.limits.frame_bytes)
                await _hear(self._running, decoder, evidence, on_progress)
                if evidence.violation is None:
                    await first_done(self._running.ended)
        except TimeoutError:
            if not limit.expired():
                raise
            evidence.timed_out = True
        finally:
            await self._stop()
        evidence.exit = None if self._running is None else self._running.ended.result()
        killed = self._group is not None and has_killed(self._group)
        evidence.oom_kills = oom_kill_count() != oom_kills or killed
        status, ending = diagnose(evidence, seconds=seconds)
        return Outcome(
            status=status,
            interrupted=status == "crashed" and evidence.interrupted,
            result=ending if isinstance(ending, str) else None,
            error=ending if isinstance(ending, JobError) else None,
            exit_code=None if evidence.exit is None else evidence.exit.code,
            exit_signal=None if evidence.exit is None else evidence.exit.signal,
            peak_memory_bytes=None if evidence.exit is None else evidence.exit.peak_memory_bytes,
            seconds=time.monotonic() - started,
            log=_tail(self._log),
        )

    async def end(self) -> None:
        """Ensure that it has ended and release its resources; safe to repeat."""
        try:
            await self._stop()
        finally:
            self._closing.close()

    async def _stop(self) -> None:
        if self._running is not None:
            self._running.close()
            await self._process.end(self._running)


async def _hear(
    running: Running, decoder: FrameDecoder, evidence: Evidence, on_progress: ProgressCallback | None
) -> None:
    """Read frames until the stream ends or violates the protocol."""
    size, child_is_gone = _CHUNK_BYTES, False
    while not child_is_gone:
        await _readable(running)
        if child_is_gone := running.ended.done():
            # A process that the child forked may hold the pipe open and go on writing. What the child itself wrote is
            # within the first bytes, up to the capacity of the pipe.
            size = fcntl.fcntl(running.pipe, fcntl.F_GETPIPE_SZ)
        try:
            data = os.read(running.pipe, size)
        except BlockingIOError:
            return
        if not data:
            return
        if not await observe(data, decoder, evidence, on_progress):
            return


async def _readable(running: Running) -> None:
    """Wait until there are bytes, the pipe is closed, or the child has ended."""
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()
    loop.add_reader(running.pipe, _wake, readable)
    try:
        await first_done(readable, running.ended)
    finally:
        loop.remove_reader(running.pipe)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _tail(log: int) -> str:
    size = os.fstat(log).st_size
    return os.pread(log, _LOG_TAIL_BYTES, max(0, size - _LOG_TAIL_BYTES)).decode(errors="replace")
