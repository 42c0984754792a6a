"""Authentication by API key; each key belongs to a tenant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import structlog
from fastapi import Depends, Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import ServiceError
from service.keys import ApiKey, tenant_of

ANONYMOUS = "default"
"""The only tenant if no keys are configured."""

PUBLIC_PATHS = frozenset(
    {
        *("/healthz", "/readyz", "/docs", "/docs/oauth2-redirect", "/openapi.json", "/sign-in"),
        *(f"/static/{name}" for name in ("report.css", "web.css", "web.js", "icon.svg")),
    }
)
"""Paths that need no key; every other path needs one, whether or not it exists."""


class UnauthorizedError(ServiceError, status=401, code="unauthorized", title="An API key is required"):
    def __init__(self, detail: str) -> None:
        super().__init__(
            detail,
            advice="Send a key as Authorization: Bearer KEY; wsb commands read it from WSB_API_KEY.",
            headers={"WWW-Authenticate": "Bearer"},
        )


class Authentication:
    """Rejects requests without a valid key before any of their body is read.

    Wraps the whole application, so that no route can be forgotten.

    Args:
        app: Protected application.
        keys: Accepted keys; if there are none, everyone is admitted as the same tenant.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[ApiKey]) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in PUBLIC_PATHS:
            try:
                session = scope.get("state", {}).get("session")
                authorization = Headers(scope=scope).get("authorization")
                tenant = self._authenticate(authorization) if session is None else session.tenant
            except UnauthorizedError as error:
                await error.response()(scope, receive, send)
                return
            scope.setdefault("state", {})["tenant"] = tenant
            # Not unbound here: the log line of the request is written after this returns.
            structlog.contextvars.bind_contextvars(tenant=tenant)
        await self._app(scope, receive, send)

    def _authenticate(self, authorization: str | None) -> str:
        if not self._keys:
            return ANONYMOUS
        if authorization is None:
            raise UnauthorizedError("The request has no Authorization header.")
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise UnauthorizedError("The Authorization scheme is not Bearer.")
        tenant = tenant_of(self._keys, key.strip())
        if tenant is None:
            raise UnauthorizedError("The key is unknown.")
        return tenant


def _tenant(request: Request) -> str:
    tenant: str = request.state.tenant
    return tenant


InTenant = Annotated[str, Depends(_tenant)]
"""The tenant that sent the request; a route may read and change only this tenant's data."""


def openapi_scheme() -> dict[str, Any]:
    """Return the security scheme of the specification."""
    text = "A key from `wsb keys new`. A service without keys treats everyone as one tenant."
    return {"ApiKey": {"type": "http", "scheme": "bearer", "description": text}}
