"""Worker processes of this process: one per device, restarted when they die, ended with this process."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import structlog

from service.child.protections import active_protections, required
from service.sandbox import Zygote
from service.settings import Settings
from service.storage.scratch import ScratchFolder

log = structlog.get_logger(__name__)

_FIRST_BACKOFF, _LONGEST_BACKOFF, _STEADY = 0.5, 30.0, 15.0
_KILL_MARGIN = 10.0


async def try_sandbox(settings: Settings, device: str) -> None:
    """Check the sandbox before workers are started: one that refuses to run would be restarted endlessly.

    Raises:
        SandboxError: if analyses can't be confined here as the settings require.
    """
    with ScratchFolder(settings.job_dir) as scratch:
        async with Zygote() as zygote:
            await active_protections(settings, zygote, scratch.path, device=device)


async def supervise(settings: Settings, devices: Sequence[str], stop: asyncio.Event, hurry: asyncio.Event) -> None:
    """Run a worker process for each device until ``stop`` is set; otherwise as ``supervised``.

    Raises:
        SandboxError: if analyses can't be confined here as the settings require.
    """
    if required(settings):
        await try_sandbox(settings, devices[0])
    database: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    database.set_result(str(settings.database_url))
    async with supervised(settings, devices, database, hurry):
        await stop.wait()


@asynccontextmanager
async def supervised(
    settings: Settings, devices: Sequence[str], database: asyncio.Future[str], hurry: asyncio.Event
) -> AsyncIterator[None]:
    """Run a worker process for each device while the block runs.

    Args:
        settings: Settings of the workers.
        devices: Devices; each may occur more than once.
        database: URL of the database, once it is known; the workers start before that and import meanwhile.
        hurry: Cuts short the time that running analyses have at the end of the block.
    """
    tasks = [
        asyncio.create_task(_keep_running(settings, device, database, hurry), name=f"worker {device}")
        for device in devices
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def first(task: asyncio.Task[Any], event: asyncio.Event, *, seconds: float | None = None) -> bool:
    """Wait for the event, at most until the task ends or the time is up; return whether the event is set."""
    waiting = asyncio.create_task(event.wait())
    await asyncio.wait([task, waiting], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    return event.is_set()


async def _keep_running(settings: Settings, device: str, database: asyncio.Future[str], hurry: asyncio.Event) -> None:
    backoff = _FIRST_BACKOFF
    while True:
        started = time.monotonic()
        process = await _start_worker(settings, device)
        log.info("worker_started", device=device, process=process.pid)
        try:
            await _tell(process, database)
            code = await process.wait()
        finally:
            await _end_worker(process, settings.shutdown_seconds + _KILL_MARGIN, hurry)
        lived = time.monotonic() - started
        backoff = _FIRST_BACKOFF if lived > _STEADY else min(2 * backoff, _LONGEST_BACKOFF)
        log.error("worker_died", device=device, process=process.pid, code=code, restart_in=backoff)
        await asyncio.sleep(backoff)


async def _start_worker(settings: Settings, device: str) -> asyncio.subprocess.Process:
    # Its stdin is a pipe held by this process: however this process dies, the worker sees the pipe close.
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "service.cli.commands", "worker", "--device", device, "--supervised"),
        stdin=asyncio.subprocess.PIPE,
        stdout=sys.stderr,
        env={**os.environ, "WSB_DATA_DIR": str(settings.data_dir)},
        start_new_session=True,
    )


async def _tell(process: asyncio.subprocess.Process, database: asyncio.Future[str]) -> None:
    """Send the URL to the worker, unless it has ended by then."""
    url = await asyncio.shield(database)
    if process.stdin is not None:
        with suppress(ConnectionError):
            process.stdin.write(f"{url}\n".encode())
            await process.stdin.drain()


async def _end_worker(process: asyncio.subprocess.Process, patience: float, hurry: asyncio.Event) -> None:
    """Ask the worker to stop, again once ``hurry`` is set, and kill its process group if it does not."""
    ended = asyncio.create_task(process.wait())
    _send(process, signal.SIGTERM)
    if await first(ended, hurry, seconds=patience):
        _send(process, signal.SIGINT)
        await asyncio.wait([ended], timeout=_KILL_MARGIN)
    if not ended.done():
        log.warning("worker_killed", process=process.pid)
    # Also kill what a worker that died suddenly has left in its group.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await ended


def _send(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.send_signal(number)
