"""Request bodies, streamed: to disk while they are hashed, or into memory under a limit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

from fastapi import Request
from starlette.requests import ClientDisconnect

from service.errors import BodyTooLargeError, MalformedRequestError, UnsupportedMediaTypeError
from service.storage import Upload

_DISCARDED_BYTES = 64 << 20
_DISCARDED_SECONDS = 5.0


class Body:
    """The body of a request, piece by piece, at most ``limit`` bytes of it; a context manager.

    When the block is left by an error, what the client still sends is read and dropped for a while: a
    connection that is closed on unread bytes is reset, and a reset can overtake the answer.

    Args:
        request: Whose body has not been touched.
        limit: Bytes.
        what: Names the content in messages.

    Raises:
        BodyTooLargeError: before any byte is read where Content-Length says so, else as soon as the limit is passed.
        UnsupportedMediaTypeError: for a compressed body.
        ClientDisconnect: when the client goes away in between.
    """

    def __init__(self, request: Request, limit: int, what: str) -> None:
        self._request = request
        self._limit = limit
        self._what = what
        # A client that asks first has sent nothing yet, and will not if the answer is an error.
        self._ended = request.headers.get("expect", "").lower() == "100-continue"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, ClientDisconnect):
            await self._discard()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        headers = self._request.headers
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            raise UnsupportedMediaTypeError(
                f"Content-Encoding {encoding[:40]!r} is not accepted.", advice="Send the bytes as they are."
            )
        announced = headers.get("content-length", "0")
        if not (announced.isascii() and announced.isdigit()):
            raise MalformedRequestError("Content-Length is not a number.")
        received = 0
        if int(announced) > self._limit:
            raise too_large(self._what, self._limit)
        self._ended = False
        while not self._ended:
            chunk = await self._next()
            received += len(chunk)
            if received > self._limit:
                raise too_large(self._what, self._limit)
            if chunk:
                yield chunk

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


async def receive(request: Request, upload: Upload, limit: int, what: str) -> None:
    """Writes the whole body into ``upload``; raises as ``Body`` does."""
    async with Body(request, limit, what) as body:
        async for chunk in body:
            upload.write(chunk)


async def read(request: Request, limit: int) -> bytes:
    """The whole body in memory; raises as ``Body`` does."""
    content = bytearray()
    async with Body(request, limit, "JSON body") as body:
        async for chunk in body:
            content += chunk
    return bytes(content)


def too_large(what: str, limit: int) -> BodyTooLargeError:
    return BodyTooLargeError(
        f"The {what} is larger than {limit} bytes.",
        advice="Send a smaller one, or ask the operator to raise the limit; GET /v1/capabilities lists the limits.",
        details={"limit": limit},
    )
