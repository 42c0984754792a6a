"""The outermost middleware: path prefix, security headers, and HTML error pages for browsers."""

from __future__ import annotations

import json
from http import HTTPStatus
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import MEDIA_TYPE
from service.web.pages import address, page

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    # Not no-referrer: with that, browsers send no origin with forms.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_FOR_PROGRAMS = ("/v1/", "/healthz", "/readyz", "/metrics", "/openapi.json")


class WebMiddleware:
    """Serves the application under a path prefix, whether or not a proxy strips it, and completes responses.

    Args:
        app: The whole application.
        root_path: Prefix without a trailing slash; empty for none.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        if self._root_path and (path + "/").startswith(self._root_path + "/"):
            path = path.removeprefix(self._root_path) or "/"
        scope["root_path"], scope["path"] = self._root_path, path
        await self._app(scope, receive, _Response(scope, receive, send).send)


class _Response:
    """One response on its way to the client; a problem is held back until it is complete."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._start: Message | None = None
        self._problem = bytearray()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
            if headers.get("content-type") == MEDIA_TYPE and _reads_pages(self._scope):
                self._start = message
                return
        if self._start is None:
            await self._send(message)
            return
        self._problem += message.get("body", b"")
        if not message.get("more_body", False):
            response = _page(Request(self._scope), json.loads(self._problem))
            kept = MutableHeaders(scope=self._start)
            for name in ("content-length", "content-type", "www-authenticate"):
                del kept[name]
            response.raw_headers = [*kept.raw, *response.raw_headers]
            await response(self._scope, self._receive, self._send)


def _reads_pages(scope: Scope) -> bool:
    path = scope["path"]
    return "text/html" in Headers(scope=scope).get("accept", "") and not path.startswith(_FOR_PROGRAMS)


def _page(request: Request, problem: dict[str, object]) -> Response:
    status = int(str(problem["status"]))
    if status != HTTPStatus.UNAUTHORIZED:
        return page(request, "error.html", status, problem=problem)
    if request.method == "GET" and request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        # Browsers withhold the cookie when they follow a link from another site, but send it when this page reloads.
        return page(request, "reload.html", HTTPStatus.OK)
    wanted = request.scope["path"] + (f"?{request.url.query}" if request.url.query else "")
    query = f"?next={quote(wanted)}" if request.method == "GET" and wanted != "/" else ""
    return RedirectResponse(address(request, "get_sign_in") + query, HTTPStatus.SEE_OTHER)
