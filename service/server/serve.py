"""`wsb serve`: database, API and workers under one process, which leaves nothing behind when it stops."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from service.child.protections import required
from service.http.exposure import refuse_exposure
from service.kit.devices import offered_devices
from service.server.allocation import keep_freed_memory
from service.server.postgres import embedded_postgres
from service.server.supervision import first, supervised, try_sandbox
from service.settings import Settings

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_DRAIN_SECONDS = 10


class DatabaseUnusableError(Exception):
    """The database that was given can't be reached, or can't be used."""


def serve(settings: Settings, *, host: str, port: int, workers: int | None, announce: Callable[[str], None]) -> None:
    """Serves until SIGTERM or SIGINT; a second one cuts short the time that running analyses have then.

    Args:
        settings: Without a database URL an embedded Postgres runs alongside.
        host, port: Where to listen; port 0 takes a free one.
        workers: Number of workers; None starts one per device.
        announce: Called with the URL once requests are answered.

    Raises:
        ExposedError: before anything is started, when strangers could use the service.
        OSError: when the address can't be bound, or the database or the API does not start.
        DataFolderInUseError: when another process serves from the same data folder.
        SandboxError: when analyses can't be confined here as the settings require.
        DatabaseUnusableError: when a database was given that can't be used.
    """
    keep_freed_memory()
    refuse_exposure(host, settings.api_keys, allow_anonymous=settings.allow_anonymous)
    devices = offered_devices()
    count = len(devices) if workers is None else workers
    if count > 0 and required(settings):
        asyncio.run(try_sandbox(settings, devices[0]))
    with _listen(host, port) as listener:
        asyncio.run(_serve(settings, listener, [devices[i % len(devices)] for i in range(count)], announce))


async def _serve(
    settings: Settings, listener: socket.socket, devices: Sequence[str], announce: Callable[[str], None]
) -> None:
    stop, hurry = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, lambda: (hurry if stop.is_set() else stop).set())
    database: asyncio.Future[str] = loop.create_future()
    with_database = ExitStack()
    # Workers, Postgres and this process take seconds to start, each on its own. A signal meanwhile is only noted:
    # ending at once would leave a Postgres behind that is starting.
    starting = asyncio.create_task(asyncio.to_thread(_database_url, settings, with_database))
    try:
        async with supervised(settings, devices, database, hurry):
            await asyncio.sleep(0)
            from service.http.listen import Server, server_config
            from service.server.app import create_app

            url = await starting
            if stop.is_set():
                return
            connected = settings.model_copy(update={"database_url": url})
            await _migrate(url)
            database.set_result(url)
            app = create_app(connected, stopping=stop)
            server = Server(server_config(app, connected, drain_seconds=_DRAIN_SECONDS))
            serving = asyncio.create_task(server.serve([listener]), name="api")
            if started := await first(serving, server.ready):
                announce(_url(listener))
                await first(serving, stop)
            # Whoever waits for an analysis answers now. Other requests are answered until the workers have stopped:
            # a balancer needs time to see that this service is not ready any more.
            stop.set()
        server.should_exit = True
        server.force_exit = await first(serving, hurry)
        await serving
        if not started:
            raise OSError("The API did not start; the log says why.")
    finally:
        await asyncio.wait([starting])
        await asyncio.to_thread(with_database.close)


def _database_url(settings: Settings, with_database: ExitStack) -> str:
    """Of the database that was given, or of an embedded one, which runs until the stack is closed."""
    return settings.database_url or with_database.enter_context(embedded_postgres(settings.data_dir))


async def _migrate(url: str) -> None:
    """Before the workers know the database, so that none of them finds half a schema."""
    from sqlalchemy.exc import OperationalError

    from service.database.engine import Database, NewerDatabaseError

    database = Database(url)
    try:
        await database.migrate()
    except OperationalError as error:
        raise DatabaseUnusableError(f"The database can't be used: {error.orig}") from error
    except NewerDatabaseError as error:
        raise DatabaseUnusableError(str(error)) from error
    finally:
        await database.close()


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
