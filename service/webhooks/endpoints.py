"""/v1/webhooks: where to send signed messages when analyses end."""

from __future__ import annotations

from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Literal, get_args
from uuid import UUID, uuid4

from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from service.context import InContext
from service.errors import InvalidRequestError, NotFoundError, ServiceError, declare
from service.fields import FieldError
from service.http.documents import DOCUMENT_ERRORS, read_document
from service.http.openapi import json_body
from service.http.security import InTenant
from service.kit import audit
from service.webhooks import repository
from service.webhooks.addresses import MOST_CHARACTERS, UnusableUrlError, resolved
from service.webhooks.sealing import sealed
from service.webhooks.signature import PREFIX, decoded
from service.webhooks.table import WebhookRow

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"])

EventType = Literal["analysis.succeeded", "analysis.failed", "analysis.cancelled", "analysis.timed_out"]


class WebhookNotFoundError(NotFoundError, code="webhook_not_found", title="No such webhook"): ...


class WebhooksFullError(ServiceError, status=409, code="webhooks_full", title="There are too many webhooks"): ...


class WebhookRefusedError(ServiceError, status=422, code="webhook_refused", title="Nothing is sent to that URL"): ...


class WebhookRequest(BaseModel):
    """Where to send what."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "url": "https://example.com/hooks/wsb",
                    "events": ["analysis.succeeded", "analysis.failed"],
                    "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
                }
            ]
        },
    )

    url: str = Field(max_length=MOST_CHARACTERS, description="An https:// URL that leads to a public address.")
    events: list[EventType] = Field(
        default_factory=lambda: list(get_args(EventType)),
        min_length=1,
        max_length=len(get_args(EventType)),
        description="Events to send; by default, every end.",
    )
    secret: str = Field(
        pattern=f"^{PREFIX}[A-Za-z0-9+/]+={{0,2}}$",
        max_length=100,
        description="`whsec_` and 24 to 64 random bytes in base64, by which the receiver knows the sender. It is never"
        " returned.",
    )

    @field_validator("secret")
    @classmethod
    def _has_a_key(cls, secret: str) -> str:
        try:
            decoded(secret)
        except ValueError as error:
            raise PydanticCustomError("secret", "{text}", {"text": str(error)}) from error
        return secret


class Webhook(BaseModel):
    """A receiver of messages, without its secret."""

    id: UUID
    url: str
    events: list[EventType]
    failures: int = Field(description="Failed attempts since the last success.")
    created_at: datetime
    disabled_at: datetime | None = Field(description="When it was disabled after too many failures; else null.")

    @classmethod
    def of(cls, row: WebhookRow) -> Webhook:
        return cls.model_validate({name: getattr(row, name) for name in cls.model_fields})


class WebhookList(BaseModel):
    """All webhooks of a tenant, oldest first."""

    items: list[Webhook]


WebhookId = Annotated[UUID, Path(description="Identifier of the webhook.")]


@router.post(
    "",
    response_model=Webhook,
    status_code=HTTPStatus.CREATED,
    summary="Register a webhook",
    description="When an analysis ends, a message is sent to the URL, signed as Standard Webhooks specifies, at least"
    " once and with retries.",
    responses=declare(*DOCUMENT_ERRORS, WebhookRefusedError, WebhooksFullError),
    openapi_extra=json_body(WebhookRequest),
)
async def create_webhook(request: Request, response: Response, context: InContext, tenant: InTenant) -> Webhook:
    wanted, settings = await read_document(request, WebhookRequest), context.settings
    try:
        await resolved(wanted.url, context.resolver, private=settings.webhooks_private)
    except UnusableUrlError as error:
        raise WebhookRefusedError(
            str(error),
            advice="Give a URL that anyone can reach; the operator can allow others by WSB_WEBHOOKS_PRIVATE.",
            errors=[FieldError(pointer="/url", detail=str(error))],
        ) from error
    identifier = uuid4()
    row = WebhookRow(
        id=identifier,
        tenant=tenant,
        url=wanted.url,
        events=list(dict.fromkeys(wanted.events)),
        secret=sealed(wanted.secret, settings.webhooks_key, identifier),
    )
    async with context.database.transaction() as session:
        if not await repository.add(session, row, settings.max_webhooks):
            text = f"The limit on webhooks, {settings.max_webhooks}, is reached."
            advice = (
                "Delete one that is not used." if settings.max_webhooks else "The operator has turned webhooks off."
            )
            raise WebhooksFullError(text, advice=advice)
    response.headers["Location"] = f"/v1/webhooks/{row.id}"
    audit.note(resource=response.headers["Location"])
    return Webhook.of(row)


@router.get("", summary="List the webhooks")
async def list_webhooks(context: InContext, tenant: InTenant) -> WebhookList:
    async with context.database.transaction() as session:
        return WebhookList(items=[Webhook.of(row) for row in await repository.listed(session, tenant)])


@router.get("/{webhook_id}", summary="Get a webhook", responses=declare(WebhookNotFoundError, InvalidRequestError))
async def get_webhook(webhook_id: WebhookId, context: InContext, tenant: InTenant) -> Webhook:
    async with context.database.transaction() as session:
        return Webhook.of(_existing(await repository.find(session, tenant, webhook_id), webhook_id))


@router.delete(
    "/{webhook_id}",
    status_code=HTTPStatus.NO_CONTENT,
    summary="Delete a webhook",
    description="What has not been delivered to it is not delivered any more.",
    responses=declare(WebhookNotFoundError, InvalidRequestError),
)
async def delete_webhook(webhook_id: WebhookId, context: InContext, tenant: InTenant) -> None:
    async with context.database.transaction() as session:
        await session.delete(_existing(await repository.find(session, tenant, webhook_id), webhook_id))
    audit.note()


def _existing(row: WebhookRow | None, webhook: UUID) -> WebhookRow:
    if row is None:
        raise WebhookNotFoundError(f"There is no webhook {webhook}.")
    return row
