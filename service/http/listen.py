"""The configuration of uvicorn: HTTP/1.1 by h11, with limits on the size and time of a request's head."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, ClassVar

import h11
import uvicorn
from fastapi import FastAPI

from service.errors import MalformedRequestError
from service.internals.http import Protocol
from service.settings import Settings

_PIECE_BYTES = 256 << 10
"""Bytes read from a connection at once; asyncio's default."""
_BODY_PIECE_BYTES = 2 << 20
"""The same within a body: every read costs one turn of the event loop, whatever its size."""
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

    return uvicorn.Config(
        app,
        http=Limited,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=drain_seconds,
        h11_max_incomplete_event_size=settings.max_request_head_bytes,
    )


class _Protocol(Protocol):
    """Limits the size of a request's line and headers, and closes connections on which they arrive too late.

    uvicorn itself limits only the time before the first byte of a request, and only after an earlier request on the
    same connection. ``service.http.bodies`` limits bodies.
    """

    head_bytes: ClassVar[int]
    head_seconds: ClassVar[float]
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._time_head()

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
        self._stop_timer()
        super().connection_lost(exc)

    def _time_head(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._stop_timer()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_seconds, self._head_missing)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_missing(self) -> None:
        self._head_timer = None
        if self.conn.their_state is h11.IDLE:
            self.timeout_keep_alive_handler()

    def send_400_response(self, msg: str) -> None:
        """Answer invalid HTTP with a problem, like every other error."""
        problem = MalformedRequestError(msg).response()
        headers = [*problem.raw_headers, (b"connection", b"close")]
        events: list[Any] = [
            h11.Response(status_code=problem.status_code, headers=headers, reason=b"Bad Request"),
            h11.Data(data=bytes(problem.body)),
            h11.EndOfMessage(),
        ]
        for event in events:
            self.transport.write(self.conn.send(event))
        self.transport.close()


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
