"""A server that answers the client from a script, without a socket."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Literal

import httpx

from wsb import AsyncClient, Client

Answer = httpx.Response | Exception | Callable[[httpx.Request], httpx.Response]
Kind = Literal["blocking", "asynchronous"]
URL = "http://there"


class Lines(httpx.SyncByteStream, httpx.AsyncByteStream):
    """The body of a stream, which is lost at its end unless it is complete."""

    def __init__(self, *lines: str, complete: bool = False) -> None:
        self._lines = lines
        self._complete = complete

    def __iter__(self) -> Iterator[bytes]:
        yield from (f"{line}\n".encode() for line in self._lines)
        if not self._complete:
            raise httpx.ReadError("the connection is lost")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self:
            yield chunk


def problem(status: int, code: str, **headers: str) -> httpx.Response:
    body = {"type": f"/problems/{code}", "title": "A problem", "status": status, "code": code, "detail": "Not so."}
    headers = {"content-type": "application/problem+json", **headers}
    return httpx.Response(status, content=json.dumps(body), headers=headers)


def stream(*lines: str, complete: bool = False) -> httpx.Response:
    headers = {"content-type": "text/event-stream; charset=utf-8"}
    return httpx.Response(200, headers=headers, stream=Lines(*lines, complete=complete))


class Scripted:
    """Answers each request with the next answer for its method and path; the last one is repeated."""

    def __init__(self, **answers: list[Answer]) -> None:
        self.seen: list[httpx.Request] = []
        self._answers: dict[str, list[Answer]] = defaultdict(lambda: [problem(404, "not_found")], answers)

    def on(self, request: str, *answers: Answer) -> None:
        """Answer ``request``, such as ``GET /v1/analyses/1``, like this."""
        self._answers[request] = list(answers)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request)
        left = self._answers[f"{request.method} {request.url.path}"]
        answer = left[0] if len(left) == 1 else left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if not isinstance(answer, httpx.Response):
            return answer(request)
        if isinstance(answer.stream, Lines):
            return answer
        # A response belongs to one request.
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)

    def sync(self, request: httpx.Request) -> httpx.Response:
        request.read()
        return self(request)

    async def asynchronous(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        return self(request)

    def requests(self, line: str) -> list[httpx.Request]:
        """The requests with this method and path."""
        return [request for request in self.seen if f"{request.method} {request.url.path}" == line]


def called(kind: Kind, server: Scripted, name: str, /, *values: Any, **options: Any) -> Any:
    """The outcome of a method of a client that talks to the server; of ``events``, their list."""

    async def act() -> Any:
        transport = httpx.MockTransport(server.asynchronous)
        async with httpx.AsyncClient(transport=transport) as http, AsyncClient(URL, http=http) as client:
            found = getattr(client, name)(*values, **options)
            return [event async for event in found] if name == "events" else await found

    if kind == "asynchronous":
        return asyncio.run(act())
    with httpx.Client(transport=httpx.MockTransport(server.sync)) as http, Client(URL, http=http) as client:
        found = getattr(client, name)(*values, **options)
        return list(found) if name == "events" else found
