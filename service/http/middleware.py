"""Gives every request an identifier, one log line and a metric, and hides stack traces from clients."""

from __future__ import annotations

import re
import time
from functools import partial
from typing import Any, Protocol
from uuid import uuid4

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import InternalError, MalformedRequestError
from service.kit import audit
from service.traces import PROBES, trace_id

REQUEST_ID = "X-Request-ID"
OTHER = "other"
"""Stands for unknown methods and routes, to bound the cardinality of the labels."""

_ACCEPTABLE = re.compile(r"[A-Za-z0-9_.\-]{1,128}")
_ANALYSIS = re.compile(r"/v1/analyses/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})(?:/|$)")

log = structlog.get_logger(__name__)


_TWO_LENGTHS = MalformedRequestError(
    "The request has both Content-Length and Transfer-Encoding.",
    advice="Send one of them: a proxy could otherwise take a part of the body for another request.",
    headers={"Connection": "close"},
)


class Count(Protocol):
    """Count a request; see ``service.monitoring.metrics``."""

    def __call__(self, method: str, route: str, status: int, *, seconds: float, received: int) -> None: ...


class RequestLog:
    """Gives each request an identifier (the client's if it is well formed), then logs and counts it."""

    def __init__(self, app: ASGIApp, count: Count) -> None:
        self._app = app
        self._count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send)
        # What is bound during the request, such as the tenant, is cleared at its end.
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(**exchange.context())
        caller = audit.CALLER.set(partial(_caller, scope))
        try:
            if _has_two_lengths(scope):
                await _TWO_LENGTHS.response()(scope, receive, exchange.send)
                return
            await self._app(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            exchange.status = 499  # never sent; the number that proxies log
        except Exception:
            log.exception("request_failed", method=scope["method"], path=scope["path"])
            if exchange.status != 0:
                raise
            problem = InternalError(
                "An unexpected error occurred.", advice=f"Report request id {exchange.request_id} to the operator."
            )
            await problem.response()(scope, receive, exchange.send)
        finally:
            self._note(exchange)
            audit.CALLER.reset(caller)
            structlog.contextvars.clear_contextvars()

    def _note(self, exchange: _Exchange) -> None:
        scope, now = exchange.scope, time.perf_counter()
        # A client that disconnected while waiting has seen no status.
        status = exchange.status or 499
        self._count(
            scope["method"],
            getattr(scope.get("route"), "path_format", OTHER),
            status,
            seconds=(exchange.answered or now) - exchange.started,
            received=exchange.received,
        )
        named = {} if exchange.analysis is None else {"analysis": exchange.analysis}
        # Probes come every few seconds and would hide the rest.
        note = log.debug if scope["path"] in PROBES else log.info
        milliseconds = round((now - exchange.started) * 1000, 1)
        note("request", method=scope["method"], path=scope["path"], status=status, milliseconds=milliseconds, **named)


def _has_two_lengths(scope: Scope) -> bool:
    headers = Headers(scope=scope)
    return "transfer-encoding" in headers and "content-length" in headers


def _caller(scope: Scope) -> dict[str, Any]:
    """Describe who has sent a request, for the lines about what it changes; its key may not be known yet."""
    key, client = scope.get("state", {}).get("key"), scope.get("client")
    return {
        "key": None if key is None else key.identifier or None,
        "client": None if client is None else client[0],
        "operation": getattr(scope.get("route"), "name", OTHER),
        "method": scope["method"],
        "path": scope["path"],
    }


class _Exchange:
    """One request and its response, observed as they pass through."""

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
        self.location = ""
        """Address of what the request has created or leads to."""

    def context(self) -> dict[str, str]:
        """Fields of every log line about this request."""
        found = trace_id()
        return {"request_id": self.request_id, **({} if found is None else {"trace_id": found})}

    @property
    def analysis(self) -> str | None:
        """Identifier of the analysis that the request concerns or has created."""
        path = self.location or self.scope["path"]
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
            self.location = headers.get("Location", "")
        await self._send(message)
