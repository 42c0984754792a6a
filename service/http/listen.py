"""The configuration of uvicorn: HTTP/1.1 by h11, with limits on the size and time of a request's head."""

from __future__ import annotations

import asyncio
import resource
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, ClassVar

import h11
import uvicorn
from fastapi import FastAPI

from service.errors import MalformedRequestError, ServiceError
from service.internals.http import Protocol
from service.settings import Settings

_PIECE_BYTES = 256 << 10
"""Bytes read from a connection at once; asyncio's default."""
_BODY_PIECE_BYTES = 2 << 20
"""The same within a body: every read costs one turn of the event loop, whatever its size."""
SPARE_DESCRIPTORS = 200
"""Descriptors that are not for connections: those of uploads, of the database, of the program itself."""
_RESET = struct.pack("ii", 1, 0)
"""Makes closing a connection drop what has not been sent."""
_PARSED_BYTES = 64 << 10
"""Bytes that h11 parses at once: it copies them several times, which is much faster within the processor's cache."""


def server_config(app: FastAPI, settings: Settings, *, drain_seconds: int | None = None) -> uvicorn.Config:
    """Configure a server for the application.

    Args:
        app: Application from ``create_app``.
        settings: Limits on connections.
        drain_seconds: Time for requests to finish when the server stops; None waits without limit.
    """

    class Limited(_Protocol):
        head_bytes = settings.max_request_head_bytes
        head_seconds = settings.request_head_seconds
        idle_seconds = settings.download_idle_seconds
        least_bytes = settings.download_min_bytes_per_second * settings.download_idle_seconds
        most_connections = settings.max_connections or _offered_connections()

    return uvicorn.Config(
        app,
        http=Limited,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=drain_seconds,
        h11_max_incomplete_event_size=settings.max_request_head_bytes,
    )


class TooManyConnectionsError(
    ServiceError, status=503, code="too_many_connections", title="Too many connections are open"
): ...


_TOO_MANY = TooManyConnectionsError(
    "The server has no room for another connection.", advice="Try again later.", headers={"Retry-After": "5"}
)


class _Protocol(Protocol):
    """Limits the size of a request's line and headers, and closes connections that make the server wait.

    Those are the ones on which a head arrives too late, or whose client does not take its response. uvicorn itself
    limits only the time before the first byte of a request, and only after an earlier request on the same connection.
    ``service.http.bodies`` limits bodies.
    """

    head_bytes: ClassVar[int]
    head_seconds: ClassVar[float]
    idle_seconds: ClassVar[float]
    least_bytes: ClassVar[float]
    """Bytes of a response that a client must take within ``idle_seconds``."""
    most_connections: ClassVar[int]
    _head_timer: asyncio.TimerHandle | None = None
    _response_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.most_connections:
            self._refuse(_TOO_MANY, b"Service Unavailable")
            return
        self._time_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._time_response()

    def resume_writing(self) -> None:
        super().resume_writing()
        _cancel(self._response_timer)

    def _time_response(self) -> None:
        left = self.transport.get_write_buffer_size()
        self._response_timer = self.loop.call_later(self.idle_seconds, self._check_response, left)

    def _check_response(self, before: int) -> None:
        # While writing is paused nothing is added: what is missing has been taken.
        if before - self.transport.get_write_buffer_size() < max(self.least_bytes, 1):
            with suppress(OSError):  # otherwise the kernel would keep what the client does not take, too
                self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.transport.abort()
        else:
            self._time_response()

    def data_received(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest and not self.transport.is_closing():
            # h11 checks the size of a head only while it is incomplete, so it is given no more than the limit.
            most = self.head_bytes + 1 if self.conn.their_state is h11.IDLE else _PARSED_BYTES
            super().data_received(rest[:most])  # type: ignore[arg-type]
            rest = rest[most:]
        self._read_at_most(_BODY_PIECE_BYTES if self.conn.their_state is h11.SEND_BODY else _PIECE_BYTES)
        self._time_head()

    def _read_at_most(self, size: int) -> None:
        with suppress(AttributeError):  # not a transport of asyncio's own event loop
            self.transport.max_size = size  # type: ignore[attr-defined]

    def connection_lost(self, exc: Exception | None) -> None:
        _cancel(self._head_timer)
        _cancel(self._response_timer)
        super().connection_lost(exc)

    def _time_head(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            _cancel(self._head_timer)
            self._head_timer = None
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_seconds, self._head_missing)

    def _head_missing(self) -> None:
        self._head_timer = None
        if self.conn.their_state is h11.IDLE:
            self.timeout_keep_alive_handler()

    def send_400_response(self, msg: str) -> None:
        """Answer invalid HTTP with a problem, like every other error."""
        self._refuse(MalformedRequestError(msg), b"Bad Request")

    def _refuse(self, error: ServiceError, reason: bytes) -> None:
        """Answer without a request that the application could see, and close the connection."""
        problem = error.response()
        headers = [*problem.raw_headers, (b"connection", b"close")]
        events: list[Any] = [
            h11.Response(status_code=problem.status_code, headers=headers, reason=reason),
            h11.Data(data=bytes(problem.body)),
            h11.EndOfMessage(),
        ]
        for event in events:
            self.transport.write(self.conn.send(event))
        self.transport.close()


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def _offered_connections() -> int:
    """Return how many connections leave descriptors for the database and for files."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if files == resource.RLIM_INFINITY else max(files - SPARE_DESCRIPTORS, files // 2)


class Server(uvicorn.Server):
    """uvicorn without signal handlers; ``ready`` is set once it accepts requests."""

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
