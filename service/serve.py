"""`wsb serve`: database, API and workers under one process, which leaves nothing behind when it stops."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from typing import Any

import structlog
import uvicorn

from service.app import create_app
from service.connections import server_config
from service.database import Database
from service.devices import offered_devices
from service.postgres import embedded_postgres
from service.protections import active_protections, required
from service.sandbox import Zygote
from service.scratch import ScratchFolder
from service.security import refuse_exposure
from service.settings import Settings

log = structlog.get_logger(__name__)

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_FIRST_BACKOFF, _LONGEST_BACKOFF, _STEADY = 0.5, 30.0, 15.0
_KILL_MARGIN = 10.0
_DRAIN_SECONDS = 10


def serve(settings: Settings, *, host: str, port: int, workers: int | None, announce: Callable[[str], None]) -> None:
    """Serves until SIGTERM or SIGINT; a second one cuts short the time that running analyses have then.

    Args:
        settings: Without a database URL an embedded Postgres runs alongside.
        host, port: Where to listen; port 0 takes a free one.
        workers: How many; None gives one to each device.
        announce: Told the URL once requests are answered.

    Raises:
        ExposedError: before anything is started, when strangers could use the service.
        OSError: when the address can't be bound, or the database or the API does not start.
        DataFolderInUseError: when another process serves from the same data folder.
        SandboxError: when analyses can't be confined here as the settings require.
    """
    refuse_exposure(host, settings.api_keys, allow_anonymous=settings.allow_anonymous)
    devices = offered_devices()
    count = len(devices) if workers is None else workers
    if count > 0 and required(settings):
        asyncio.run(_try_sandbox(settings, devices[0]))
    listener = _listen(host, port)
    given = settings.database_url
    noted: list[int] = []
    _note_signals(noted)
    with listener, nullcontext(given) if given else embedded_postgres(settings.data_dir) as url:
        if noted:
            return
        connected = settings.model_copy(update={"database_url": url})
        try:
            asyncio.run(_serve(connected, listener, [devices[i % len(devices)] for i in range(count)], announce))
        finally:
            _note_signals(noted)


async def _try_sandbox(settings: Settings, device: str) -> None:
    """Before anything is served: a worker that refuses to run would only be started again and again."""
    with ScratchFolder(settings.job_dir) as scratch:
        async with Zygote() as zygote:
            await active_protections(settings, zygote, scratch.path, device=device)


def _note_signals(noted: list[int]) -> None:
    """Has signals only noted, while ending at once would leave a Postgres behind that is starting or stopping."""
    for number in _STOP_SIGNALS:
        signal.signal(number, lambda received, _: noted.append(received))


async def _serve(
    settings: Settings, listener: socket.socket, devices: Sequence[str], announce: Callable[[str], None]
) -> None:
    stop, hurry = asyncio.Event(), asyncio.Event()
    for number in _STOP_SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, lambda: (hurry if stop.is_set() else stop).set())
    await _migrate(settings)
    app = create_app(settings, stopping=stop)
    server = _Server(server_config(app, settings, drain_seconds=_DRAIN_SECONDS))
    async with _supervised(settings, devices, hurry):
        serving = asyncio.create_task(server.serve([listener]), name="api")
        if started := await _first(serving, server.ready):
            announce(_url(listener))
            await _first(serving, stop)
        # Whoever waits for an analysis answers now. Other requests are answered until the workers have stopped: a
        # balancer needs time to see that this service is not ready any more.
        stop.set()
    server.should_exit = True
    server.force_exit = await _first(serving, hurry)
    await serving
    if not started:
        raise OSError("The API did not start; the log says why.")


async def _first(task: asyncio.Task[Any], event: asyncio.Event, *, seconds: float | None = None) -> bool:
    """Whether the event comes before the task ends, and the time."""
    waiting = asyncio.create_task(event.wait())
    await asyncio.wait([task, waiting], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    return event.is_set()


async def _migrate(settings: Settings) -> None:
    """Before the workers start, so that none of them finds half a schema."""
    database = Database(str(settings.database_url))
    try:
        await database.migrate()
    finally:
        await database.close()


class _Server(uvicorn.Server):
    """uvicorn, which leaves the signals to us and says when it answers."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.ready.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def _supervised(settings: Settings, devices: Sequence[str], hurry: asyncio.Event) -> AsyncIterator[None]:
    """A worker process for each device, restarted when it dies, gone at the end of the block."""
    tasks = [asyncio.create_task(_keep_running(settings, device, hurry), name=f"worker {device}") for device in devices]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _keep_running(settings: Settings, device: str, hurry: asyncio.Event) -> None:
    backoff = _FIRST_BACKOFF
    while True:
        started = time.monotonic()
        process = await _start_worker(settings, device)
        log.info("worker_started", device=device, process=process.pid)
        try:
            code = await process.wait()
        finally:
            await _end_worker(process, settings.shutdown_seconds + _KILL_MARGIN, hurry)
        lived = time.monotonic() - started
        backoff = _FIRST_BACKOFF if lived > _STEADY else min(2 * backoff, _LONGEST_BACKOFF)
        log.error("worker_died", device=device, process=process.pid, code=code, restart_in=backoff)
        await asyncio.sleep(backoff)


async def _start_worker(settings: Settings, device: str) -> asyncio.subprocess.Process:
    # Its stdin is a pipe that this process holds: when this process dies in whatever way, the worker sees the end.
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "service.cli", "worker", "--device", device, "--supervised"),
        stdin=asyncio.subprocess.PIPE,
        stdout=sys.stderr,
        env={**os.environ, "WSB_DATABASE_URL": str(settings.database_url), "WSB_DATA_DIR": str(settings.data_dir)},
        start_new_session=True,
    )


async def _end_worker(process: asyncio.subprocess.Process, patience: float, hurry: asyncio.Event) -> None:
    """Asks the worker to stop, once more when there is a hurry, and kills its process group if it does not."""
    ended = asyncio.create_task(process.wait())
    _send(process, signal.SIGTERM)
    if await _first(ended, hurry, seconds=patience):
        _send(process, signal.SIGINT)
        await asyncio.wait([ended], timeout=_KILL_MARGIN)
    if not ended.done():
        log.warning("worker_killed", process=process.pid)
    # What a worker that died suddenly has left in its group goes with it.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await ended


def _send(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.send_signal(number)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=2048)
    # Inherited by connections. asyncio sets it only on sockets made for IPPROTO_TCP by name; without it the body
    # of a response waits 40 ms for the client to acknowledge the headers.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
