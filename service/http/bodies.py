"""Streaming request bodies to disk or into memory, with limits on size, number and time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from fastapi import Request
from starlette.requests import ClientDisconnect

from service.context import Context
from service.errors import BodyTooLargeError, MalformedRequestError, ServiceError, UnsupportedMediaTypeError
from service.settings import Settings
from service.storage.store import Upload

_DISCARDED_BYTES = 64 << 20
_DISCARDED_SECONDS = 5.0
_AHEAD_BYTES = 1 << 20
"""Bytes received while the previous ones are being written."""
_WORTH_A_THREAD = 1 << 16


class UploadTooSlowError(ServiceError, status=408, code="upload_too_slow", title="The body arrives too slowly"): ...


class TooManyUploadsError(
    ServiceError, status=503, code="too_many_uploads", title="Too many uploads are in progress"
): ...


class Body:
    """The chunks of a request's body; a context manager.

    If an error leaves the block, what the client still sends is read and discarded for a while: closing a connection
    with unread bytes resets it, and the reset can overtake the response.

    Args:
        request: Request whose body has not been read.
        limit: Largest body in bytes.
        what: Name of the content in messages.
        stored: True if the body is written to the disk of models and batches; it then counts as an upload.

    Raises:
        BodyTooLargeError: before any byte is read if Content-Length exceeds the limit, else once the limit is passed.
        UnsupportedMediaTypeError: if the body is compressed.
        TooManyUploadsError: before any byte is read.
        InsufficientStorageError: before any byte is read, if there is no room for Content-Length bytes.
        UploadTooSlowError: if the client sends too slowly.
        ClientDisconnect: if the client disconnects.
    """

    def __init__(self, request: Request, limit: int, what: str, *, stored: bool = True) -> None:
        self._request = request
        self._limit = limit
        self._what = what
        self._stored = stored
        self._context: Context = request.state.context
        self._slot = ExitStack()
        self._pace = _Pace(self._context.settings)
        # A client that sends Expect: 100-continue has sent no body yet, and won't after an error.
        self._ended = request.headers.get("expect", "").lower() == "100-continue"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._slot.close()
        # After these two errors there is nothing more to read.
        if isinstance(error, Exception) and not isinstance(error, ClientDisconnect | UploadTooSlowError):
            await self._discard()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self._admit()
        self._ended = False
        received = 0
        while not self._ended:
            chunk = await self._pace.timed(self._next())
            received += len(chunk)
            if received > self._limit:
                raise too_large(self._what, self._limit)
            if chunk:
                yield chunk

    def _admit(self) -> None:
        """Reject what the headers alone show to be unacceptable."""
        headers = self._request.headers
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            raise UnsupportedMediaTypeError(
                f"Content-Encoding {encoding[:40]!r} is not accepted.", advice="Send the bytes unencoded."
            )
        announced = headers.get("content-length", "0")
        if not (announced.isascii() and announced.isdigit()):
            raise MalformedRequestError("Content-Length is not a number.")
        if int(announced) > self._limit:
            raise too_large(self._what, self._limit)
        if self._stored:
            full = TooManyUploadsError(
                f"Too many of the {self._context.uploads.limit} uploads that may run at once are in progress.",
                advice="Try again later.",
                headers={"Retry-After": "5"},
            )
            self._slot.enter_context(self._context.uploads.taken(self._request.state.key.tenant, full))
            self._context.blobs.require_room(int(announced))

    async def _next(self) -> bytes:
        message = await self._request.receive()
        if message["type"] == "http.disconnect":
            self._ended = True
            raise ClientDisconnect
        self._ended = not message.get("more_body", False)
        body: bytes = message.get("body", b"")
        return body

    async def _discard(self) -> None:
        remaining = _DISCARDED_BYTES
        try:
            async with asyncio.timeout(_DISCARDED_SECONDS):
                while not self._ended and remaining > 0:
                    remaining -= len(await self._next())
        except (TimeoutError, ClientDisconnect):
            return


class _Pace:
    """Checks that a client sends fast enough; only the time spent waiting for the client counts."""

    def __init__(self, settings: Settings) -> None:
        self._window_seconds = settings.upload_idle_seconds
        self._least = settings.upload_min_bytes_per_second
        self._seconds = 0.0
        self._bytes = 0

    async def timed(self, coming: Coroutine[None, None, bytes]) -> bytes:
        """Await the next bytes.

        Raises:
            UploadTooSlowError: if none arrive within one window, or too few do.
        """
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._window_seconds):
                chunk = await coming
        except TimeoutError as error:
            raise _too_slow(f"No byte of the body arrived within {self._window_seconds:g} seconds.") from error
        self._seconds += time.monotonic() - started
        self._bytes += len(chunk)
        if self._seconds >= self._window_seconds:
            if self._bytes < self._least * self._seconds:
                raise _too_slow(f"Only {self._bytes} bytes of the body arrived in {self._seconds:.1f} seconds.")
            self._seconds, self._bytes = 0.0, 0
        return chunk


def _too_slow(detail: str) -> UploadTooSlowError:
    return UploadTooSlowError(detail, advice="Send it again over a faster connection.", headers={"Connection": "close"})


async def pump(body: AsyncIterable[bytes], write: Callable[[bytes], object]) -> None:
    """Write the body in order, large chunks on a thread while the next ones arrive.

    Args:
        body: Chunks of the body.
        write: Called with each chunk, by one thread at a time.

    Raises:
        Whatever ``body`` and ``write`` raise; no thread writes any more by then.
    """
    loop = asyncio.get_running_loop()
    waiting: list[bytes] = []
    writing: asyncio.Future[None] | None = None

    def write_all(chunks: list[bytes]) -> None:
        for chunk in chunks:
            write(chunk)

    try:
        async for chunk in body:
            waiting.append(chunk)
            size = sum(map(len, waiting))
            if writing is not None:
                if size < _AHEAD_BYTES and not writing.done():
                    continue
                await asyncio.wait([writing])
                writing.result()
                writing = None
            if size < _WORTH_A_THREAD:
                write_all(waiting)
            else:
                writing = loop.run_in_executor(None, write_all, waiting)
            waiting = []
    finally:
        if writing is not None:
            # Not a plain await: cancelling the future would not stop the thread that writes to the file.
            await asyncio.wait([writing])
            # Retrieve the exception, so that asyncio doesn't report it if another error ends this function.
            writing.exception()
    if writing is not None:
        writing.result()
    write_all(waiting)


async def receive(request: Request, upload: Upload, limit: int, what: str) -> None:
    """Write the whole body to ``upload``; raises as ``Body``."""
    async with Body(request, limit, what) as body:
        await pump(body, upload.write)


async def read(request: Request, limit: int, what: str = "JSON body") -> bytes:
    """Read the whole body into memory; raises as ``Body``."""
    content = bytearray()
    async with Body(request, limit, what, stored=False) as body:
        async for chunk in body:
            content += chunk
    return bytes(content)


def too_large(what: str, limit: int) -> BodyTooLargeError:
    return BodyTooLargeError(
        f"The {what} is larger than {limit} bytes.",
        advice="Send a smaller one, or ask the operator to raise the limit; GET /v1/capabilities lists the limits.",
        details={"limit": limit},
    )
