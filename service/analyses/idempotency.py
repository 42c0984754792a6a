"""Idempotency-Key: repeating a request returns the same analysis."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from service.analyses.errors import IdempotencyMismatchError
from service.analyses.table import IdempotencyRow
from service.database.engine import lock


async def replayed(session: AsyncSession, tenant: str, key: str, fingerprint: str) -> UUID | None:
    """Return the analysis of the request that used the key first; None if the key is new.

    The key stays locked until the transaction ends, so that only one of several concurrent requests creates the
    analysis.

    Raises:
        IdempotencyMismatchError: if that request was a different one.
    """
    await lock(session, f"idempotency {tenant} {key}")
    row = await session.get(IdempotencyRow, (tenant, key))
    if row is None:
        return None
    if row.fingerprint != fingerprint:
        raise IdempotencyMismatchError(
            "The key was already used with a different model, batch or settings.",
            advice="Use a new key for each new request, and repeat a key only to repeat its request.",
            analysis=str(row.analysis),
        )
    return row.analysis


def remember(session: AsyncSession, tenant: str, key: str, fingerprint: str, analysis: UUID) -> None:
    """Store the key for as long as the analysis is kept."""
    session.add(IdempotencyRow(tenant=tenant, key=key, fingerprint=fingerprint, analysis=analysis))
