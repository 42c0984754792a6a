"""Protects users' browsers: sessions, and defence against cross-site requests and DNS rebinding."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from contextlib import suppress
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from service.context import Context
from service.database.engine import is_away
from service.errors import DatabaseUnavailableError, ServiceError
from service.keys import ApiKey
from service.web import sessions
from service.web.sessions import Session

CSRF_HEADER = "X-CSRF-Token"

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})


class MisdirectedError(
    ServiceError, status=421, code="misdirected_request", title="This service does not answer to that host name"
): ...


class CrossSiteError(
    ServiceError, status=403, code="cross_site", title="The request does not come from a page of this service"
): ...


class Browsers:
    """Finds the session of a browser, and rejects requests that another site's page may have caused.

    It rejects three kinds of requests: those for host names that an attacker's name server may have pointed here (DNS
    rebinding), if no keys protect the service; those that change something and come from another site's page; and those
    that change something through the API with only a session's cookie, without the session's token in
    ``X-CSRF-Token``. Forms send the token in a field, which their routes check.

    Args:
        app: Protected application; it finds the session in ``state``.
        keys: Keys with which users sign in.
        allow_anonymous: Whether a proxy in front of this service decides who may use it, and under which host name.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[ApiKey], *, allow_anonymous: bool) -> None:
        self._app = app
        self._keys = keys
        self._any_name = allow_anonymous or bool(keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                await self._admit(HTTPConnection(scope))
            except ServiceError as error:
                await error.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _admit(self, connection: HTTPConnection) -> None:
        connection.state.session = None
        host = connection.headers.get("host", "")
        if not (self._any_name or _is_nearby(host)):
            raise MisdirectedError(
                f"The request is for host {host[:80]!r}.",
                advice="Without API keys only IP addresses and local names are accepted. Set WSB_API_KEYS, or, behind a"
                " proxy that authenticates, WSB_ALLOW_ANONYMOUS=true.",
            )
        if "authorization" in connection.headers:
            return  # browsers never send a key by themselves, nor to another site without a preflight request
        token = sessions.token_in(connection) if self._keys else None
        session = None if token is None else await self._find(connection, token)
        connection.state.session = session
        if connection.scope["method"] not in _SAFE_METHODS:
            _check_origin(connection, host)
            if session is not None and connection.scope["path"].startswith("/v1/"):
                check_csrf(session, connection.headers.get(CSRF_HEADER, ""))

    async def _find(self, connection: HTTPConnection, token: str) -> Session | None:
        context: Context = connection.state.context
        try:
            async with context.database.transaction() as transaction:
                return await sessions.find(transaction, token, self._keys)
        except Exception as error:
            if not is_away(error):
                raise
            raise DatabaseUnavailableError("Sessions can't be checked at the moment.", advice="Try again.") from error


def check_csrf(session: Session | None, token: str) -> None:
    """Raise CrossSiteError unless the token is the session's; without a session there is nothing to check."""
    if session is not None and not session.is_csrf(token):
        raise CrossSiteError(
            "The session's token is missing or wrong.", advice="Reload the page, and submit the form again."
        )


def _check_origin(connection: HTTPConnection, host: str) -> None:
    """Raise CrossSiteError if the browser's headers say that another site's page has made the request.

    A request without such headers does not come from a browser: browsers have sent them for years.
    """
    site, origin = connection.headers.get("sec-fetch-site"), connection.headers.get("origin")
    if site is not None:
        if site not in ("same-origin", "none"):
            raise CrossSiteError(f"According to the browser, the page that sent it is {site[:40]}.")
    elif origin is not None and origin.partition("://")[2].lower() != host.lower():
        raise CrossSiteError(f"According to the browser, it was sent from {origin[:80]}.")


def _is_nearby(host: str) -> bool:
    """Whether the host can't be a name that others control: it is an address, or a name without a domain."""
    with suppress(ValueError):
        ipaddress.ip_address(urlsplit(f"//{host}").hostname or "")
        return True
    name = host.partition(":")[0].lower()
    return "." not in name or name.endswith(".localhost")
