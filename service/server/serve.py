"""`wsb serve`: database, API and workers under one process, which cleans up when it stops."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from service.child.protections import required
from service.http.bind_address import check_bind_address
from service.kit.devices import offered_devices
from service.server.malloc import keep_freed_memory
from service.server.postgres import embedded_postgres
from service.server.supervision import first, supervised, try_sandbox
from service.settings import Settings

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_DRAIN_SECONDS = 10


class DatabaseUnusableError(Exception):
    """The configured database can't be reached or used."""


def serve(settings: Settings, *, host: str, port: int, workers: int | None, announce: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; a second signal cuts short the time that running analyses then have.

    Args:
        settings: Settings; without a database URL, an embedded Postgres is started.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        workers: Number of workers; None starts one per device.
        announce: Called with the URL once the service accepts requests.

    Raises:
        UnsafeBindAddressError: before anything is started, if others could use the service without a key.
        OSError: if the address can't be bound, or the database or the API does not start.
        DataFolderInUseError: if another process serves from the same data folder.
        SandboxError: if analyses can't be confined here as the settings require.
        DatabaseUnusableError: if the configured database can't be used.
    """
    keep_freed_memory()
    check_bind_address(host, settings.api_keys, allow_anonymous=settings.allow_anonymous)
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
    # Workers, Postgres and this process each take seconds to start, concurrently. A signal meanwhile is only recorded:
    # exiting at once would leave a starting Postgres behind.
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
            # Requests that wait for an analysis respond now. Others are served until the workers have stopped: a load
            # balancer needs time to notice that this service is no longer ready.
            stop.set()
        server.should_exit = True
        server.force_exit = await first(serving, hurry)
        await serving
        if not started:
            raise OSError("The API did not start; the log has the cause.")
    finally:
        await asyncio.wait([starting])
        await asyncio.to_thread(with_database.close)


def _database_url(settings: Settings, with_database: ExitStack) -> str:
    """Return the URL of the configured database, or of an embedded one that runs until the stack is closed."""
    return settings.database_url or with_database.enter_context(embedded_postgres(settings.data_dir))


async def _migrate(url: str) -> None:
    """Migrate before the workers know the database, so that none of them finds an incomplete schema."""
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
    # Inherited by connections. asyncio sets it only on sockets created with IPPROTO_TCP explicitly; without it the body
    # of a response waits 40 ms for the client to acknowledge the headers.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
