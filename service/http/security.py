"""Authentication by API key: each key belongs to a tenant, and allows what its scopes say."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any

import structlog
from fastapi import Depends, Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import ServiceError
from service.keys import ApiKey, KeyScope, find_key
from service.kit.gate import TENANT, Turns

ANONYMOUS = "default"
"""The only tenant if no keys are configured."""

PUBLIC_PATHS = frozenset(
    {
        *("/healthz", "/readyz", "/docs", "/openapi.json", "/sign-in"),
        *(f"/static/{name}" for name in ("report.css", "web.css", "web.js", "icon.svg")),
        *(f"/static/{name}" for name in ("docs.js", "swagger-ui.css", "swagger-ui-bundle.js")),
    }
)
"""Paths that need no key; every other path but those of badges needs one, whether or not it exists."""
_BADGE = re.compile(r"/v1/series/.+/badge\.svg")
"""Needs the token of the badge, which its route checks."""
METRICS = "/metrics"
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_CHANGING_NOTHING = frozenset({"/v1/comparisons", "/sign-out"})
"""Paths that are posted to without changing data."""
_SENDING_OUT = ("/v1/webhooks", "/v1/badges")
"""Paths below which a change has results sent, or shown, to others."""


class UnauthorizedError(ServiceError, status=401, code="unauthorized", title="An API key is required"):
    def __init__(self, detail: str) -> None:
        super().__init__(
            detail,
            advice="Send a key as Authorization: Bearer KEY; wsb commands read it from WSB_API_KEY.",
            headers={"WWW-Authenticate": "Bearer"},
        )


class ScopeMissingError(ServiceError, status=403, code="scope_missing", title="The key does not allow this"):
    def __init__(self, scope: KeyScope) -> None:
        super().__init__(
            f"The key lacks the scope {scope}.",
            advice=f"Use a key with it: the operator creates one with wsb keys new NAME --scopes {scope}.",
        )


class Authentication:
    """Rejects requests without a valid key, or with one whose scopes don't suffice, before any of their body is read.

    Wraps the whole application, so that no route can be forgotten.

    Args:
        app: Protected application.
        keys: Accepted keys; if there are none, everyone is admitted as the same tenant.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[ApiKey]) -> None:
        self._app = app
        self._keys = keys
        self._turns = Turns()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not is_public(scope["method"], scope["path"]):
            try:
                session = scope.get("state", {}).get("session")
                authorization = Headers(scope=scope).get("authorization")
                key = self._authenticate(authorization) if session is None else session.key
                # Not unbound here: the log lines of the request are written after this returns.
                structlog.contextvars.bind_contextvars(tenant=key.tenant)
                TENANT.set(key.tenant)
                scope.setdefault("state", {})["key"] = key
                needed = scope_of(scope["method"], scope["path"])
                if needed not in key.scopes:
                    raise ScopeMissingError(needed)
            except ServiceError as error:
                await error.response()(scope, receive, send)
                return
            await self._turns.taken(key.tenant)
        await self._app(scope, receive, send)

    def _authenticate(self, authorization: str | None) -> ApiKey:
        if not self._keys:
            return ApiKey(ANONYMOUS, "")
        if authorization is None:
            raise UnauthorizedError("The request has no Authorization header.")
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise UnauthorizedError("The Authorization scheme is not Bearer.")
        found = find_key(self._keys, key.strip())
        if found is None:
            raise UnauthorizedError("The key is unknown.")
        if found.has_expired:
            raise UnauthorizedError(f"The key expired after {found.expires}.")
        return found


def is_public(method: str, path: str) -> bool:
    """Whether a request needs no key."""
    return path in PUBLIC_PATHS or (method in _SAFE_METHODS and _BADGE.fullmatch(path) is not None)


def is_change(method: str, path: str) -> bool:
    """Whether a request changes data."""
    return method not in _SAFE_METHODS and path not in _CHANGING_NOTHING


def scope_of(method: str, path: str) -> KeyScope:
    """Return the scope that a request needs."""
    if path == METRICS or method == "DELETE" or path.endswith("/delete"):
        return "admin"
    if is_change(method, path) and path.startswith(_SENDING_OUT):
        return "admin"
    return "submit" if is_change(method, path) else "read"


def _key(request: Request) -> ApiKey:
    key: ApiKey = request.state.key
    return key


def _tenant(request: Request) -> str:
    return _key(request).tenant


InTenant = Annotated[str, Depends(_tenant)]
"""The tenant that sent the request; a route may read and change only this tenant's data."""
WithKey = Annotated[ApiKey, Depends(_key)]
"""The key that the request was sent with."""


def openapi_scheme() -> dict[str, Any]:
    """Return the security scheme of the specification."""
    text = "A key from `wsb keys new`. A service without keys treats everyone as one tenant."
    return {"ApiKey": {"type": "http", "scheme": "bearer", "description": text}}
