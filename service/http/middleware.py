"""Around every request: an identifier, one line in the log, and no stack trace to the outside."""

from __future__ import annotations

import re
import time
from typing import Protocol
from uuid import uuid4

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import InternalError
from service.traces import PROBES, trace_id

REQUEST_ID = "X-Request-ID"
OTHER = "other"
"""Stands for methods and routes that the application does not have, to bound the cardinality of what is counted."""

_ACCEPTABLE = re.compile(r"[A-Za-z0-9_.\-]{1,128}")
_ANALYSIS = re.compile(r"/v1/analyses/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})(?:/|$)")

log = structlog.get_logger(__name__)


class Count(Protocol):
    """Counts a request; see ``service.monitoring.metrics``."""

    def __call__(self, method: str, route: str, status: int, *, seconds: float, received: int) -> None: ...


class RequestLog:
    """Gives each request an identifier (the client's own where it is plain text), logs and counts how it went."""

    def __init__(self, app: ASGIApp, count: Count) -> None:
        self._app = app
        self._count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send)
        # Whatever else is bound meanwhile, as the tenant, ends with the request.
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(**exchange.context())
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            exchange.status = 499  # nobody gets to see it; the log does, in the number that proxies use
        except Exception:
            log.exception("request_failed", method=scope["method"], path=scope["path"])
            if exchange.status != 0:
                raise
            problem = InternalError(
                "An unexpected error.", advice=f"Tell the operator the request id {exchange.request_id}."
            )
            await problem.response()(scope, receive, exchange.send)
        finally:
            self._note(exchange)
            structlog.contextvars.clear_contextvars()

    def _note(self, exchange: _Exchange) -> None:
        scope, now = exchange.scope, time.perf_counter()
        # A client that went away while it was waiting has seen no status.
        status = exchange.status or 499
        self._count(
            scope["method"],
            _route(scope),
            status,
            seconds=(exchange.answered or now) - exchange.started,
            received=exchange.received,
        )
        named = {} if exchange.analysis is None else {"analysis": exchange.analysis}
        # Probes ask every few seconds; they would hide the rest.
        note = log.debug if scope["path"] in PROBES else log.info
        milliseconds = round((now - exchange.started) * 1000, 1)
        note("request", method=scope["method"], path=scope["path"], status=status, milliseconds=milliseconds, **named)


class _Exchange:
    """One request and its answer, as they pass by."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self._receive = receive
        self._send = send
        offered = Headers(scope=scope).get(REQUEST_ID, "")
        self.request_id = offered if _ACCEPTABLE.fullmatch(offered) else uuid4().hex
        self.started = time.perf_counter()
        self.answered: float | None = None
        self.status = 0
        self.received = 0
        self._location = ""

    def context(self) -> dict[str, str]:
        """What every line about this request carries."""
        found = trace_id()
        return {"request_id": self.request_id, **({} if found is None else {"trace_id": found})}

    @property
    def analysis(self) -> str | None:
        """The analysis that the request is about, or has made."""
        path = self._location or self.scope["path"]
        match = _ANALYSIS.match(path)
        return match[1] if match else None

    async def receive(self) -> Message:
        message = await self._receive()
        self.received += len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.answered, self.status = time.perf_counter(), int(message["status"])
            headers = MutableHeaders(scope=message)
            headers[REQUEST_ID] = self.request_id
            self._location = headers.get("Location", "")
        await self._send(message)


def _route(scope: Scope) -> str:
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) else OTHER
