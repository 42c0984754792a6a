"""What keeps pages of other sites from using this service through the browser of someone who may use it."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from http import HTTPStatus
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


class MisdirectedError(ServiceError):
    status = HTTPStatus.MISDIRECTED_REQUEST
    code = "misdirected_request"
    title = "This service is not known by that name"


class CrossSiteError(ServiceError):
    status = HTTPStatus.FORBIDDEN
    code = "cross_site"
    title = "The request does not come from a page of this service"


class Browsers:
    """Finds the session of a browser, and refuses what another site's page may have made it send.

    Three things are refused: names that an attacker's name server may have made lead here (DNS rebinding), where no
    keys protect the service; requests that change something and come from another site's page; and such requests
    that carry nothing but a session's cookie to the API, without the session's token in ``X-CSRF-Token``. Forms send
    the token in a field, which the routes that read them check.

    Args:
        app: Protected application; it finds the session in ``state``.
        keys: Keys with which people sign in.
        allow_anonymous: Whether something before this service says who may use it, and under which name.
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
                f"The request is for {host[:80]!r}.",
                advice="Without API keys only addresses and local names are answered. Set WSB_API_KEYS, or, behind a"
                " proxy that authenticates, WSB_ALLOW_ANONYMOUS=true.",
            )
        if "authorization" in connection.headers:
            return  # no browser sends a key by itself, nor to another site without asking first
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
            raise DatabaseUnavailableError("Nobody can be signed in at this moment.", advice="Try again.") from error


def check_csrf(session: Session | None, token: str) -> None:
    """Raises CrossSiteError unless the token is the session's; without a session there is nothing to check."""
    if session is not None and not session.is_csrf(token):
        raise CrossSiteError(
            "The token of the session is missing or another one.", advice="Load the page again, and send it once more."
        )


def _check_origin(connection: HTTPConnection, host: str) -> None:
    """Raises CrossSiteError where the browser says that another site's page has made the request.

    What says nothing is no browser: browsers have named the origin of such requests for years.
    """
    site, origin = connection.headers.get("sec-fetch-site"), connection.headers.get("origin")
    if site is not None:
        if site not in ("same-origin", "none"):
            raise CrossSiteError(f"The browser says that it comes from a page that is {site[:40]}.")
    elif origin is not None and origin.partition("://")[2].lower() != host.lower():
        raise CrossSiteError(f"The browser says that it comes from {origin[:80]}.")


def _is_nearby(host: str) -> bool:
    """Whether a name is none that strangers can have: an address, or one without a domain."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        ipaddress.ip_address(name)
    except ValueError:
        pass
    else:
        return True
    name = host.partition(":")[0].lower()
    return "." not in name or name.endswith(".localhost")
