"""Request bodies, streamed: to disk while they are hashed, or into memory, under limits of size, number and time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine
from contextlib import ExitStack
from http import HTTPStatus
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
"""Received while what came before is being written."""
_WORTH_A_THREAD = 1 << 16


class UploadTooSlowError(ServiceError):
    status = HTTPStatus.REQUEST_TIMEOUT
    code = "upload_too_slow"
    title = "The body comes too slowly"


class TooManyUploadsError(ServiceError):
    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "too_many_uploads"
    title = "Too many uploads are in progress"


class Body:
    """The body of a request, piece by piece, at most ``limit`` bytes of it; a context manager.

    When the block is left by an error, what the client still sends is read and dropped for a while: a
    connection that is closed on unread bytes is reset, and a reset can overtake the answer.

    Args:
        request: Whose body has not been touched.
        limit: Bytes.
        what: Names the content in messages.
        stored: Whether the body goes to the disk of models and batches; it then counts as an upload.

    Raises:
        BodyTooLargeError: before any byte is read where Content-Length says so, else as soon as the limit is passed.
        UnsupportedMediaTypeError: for a compressed body.
        TooManyUploadsError: before any byte is read.
        InsufficientStorageError: before any byte is read where Content-Length says so; later, by what writes.
        UploadTooSlowError: when the client keeps us waiting.
        ClientDisconnect: when the client goes away in between.
    """

    def __init__(self, request: Request, limit: int, what: str, *, stored: bool = True) -> None:
        self._request = request
        self._limit = limit
        self._what = what
        self._stored = stored
        self._context: Context = request.state.context
        self._slot = ExitStack()
        self._pace = _Pace(self._context.settings)
        # A client that asks first has sent nothing yet, and will not if the answer is an error.
        self._ended = request.headers.get("expect", "").lower() == "100-continue"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._slot.close()
        # Nor is there anything to read from a client that is too slow.
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
        """Refuses what can be refused by the headers alone."""
        headers = self._request.headers
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            raise UnsupportedMediaTypeError(
                f"Content-Encoding {encoding[:40]!r} is not accepted.", advice="Send the bytes as they are."
            )
        announced = headers.get("content-length", "0")
        if not (announced.isascii() and announced.isdigit()):
            raise MalformedRequestError("Content-Length is not a number.")
        if int(announced) > self._limit:
            raise too_large(self._what, self._limit)
        if self._stored:
            full = TooManyUploadsError(
                f"{self._context.uploads.limit} uploads are under way already.",
                advice="Try again later.",
                headers={"Retry-After": "5"},
            )
            self._slot.enter_context(self._context.uploads.taken(full))
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
    """Whether a client sends fast enough; only the time spent on waiting for it counts."""

    def __init__(self, settings: Settings) -> None:
        self._window_seconds = settings.upload_idle_seconds
        self._least = settings.upload_min_bytes_per_second
        self._seconds = 0.0
        self._bytes = 0

    async def timed(self, coming: Coroutine[None, None, bytes]) -> bytes:
        """The bytes that are coming.

        Raises:
            UploadTooSlowError: when there are none for as long as a window, or too few in a window.
        """
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._window_seconds):
                chunk = await coming
        except TimeoutError as error:
            raise _too_slow(f"No byte of the body came within {self._window_seconds:g} seconds.") from error
        self._seconds += time.monotonic() - started
        self._bytes += len(chunk)
        if self._seconds >= self._window_seconds:
            if self._bytes < self._least * self._seconds:
                raise _too_slow(f"{self._bytes} bytes of the body came in {self._seconds:.1f} seconds.")
            self._seconds, self._bytes = 0.0, 0
        return chunk


def _too_slow(detail: str) -> UploadTooSlowError:
    return UploadTooSlowError(detail, advice="Send it again over a faster connection.", headers={"Connection": "close"})


async def pump(body: AsyncIterable[bytes], write: Callable[[bytes], object]) -> None:
    """Write the body in order, large chunks on a thread while the next ones arrive.

    Args:
        body: Its chunks.
        write: Takes a chunk; called by one thread at a time.

    Raises:
        Whatever ``body`` and ``write`` raise; by then no thread writes any more.
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
            # Not simply awaited: a future that is given up doesn't stop its thread, which has a file to itself.
            await asyncio.wait([writing])
            # Looked at, or asyncio complains where it is not the error that ends this.
            writing.exception()
    if writing is not None:
        writing.result()
    write_all(waiting)


async def receive(request: Request, upload: Upload, limit: int, what: str) -> None:
    """Writes the whole body into ``upload``; raises as ``Body`` does."""
    async with Body(request, limit, what) as body:
        await pump(body, upload.write)


async def read(request: Request, limit: int) -> bytes:
    """The whole body in memory; raises as ``Body`` does."""
    content = bytearray()
    async with Body(request, limit, "JSON body", stored=False) as body:
        async for chunk in body:
            content += chunk
    return bytes(content)


def too_large(what: str, limit: int) -> BodyTooLargeError:
    return BodyTooLargeError(
        f"The {what} is larger than {limit} bytes.",
        advice="Send a smaller one, or ask the operator to raise the limit; GET /v1/capabilities lists the limits.",
        details={"limit": limit},
    )
