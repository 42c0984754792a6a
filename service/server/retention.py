"""Deletes what is older than the retention period: ended analyses with their reports, and unused files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import cast

import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from service.analyses import repository
from service.analyses.service import BASELINE_LOCK
from service.blobs import leftovers
from service.blobs import repository as blobs
from service.blobs.errors import BlobInUseError, BlobNotFoundError
from service.blobs.repository import identifier
from service.blobs.table import BlobRow
from service.context import Context
from service.database.engine import lock
from service.kit import audit
from service.kit.background import background
from service.storage.store import Kind

_BATCH = 100
"""Rows deleted per transaction, so that no lock is held for long."""

log = structlog.get_logger(__name__)


@asynccontextmanager
async def retention(context: Context) -> AsyncIterator[None]:
    """Sweep periodically while the block runs."""
    async with background(_sweep_for_ever(context), "retention"):
        yield


async def _sweep_for_ever(context: Context) -> None:
    days = context.settings.retention_days
    while True:
        try:
            await leftovers.sweep(context.database, context.blobs)
            if days is not None:
                await sweep(context, datetime.now(UTC) - timedelta(days=days))
        except (SQLAlchemyError, OSError) as error:
            log.warning("retention_failed", error=str(error))
        await asyncio.sleep(context.settings.retention_interval_seconds)


async def sweep(context: Context, moment: datetime) -> None:
    """Delete analyses that ended before a moment, then files last sent before it that no analysis mentions.

    Analyses that are baselines stay.
    Processes that sweep at the same time take turns, one batch each.
    """
    analyses, files = 0, 0
    while (deleted := await _sweep_analyses(context, moment)) > 0:
        analyses += deleted
    while (deleted := await _sweep_files(context, moment)) > 0:
        files += deleted
    if analyses or files:
        log.info("retention_swept", analyses=analyses, files=files)
        audit.note(operation="retention", analyses=analyses, files=files, before=moment.isoformat())


async def _sweep_analyses(context: Context, moment: datetime) -> int:
    async with context.database.transaction() as session:
        await lock(session, "retention")
        await lock(session, BASELINE_LOCK)
        return await repository.delete_ended_before(session, moment, limit=_BATCH)


async def _sweep_files(context: Context, moment: datetime) -> int:
    async def is_needed(session: AsyncSession, blob: BlobRow) -> bool:
        return blob.uploaded_at >= moment or await repository.mentions_blob(session, blob)

    async with context.database.transaction() as session:
        await lock(session, "retention")
        rows = await repository.unmentioned_blobs(session, moment, limit=_BATCH)
    for row in rows:
        # Since the query it may have been sent again, used by an analysis, or deleted.
        with suppress(BlobNotFoundError, BlobInUseError):
            await blobs.delete(context, row.tenant, cast(Kind, row.kind), identifier(row.sha256), is_needed)
    return len(rows)
