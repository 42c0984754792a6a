"""Pages for signing in with an API key and signing out."""

from __future__ import annotations

import re
from http import HTTPStatus

import structlog
from fastapi import APIRouter, Request, Response
from starlette.responses import RedirectResponse

from service.context import InContext
from service.keys import find_key, hash_key
from service.kit import audit
from service.web import sessions
from service.web.pages import page, see
from service.web.urlencoded import read_fields, read_post

router = APIRouter(include_in_schema=False)

# A path of this service: browsers treat // and /\ as the start of another host's name.
_PATH = re.compile(r"/(?![/\\])[\x21-\x5b\x5d-\x7e]{0,2000}")


@router.get("/sign-in")
async def get_sign_in(request: Request, context: InContext, next: str = "/") -> Response:  # noqa: A002
    if not context.settings.api_keys or request.state.session is not None:
        return _onward(request, next)
    return page(request, "sign_in.html", next=next, error="")


@router.post("/sign-in")
async def sign_in(request: Request, context: InContext) -> Response:
    fields = await read_fields(request)
    settings, key = context.settings, fields.get("key", "").strip()
    following = fields.get("next", "/")
    found = find_key(settings.api_keys, key)
    if found is None or found.has_expired:
        error = "This key is unknown." if found is None else "This key has expired."
        return page(request, "sign_in.html", HTTPStatus.FORBIDDEN, next=following, error=error)
    async with context.database.transaction() as transaction:
        if (before := sessions.token_in(request)) is not None:
            await sessions.end(transaction, before)
        token = await sessions.begin(transaction, hash_key(key), hours=settings.session_hours)
    # For the line in the log that says who has begun a session.
    request.state.key = found
    structlog.contextvars.bind_contextvars(tenant=found.tenant)
    audit.note()
    response = _onward(request, following)
    sessions.set_cookie(request, response, token, hours=settings.session_hours)
    return response


@router.post("/sign-out")
async def sign_out(request: Request, context: InContext) -> Response:
    await read_post(request)
    if (token := sessions.token_in(request)) is not None:
        async with context.database.transaction() as transaction:
            await sessions.end(transaction, token)
        audit.note()
    response = see(request, "get_sign_in")
    sessions.clear_cookie(request, response)
    return response


def _onward(request: Request, path: str) -> Response:
    if not _PATH.fullmatch(path):
        return see(request, "show_home")
    return RedirectResponse(f"{request.scope['root_path']}{path}", HTTPStatus.SEE_OTHER)
