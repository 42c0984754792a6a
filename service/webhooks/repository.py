"""Every read and every change of webhooks and their deliveries."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

import structlog
from pydantic import SecretStr
from sqlalchemy import delete, func, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from service.database.engine import lock
from service.database.notifications import CHANNEL
from service.settings import Settings
from service.webhooks.sealing import SealedError, resealed
from service.webhooks.table import DeliveryRow, WebhookRow

TOPIC = "deliveries"
"""What is announced when there are new deliveries."""
_JITTER = 0.1

log = structlog.get_logger(__name__)

_CLAIM = text("""
UPDATE deliveries SET attempts = attempts + 1, leased_until = now() + make_interval(secs => :lease)
WHERE id IN (
    SELECT id FROM deliveries WHERE id IN (
        -- One at a time for each webhook: a slow one leaves the others their turns.
        SELECT DISTINCT ON (webhook) id FROM deliveries AS due
        WHERE due_at <= now() AND NOT EXISTS (
            SELECT FROM deliveries AS trying WHERE trying.webhook = due.webhook AND trying.leased_until > now()
        )
        ORDER BY webhook, due_at
    )
    ORDER BY due_at LIMIT :limit FOR UPDATE SKIP LOCKED
)
RETURNING id
""")


@dataclass(frozen=True)
class Delivery:
    """One attempt at a delivery."""

    id: UUID
    webhook: UUID
    url: str
    secret: str
    """As it is stored."""
    payload: str
    attempts: int
    """Number of this attempt, from 1."""


async def add(session: AsyncSession, row: WebhookRow, limit: int) -> bool:
    """Store a webhook; return False if its tenant has ``limit`` of them."""
    await lock(session, f"webhooks {row.tenant}")
    count = select(func.count()).select_from(WebhookRow).where(WebhookRow.tenant == row.tenant)
    if (await session.scalar(count) or 0) >= limit:
        return False
    session.add(row)
    await session.flush()
    await session.refresh(row)
    return True


async def listed(session: AsyncSession, tenant: str) -> Sequence[WebhookRow]:
    query = select(WebhookRow).where(WebhookRow.tenant == tenant).order_by(WebhookRow.created_at, WebhookRow.id)
    return (await session.scalars(query)).all()


async def find(session: AsyncSession, tenant: str, webhook: UUID) -> WebhookRow | None:
    row = await session.get(WebhookRow, webhook)
    return row if row is not None and row.tenant == tenant else None


async def reseal(session: AsyncSession, keys: Sequence[SecretStr]) -> tuple[int, list[UUID]]:
    """Seal with the first key every secret that is stored in the clear, or sealed with a later one.

    Returns:
        The number of secrets that were sealed, and the webhooks whose secret none of the keys opens.
    """
    done, unknown = 0, []
    # Processes that start together wait for each other here.
    for row in await session.scalars(select(WebhookRow).order_by(WebhookRow.id).with_for_update()):
        try:
            again = resealed(row.secret, keys, row.id)
        except SealedError:
            unknown.append(row.id)
        else:
            if again is not None:
                row.secret, done = again, done + 1
    return done, unknown


async def record(session: AsyncSession, tenant: str, event: str, payload: Callable[[], dict[str, Any]]) -> None:
    """Note that an event is to be delivered, in the transaction that makes it happen.

    Args:
        session: Session of that transaction.
        tenant: Owner of the webhooks.
        event: Type of the event.
        payload: Returns the message; called only if a webhook wants it.
    """
    query = select(WebhookRow).where(WebhookRow.tenant == tenant, WebhookRow.disabled_at.is_(None))
    wanting = [row.id for row in await session.scalars(query) if event in row.events]
    if wanting:
        message = json.dumps(payload(), separators=(",", ":"))
        session.add_all([DeliveryRow(webhook=webhook, payload=message) for webhook in wanting])
        await session.flush()
        await session.execute(select(func.pg_notify(CHANNEL, f"{TOPIC} changed")))


async def claim(session: AsyncSession, limit: int, *, lease_seconds: float) -> Sequence[Delivery]:
    """Take at most ``limit`` deliveries that are due; others leave them alone for ``lease_seconds``."""
    claimed = (await session.scalars(_CLAIM, {"limit": limit, "lease": lease_seconds})).all()
    query = select(DeliveryRow, WebhookRow).join(WebhookRow).where(DeliveryRow.id.in_(claimed))
    return [
        Delivery(row.id, hook.id, hook.url, hook.secret, row.payload, row.attempts)
        for row, hook in await session.execute(query)
    ]


async def delivered(session: AsyncSession, delivery: Delivery) -> None:
    await session.execute(delete(DeliveryRow).where(DeliveryRow.id == delivery.id))
    await session.execute(update(WebhookRow).where(WebhookRow.id == delivery.webhook).values(failures=0))


async def failed(session: AsyncSession, delivery: Delivery, why: str, settings: Settings, *, gone: bool) -> None:
    """Try again later, give the delivery up after the last retry, or disable a webhook that fails all the time.

    Args:
        session: Session of the transaction.
        delivery: The attempt that failed.
        why: What happened, for the log.
        settings: Settings for retries.
        gone: True if the receiver says that it wants nothing any more.
    """
    facts = {"webhook": str(delivery.webhook), "delivery": str(delivery.id), "attempt": delivery.attempts, "error": why}
    count = update(WebhookRow).where(WebhookRow.id == delivery.webhook).values(failures=WebhookRow.failures + 1)
    failures = await session.scalar(count.returning(WebhookRow.failures))
    if failures is None:
        return  # deleted meanwhile, and its deliveries with it
    pauses = settings.webhook_retry_seconds
    if gone or failures >= settings.webhook_max_failures:
        log.warning("webhook_disabled", failures=failures, **facts)
        disabled = update(WebhookRow).where(WebhookRow.id == delivery.webhook).values(disabled_at=func.now())
        await session.execute(disabled)
        await session.execute(delete(DeliveryRow).where(DeliveryRow.webhook == delivery.webhook))
    elif delivery.attempts > len(pauses):
        log.warning("webhook_given_up", **facts)
        await session.execute(delete(DeliveryRow).where(DeliveryRow.id == delivery.id))
    else:
        pause = pauses[delivery.attempts - 1] * random.uniform(1, 1 + _JITTER)  # noqa: S311
        log.info("webhook_failed", again_in=round(pause, 1), **facts)
        later = {"due_at": func.now() + timedelta(seconds=pause), "leased_until": None}
        await session.execute(update(DeliveryRow).where(DeliveryRow.id == delivery.id).values(**later))
