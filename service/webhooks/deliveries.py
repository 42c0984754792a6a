"""Delivers what is in the outbox: every process of the API takes part, and each message has one attempt at a time."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache

import httpx
import structlog
from sqlalchemy.exc import SQLAlchemyError

from service.context import Context
from service.database.notifications import first_of
from service.kit import audit
from service.kit.background import background
from service.kit.resolver import Resolver
from service.webhooks import repository
from service.webhooks.addresses import UnusableUrlError, resolved
from service.webhooks.repository import Delivery
from service.webhooks.sealing import SealedError, opened
from service.webhooks.signature import headers

_LEASE_SECONDS = 15.0
"""How much longer than an attempt may take a delivery is left alone."""
_GONE = 410

log = structlog.get_logger(__name__)


@asynccontextmanager
async def deliveries(context: Context) -> AsyncIterator[None]:
    """Deliver while the block runs; what is under way at its end is delivered again later."""
    if context.settings.webhooks_key:
        await _reseal(context)
    async with background(_deliver_for_ever(context), "deliveries"):
        yield


async def _reseal(context: Context) -> None:
    """Seal secrets with the first key, so that the others can be removed."""
    async with context.database.transaction() as session:
        done, unknown = await repository.reseal(session, context.settings.webhooks_key)
    if done:
        audit.note(operation="reseal_webhooks", webhooks=done)
    for webhook in unknown:
        log.warning("webhook_sealed", webhook=str(webhook), error=str(SealedError()))


async def _deliver_for_ever(context: Context) -> None:
    limit = context.settings.webhook_deliveries
    running: set[asyncio.Task[None]] = set()
    with context.notifications.subscribe(repository.TOPIC, every_change=True) as woken:

        def done(task: asyncio.Task[None]) -> None:
            running.discard(task)
            woken.set()  # the webhook may have more

        try:
            while True:
                woken.clear()
                claimed = await _claimed(context, limit - len(running))
                for delivery in claimed:
                    task = asyncio.create_task(_attempt(context, delivery), name=f"delivery {delivery.id}")
                    running.add(task)
                    task.add_done_callback(done)
                if not claimed:
                    await first_of(woken, timeout=context.settings.poll_seconds)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)


async def _claimed(context: Context, free: int) -> list[Delivery]:
    if free <= 0:
        return []
    lease = context.settings.webhook_seconds + _LEASE_SECONDS
    try:
        async with context.database.transaction() as session:
            return list(await repository.claim(session, free, lease_seconds=lease))
    except SQLAlchemyError as error:
        log.warning("deliveries_paused", error=str(error).partition("\n")[0])
        return []


async def _attempt(context: Context, delivery: Delivery) -> None:
    """Try once, and note the outcome; if that fails, the lease ends and the message is sent again."""
    settings, why, gone = context.settings, None, False
    try:
        async with asyncio.timeout(settings.webhook_seconds):
            secret = opened(delivery.secret, settings.webhooks_key, delivery.webhook)
            status = await send(delivery, secret, context.resolver, private=settings.webhooks_private)
        why, gone = None if 200 <= status < 300 else f"The receiver answered {status}.", status == _GONE
    except TimeoutError:
        why = f"The receiver did not answer within {settings.webhook_seconds:g} seconds."
    except (httpx.HTTPError, SealedError, UnusableUrlError) as error:
        why = str(error) or type(error).__name__
    try:
        async with context.database.transaction() as session:
            if why is None:
                await repository.delivered(session, delivery)
            else:
                await repository.failed(session, delivery, why, settings, gone=gone)
    except SQLAlchemyError as error:
        log.warning("deliveries_paused", error=str(error).partition("\n")[0])


async def send(delivery: Delivery, secret: str, resolver: Resolver, *, private: bool) -> int:
    """Send a message; return the status of the response, whose body is not read.

    Raises:
        UnusableUrlError: if nothing may be sent to the URL.
        httpx.HTTPError: if there is no response.
    """
    to, payload = await resolved(delivery.url, resolver, private=private), delivery.payload.encode()
    signed = headers(secret, f"msg_{delivery.id.hex}", int(time.time()), payload)
    # Neither a proxy of the environment nor a redirection leads anywhere else than to the address that was checked.
    async with (
        httpx.AsyncClient(verify=_certificates(), trust_env=False, follow_redirects=False, timeout=None) as client,  # noqa: S113 - the caller's
        client.stream(
            "POST",
            to.url,
            content=payload,
            headers={**signed, "Host": to.host, "Content-Type": "application/json", "User-Agent": "wsb-webhooks"},
            extensions={"sni_hostname": to.name},
        ) as response,
    ):
        return response.status_code


@cache
def _certificates() -> ssl.SSLContext:
    """Read the certificates of authorities, which takes longer than a delivery, only once."""
    return httpx.create_ssl_context(trust_env=False)
