"""/v1/badges: tokens that read one series' badge and nothing else; and the badge itself."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from datetime import datetime
from http import HTTPStatus
from typing import Annotated
from urllib.parse import quote
from uuid import UUID

from fastapi import APIRouter, Header, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.concurrency import run_in_threadpool

from service.analyses import representations, service
from service.analyses.listing import Listing, listed
from service.analyses.schemas import LABEL_KEY, LABEL_VALUE
from service.badges.table import BadgeRow
from service.context import Context, InContext
from service.database.engine import lock
from service.errors import InvalidRequestError, NotFoundError, ServiceError, declare
from service.http.documents import DOCUMENT_ERRORS, read_document
from service.http.headers import described, matches
from service.http.openapi import json_body
from service.http.security import InTenant
from service.keys import hash_key
from service.kit import audit
from service.rendering.badge import MEDIA_TYPE, NOTHING, badge_of, render_badge

router = APIRouter(tags=["badges"])

_PREFIX = "wsbb_"
_TOKEN_BYTES = 32


class BadgeNotFoundError(NotFoundError, code="badge_not_found", title="No such badge"): ...


class BadgesFullError(ServiceError, status=409, code="badges_full", title="There are too many badges"): ...


class BadgeRequest(BaseModel):
    """The series to show."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"label": "run:digits"}]})

    label: str = Field(
        pattern=f"^{LABEL_KEY}(:{LABEL_VALUE})?$",
        description="Label of the series: `key:value`, or `key` with any value.",
    )


class Badge(BaseModel):
    """A token that reads the badge of one series."""

    id: UUID
    label: str
    created_at: datetime


class NewBadge(Badge):
    """A badge with its token, which is not shown again."""

    token: str
    url: str = Field(description="Address of the picture, with the token.")


class BadgeList(BaseModel):
    """All badges of a tenant, oldest first."""

    items: list[Badge]


BadgeId = Annotated[UUID, Path(description="Identifier of the badge.")]
Label = Annotated[str, Path(description="Label of the series, as the badge was made for.", max_length=400)]
Token = Annotated[str, Query(description="Token of the badge.", max_length=100)]
IfNoneMatch = Annotated[str | None, Header(description="Entity tag of the client's copy.")]


@router.post(
    "/v1/badges",
    response_model=NewBadge,
    status_code=HTTPStatus.CREATED,
    summary="Make a badge of a series",
    description="The token reads the badge of this series and nothing else, until the badge is deleted.",
    responses=declare(*DOCUMENT_ERRORS, BadgesFullError),
    openapi_extra=json_body(BadgeRequest),
)
async def create_badge(request: Request, response: Response, context: InContext, tenant: InTenant) -> NewBadge:
    wanted = await read_document(request, BadgeRequest)
    token, limit = _PREFIX + secrets.token_urlsafe(_TOKEN_BYTES), context.settings.max_badges
    row = BadgeRow(tenant=tenant, label=wanted.label, sha256=hash_key(token))
    async with context.database.transaction() as session:
        await lock(session, f"badges {tenant}")
        if len(await _listed(session, tenant)) >= limit:
            advice = "Delete one that is not used." if limit else "The operator has turned badges off."
            raise BadgesFullError(f"The limit on badges, {limit}, is reached.", advice=advice)
        session.add(row)
        await session.flush()
        await session.refresh(row)
    response.headers["Location"] = f"/v1/badges/{row.id}"
    audit.note(resource=response.headers["Location"])
    url = f"{request.scope['root_path']}/v1/series/{quote(row.label, safe='/:')}/badge.svg?token={token}"
    return NewBadge(id=row.id, label=row.label, created_at=row.created_at, token=token, url=url)


@router.get("/v1/badges", summary="List the badges")
async def list_badges(context: InContext, tenant: InTenant) -> BadgeList:
    async with context.database.transaction() as session:
        rows = await _listed(session, tenant)
    return BadgeList(items=[Badge(id=row.id, label=row.label, created_at=row.created_at) for row in rows])


@router.delete(
    "/v1/badges/{badge_id}",
    status_code=HTTPStatus.NO_CONTENT,
    summary="Delete a badge",
    description="Its token reads nothing any more; copies in caches disappear when they expire.",
    responses=declare(BadgeNotFoundError, InvalidRequestError),
)
async def delete_badge(badge_id: BadgeId, context: InContext, tenant: InTenant) -> None:
    async with context.database.transaction() as session:
        row = await session.get(BadgeRow, badge_id)
        if row is None or row.tenant != tenant:
            raise BadgeNotFoundError(f"There is no badge {badge_id}.")
        await session.delete(row)
    audit.note()


@router.get(
    "/v1/series/{label:path}/badge.svg",
    response_class=Response,
    summary="Show the badge of a series",
    description="λ_max of the newest analysis that has a report, in the digits that are certified. Needs a token,"
    " and no key.",
    responses={
        200: {
            "content": {MEDIA_TYPE: {"schema": {"type": "string"}}},
            "headers": described({"ETag": "Strong.", "Cache-Control": "How long a copy may be shown."}),
        },
        304: {"description": "The copy named by If-None-Match is current."},
        **declare(BadgeNotFoundError, InvalidRequestError),
    },
)
async def get_series_badge(
    label: Label, token: Token, context: InContext, if_none_match: IfNoneMatch = None
) -> Response:
    async with context.database.transaction() as session:
        row = await session.scalar(select(BadgeRow).where(BadgeRow.sha256 == hash_key(token)))
    if row is None or row.label != label:
        raise BadgeNotFoundError("The token belongs to no badge of this series.")
    image = await _image(context, row)
    headers = {
        "ETag": f'"{hashlib.sha256(image).hexdigest()}"',
        "Cache-Control": f"public, max-age={context.settings.badge_seconds:g}",
        # Pages of other sites show it, which is what it is for.
        "Cross-Origin-Resource-Policy": "cross-origin",
        "Content-Security-Policy": "default-src 'none'",
    }
    if matches(if_none_match, headers["ETag"]):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return Response(image, headers=headers, media_type=MEDIA_TYPE)


async def _image(context: Context, row: BadgeRow) -> bytes:
    page = await listed(context, row.tenant, Listing(states=["succeeded"], labels=[row.label]), limit=1)
    stored = None
    if page.rows:
        _, stored = await service.fetch(context, row.tenant, page.rows[0].id)
    report = None if stored is None else await run_in_threadpool(representations.parsed, stored.body)
    return render_badge(NOTHING if report is None else badge_of(report))


async def _listed(session: AsyncSession, tenant: str) -> Sequence[BadgeRow]:
    query = select(BadgeRow).where(BadgeRow.tenant == tenant).order_by(BadgeRow.created_at, BadgeRow.id)
    return (await session.scalars(query)).all()
