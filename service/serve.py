"""`wsb serve`: database, API and workers under one process, which leaves nothing behind when it stops."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import uvicorn

from service.app import create_app
from service.connections import server_config
from service.database import Database
from service.devices import offered_devices
from service.postgres import embedded_postgres
from service.protections import required
from service.security import refuse_exposure
from service.settings import Settings
from service.supervision import first, supervised, try_sandbox

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
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
        asyncio.run(try_sandbox(settings, devices[0]))
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
    async with supervised(settings, devices, hurry):
        serving = asyncio.create_task(server.serve([listener]), name="api")
        if started := await first(serving, server.ready):
            announce(_url(listener))
            await first(serving, stop)
        # Whoever waits for an analysis answers now. Other requests are answered until the workers have stopped: a
        # balancer needs time to see that this service is not ready any more.
        stop.set()
    server.should_exit = True
    server.force_exit = await first(serving, hurry)
    await serving
    if not started:
        raise OSError("The API did not start; the log says why.")


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
