"""Around every request: an identifier, one line in the log, and no stack trace to the outside."""

from __future__ import annotations

import re
import time
from uuid import uuid4

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import InternalError

REQUEST_ID = "X-Request-ID"

_ACCEPTABLE = re.compile(r"[A-Za-z0-9_.\-]{1,128}")

log = structlog.get_logger(__name__)


class RequestLog:
    """Gives each request an identifier (the client's own where it is plain text), and logs how it went."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        offered = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = offered if _ACCEPTABLE.fullmatch(offered) else uuid4().hex
        structlog.contextvars.bind_contextvars(request_id=request_id)
        started, status = time.perf_counter(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            status = 499  # nobody gets to see it; the log does, in the number that proxies use
        except Exception:
            log.exception("request_failed", method=scope["method"], path=scope["path"])
            if status != 0:
                raise
            problem = InternalError("An unexpected error.", advice=f"Tell the operator the request id {request_id}.")
            await problem.response()(scope, receive, send_with_id)
        finally:
            milliseconds = round((time.perf_counter() - started) * 1000, 1)
            # Probes ask every few seconds; they would hide the rest.
            note = log.debug if scope["path"] in ("/healthz", "/readyz") else log.info
            note("request", method=scope["method"], path=scope["path"], status=status, milliseconds=milliseconds)
            structlog.contextvars.unbind_contextvars("request_id")
