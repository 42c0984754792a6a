"""Idempotency-Key: the same request sent again is the same analysis."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from service.analyses.errors import IdempotencyMismatchError
from service.analyses.table import IdempotencyRow
from service.database.engine import lock


async def replayed(session: AsyncSession, tenant: str, key: str, fingerprint: str) -> UUID | None:
    """The analysis of the request that brought the key before; None where it is new.

    The key stays locked until the transaction ends: of requests that come together, one makes the analysis.

    Raises:
        IdempotencyMismatchError: when that request was another one.
    """
    await lock(session, f"idempotency {tenant} {key}")
    row = await session.get(IdempotencyRow, (tenant, key))
    if row is None:
        return None
    if row.fingerprint != fingerprint:
        raise IdempotencyMismatchError(
            "The key was sent before with another model, batch or settings.",
            advice="Use a new key for a new request, and the same key only to repeat one.",
            analysis=str(row.analysis),
        )
    return row.analysis


def remember(session: AsyncSession, tenant: str, key: str, fingerprint: str, analysis: UUID) -> None:
    """Keeps the key for as long as the analysis is kept."""
    session.add(IdempotencyRow(tenant=tenant, key=key, fingerprint=fingerprint, analysis=analysis))
