"""Named baselines: promoting an analysis, and finding the one that a name stands for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import exists, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from service.analyses.errors import (
    BaselineDecidedError,
    BaselineNewerError,
    BaselineNotFoundError,
    BaselinesFullError,
    NoReportError,
)
from service.analyses.representations import parsed
from service.analyses.service import BASELINE_LOCK, find_report
from service.analyses.table import AnalysisRow, BaselineRow
from service.context import Context
from service.database.engine import lock
from service.kit import audit
from service.policies.evaluation import BASELINE_DECIDED, PRODUCE_AGAIN
from service.policies.policy import stopped_when_decided


@dataclass(frozen=True)
class Promotion:
    """A baseline that an analysis has just become."""

    row: BaselineRow
    replaced: UUID | None
    """The analysis that was the baseline before; None if there was none, or the same."""
    is_new: bool


async def promote(context: Context, tenant: str, name: str, analysis: UUID, *, allow_older: bool) -> Promotion:
    """Make an analysis the tenant's baseline of this name, in one transaction.

    Raises:
        AnalysisNotFoundError, ReportNotReadyError, NoReportError: if the analysis has no report, or not yet.
        BaselineDecidedError: if it stopped as soon as its policy was decided.
        BaselineNewerError: if the baseline was requested later, unless ``allow_older``.
        BaselinesFullError: if the tenant has as many baselines as it may have.
    """
    async with context.database.transaction() as session:
        await lock(session, BASELINE_LOCK)
        row, stored = await find_report(session, tenant, analysis)
        report = await asyncio.to_thread(parsed, stored.body)
        if report is None:
            text = "An older version produced the report, and this one can't compare with it."
            raise NoReportError(text, advice="Analyse the same files again.", analysis=str(analysis))
        if stopped_when_decided(report):
            raise BaselineDecidedError(BASELINE_DECIDED, advice=PRODUCE_AGAIN, analysis=str(analysis))
        known = await session.get(BaselineRow, (tenant, name))
        before = None if known is None else known.analysis
        if known is None:
            await _check_room(session, context, tenant)
            known = BaselineRow(tenant=tenant, name=name, analysis=analysis)
            session.add(known)
        else:
            if not allow_older:
                await _check_age(session, name, known.analysis, row)
            if before != analysis:
                known.analysis, known.promoted_at = analysis, func.now()
        await session.flush()
        await session.refresh(known)
    replaced = None if before == analysis else before
    if before != analysis:
        told = None if replaced is None else str(replaced)
        audit.note(resource=f"/v1/baselines/{name}", promoted=str(analysis), replaced=told)
    return Promotion(known, replaced, is_new=before is None)


async def find(session: AsyncSession, tenant: str, name: str) -> BaselineRow:
    """Find the tenant's baseline of this name.

    Raises:
        BaselineNotFoundError: also for a name of another tenant.
    """
    row = await session.get(BaselineRow, (tenant, name))
    if row is None:
        raise BaselineNotFoundError(
            f"There is no baseline {name[:80]!r}.", advice="Promote an analysis with PUT /v1/baselines/NAME."
        )
    return row


async def listed(session: AsyncSession, tenant: str) -> Sequence[BaselineRow]:
    """List the tenant's baselines by name."""
    query = select(BaselineRow).where(BaselineRow.tenant == tenant).order_by(BaselineRow.name)
    return (await session.scalars(query)).all()


async def names_of(session: AsyncSession, analysis: UUID) -> Sequence[str]:
    """List the names for which an analysis is the baseline."""
    query = select(BaselineRow.name).where(BaselineRow.analysis == analysis).order_by(BaselineRow.name)
    return (await session.scalars(query)).all()


async def _check_room(session: AsyncSession, context: Context, tenant: str) -> None:
    limit = context.settings.max_baselines
    query = select(func.count()).select_from(BaselineRow).where(BaselineRow.tenant == tenant)
    if (await session.scalar(query) or 0) >= limit:
        raise BaselinesFullError(f"The limit on baselines, {limit}, is reached.", advice="Delete one that is not used.")


async def _check_age(session: AsyncSession, name: str, before: UUID, row: AnalysisRow) -> None:
    newer = exists().where(AnalysisRow.id == before, AnalysisRow.sequence > row.sequence)
    if await session.scalar(select(newer)):
        raise BaselineNewerError(
            f"The baseline {name!r} is a newer analysis than this one.",
            advice="Keep it, or set allow_older to go back on purpose.",
            analysis=str(before),
        )
