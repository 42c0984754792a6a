"""Renders pages from templates, with a Content-Security-Policy."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from http import HTTPStatus
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment
from markupsafe import escape
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from service import rendering
from service.http.security import ANONYMOUS
from service.rendering import wording
from service.rendering.html import symbols, templates
from wsb_engine.presentation.numbers import amount, duration, interval, number, percent, within
from wsb_engine.presentation.text import clean

PAGE_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; form-action 'self';"
    " frame-ancestors 'none'; base-uri 'none'"
)
STATIC_TYPES = {
    "report.css": "text/css",
    "web.css": "text/css",
    "web.js": "text/javascript",
    "docs.js": "text/javascript",
    "icon.svg": "image/svg+xml",
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
}
"""Public files that pages load, and their media types."""

_FOLDER = Path(__file__).parent / "static"
_SWAGGER_UI = "fastapi_offline"
"""Package that contains Swagger UI."""


def page(
    request: Request,
    template: str,
    status: int = HTTPStatus.OK,
    *,
    reload_after: int | None = None,
    content_policy: str = PAGE_POLICY,
    **values: Any,
) -> Response:
    """Render a page from a template.

    Args:
        request: Request for the page.
        template: Name of the template.
        status: Status of the response.
        reload_after: Seconds after which a browser without scripts reloads the page.
        content_policy: Content-Security-Policy of the page.
        values: Values for the template.
    """
    state = request.scope.get("state", {})
    session = state.get("session")
    content = (
        _environment()
        .get_template(template)
        .render(
            url=lambda name, **parameters: address(request, name, **parameters),
            file=lambda name: f"{address(request, 'get_static', file=name)}?v={_version(name)}",
            csrf="" if session is None else session.csrf,
            tenant=session.key.tenant if session is not None else None,
            reload_after=reload_after,
            **values,
        )
    )
    cache_control = "private, no-cache" if session is None else "no-store"
    headers = {"Content-Security-Policy": content_policy, "Cache-Control": cache_control}
    return HTMLResponse(content, status, headers)


async def page_on_thread(request: Request, template: str, status: int = HTTPStatus.OK, **values: Any) -> Response:
    """Render a page as ``page`` does, on a thread: for pages whose length a client determines."""
    return await run_in_threadpool(page, request, template, status, **values)


def address(request: Request, name: str, **parameters: Any) -> str:
    """Return the path of a route as the browser must request it, including the prefix."""
    path = request.app.url_path_for(name, **{key: str(value) for key, value in parameters.items()})
    return f"{request.scope.get('root_path', '')}{path}"


def see(request: Request, name: str, *, query: Mapping[str, str] | None = None, **parameters: Any) -> Response:
    """Redirect the browser to a page (303 See Other)."""
    suffix = f"?{urlencode(query)}" if query else ""
    return RedirectResponse(address(request, name, **parameters) + suffix, HTTPStatus.SEE_OTHER)


@cache
def static(name: str) -> bytes:
    """Return the content of a file in ``STATIC_TYPES``."""
    if name == "report.css":
        return rendering.stylesheet().encode()
    if name.startswith("swagger-ui"):
        return (files(_SWAGGER_UI) / "static" / name).read_bytes()
    return (_FOLDER / name).read_bytes()


@cache
def _version(name: str) -> str:
    return hashlib.sha256(static(name)).hexdigest()[:12]


@cache
def _environment() -> Environment:
    environment = templates("service.web", _shown)
    environment.globals.update(wording=wording, ANONYMOUS=ANONYMOUS)
    environment.filters.update(amount=amount, duration=duration, interval=interval, number=number, percent=percent)
    environment.filters.update(within=within)
    environment.filters.update(moment=_moment, short=_short, symbols=symbols, typed=escape)
    return environment


def _shown(value: object) -> object:
    """Make control characters visible in what ``{{ … }}`` prints; the filter ``typed`` prints text unchanged."""
    if value is None:
        return ""
    return clean(value) if type(value) is str else value


def _moment(value: datetime) -> str:
    return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _short(identifier: object) -> str:
    """Shorten a long identifier to its beginning."""
    return str(identifier).removeprefix("sha256:")[:8]
