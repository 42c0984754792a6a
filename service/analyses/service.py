"""Finds, cancels and deletes analyses; the API, the pages and comparisons share these functions."""

from __future__ import annotations

import re
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from service.analyses import repository
from service.analyses.errors import (
    AnalysisFinalError,
    AnalysisIsBaselineError,
    AnalysisLiveError,
    NoReportError,
    ReportNotReadyError,
    ended,
    not_found,
)
from service.analyses.table import FINAL_STATES, AnalysisRow, ReportRow
from service.context import Context
from service.database import queue
from service.database.engine import lock
from service.errors import InternalError
from service.kit import audit

BASELINE_LOCK = "baselines"
"""Held by whoever promotes or deletes an analysis, so that none is deleted while it becomes a baseline."""

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def parse_id(text: str) -> UUID | None:
    """Parse the identifier of an analysis; None for anything but a UUID in canonical form."""
    return UUID(text) if _UUID.fullmatch(text) else None


async def find(session: AsyncSession, tenant: str, analysis: UUID) -> AnalysisRow:
    """Find an analysis of the tenant.

    Raises:
        AnalysisNotFoundError: also for an analysis of another tenant.
    """
    row = await repository.find(session, analysis, tenant)
    if row is None:
        raise not_found(str(analysis))
    return row


async def find_with_report(session: AsyncSession, tenant: str, analysis: UUID) -> tuple[AnalysisRow, ReportRow | None]:
    """Find an analysis of the tenant, and its report if it has succeeded.

    Raises:
        AnalysisNotFoundError: also for an analysis of another tenant.
    """
    row, report = await repository.find_with_report(session, analysis, tenant)
    if row is None:
        raise not_found(str(analysis))
    return row, report


async def fetch(context: Context, tenant: str, analysis: UUID) -> tuple[AnalysisRow, ReportRow | None]:
    """Find as ``find_with_report``, in a separate transaction."""
    async with context.database.transaction() as session:
        return await find_with_report(session, tenant, analysis)


async def find_report(session: AsyncSession, tenant: str, analysis: UUID) -> tuple[AnalysisRow, ReportRow]:
    """Find an analysis of the tenant that must have a report.

    Raises:
        AnalysisNotFoundError: also for an analysis of another tenant.
        ReportNotReadyError, NoReportError: if there is no report yet, or none at all.
    """
    row, report = await find_with_report(session, tenant, analysis)
    if row.state not in FINAL_STATES:
        raise ReportNotReadyError(f"The analysis is {row.state}.", headers={"Retry-After": "1"}, analysis=str(row.id))
    if row.state != "succeeded":
        outcome = ended(row)
        raise NoReportError(
            f"The analysis ended as {row.state}: {outcome.detail}",
            advice=outcome.advice,
            analysis=str(row.id),
            details={"state": row.state, "code": outcome.problem_code},
        )
    return row, existing(report)


def existing(report: ReportRow | None) -> ReportRow:
    """Return the report of an analysis that has succeeded.

    Raises:
        InternalError: if it is missing.
    """
    if report is None:
        raise InternalError("The analysis has succeeded, but its report is missing.")
    return report


async def cancel(context: Context, tenant: str, analysis: UUID) -> AnalysisRow:
    """Cancel a queued analysis, or stop a running one; idempotent.

    Raises:
        AnalysisNotFoundError: also for an analysis of another tenant.
        AnalysisFinalError: if it has ended in another way.
    """
    async with context.database.transaction() as session:
        await find(session, tenant, analysis)
        changed = await repository.request_cancel(session, analysis)
        if changed is not None and changed.job_id is not None:
            await queue.abort(session, context.queue, changed.job_id)
        row = changed or await find(session, tenant, analysis)
    if changed is not None:
        audit.note(analysis=str(analysis))
    if row.state not in ("cancelling", "cancelled"):
        raise AnalysisFinalError(f"The analysis has {row.state.replace('_', ' ')}.", analysis=str(row.id))
    return row


async def delete(context: Context, tenant: str, analysis: UUID) -> None:
    """Delete an analysis that has ended, and its report.

    Raises:
        AnalysisNotFoundError: also for an analysis of another tenant.
        AnalysisLiveError: if it has not ended.
        AnalysisIsBaselineError: if it is a baseline.
    """
    async with context.database.transaction() as session:
        await lock(session, BASELINE_LOCK)
        row = await find(session, tenant, analysis)
        if not await repository.delete_ended(session, analysis):
            if row.state in FINAL_STATES:
                advice = "Promote another analysis, or delete the baseline first."
                raise AnalysisIsBaselineError("The analysis is a baseline.", advice=advice, analysis=str(row.id))
            raise AnalysisLiveError(
                f"The analysis is {row.state}.", advice="Cancel it, or wait until it has ended.", analysis=str(row.id)
            )
    audit.note(analysis=str(analysis))
