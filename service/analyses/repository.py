"""Every read and every change of analyses; a state is left only through these functions.

Each change bumps the row's revision and announces itself when its transaction commits. A change names the
states it may leave, so that whoever comes late changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from service.analyses.table import FINAL_STATES, LIVE_STATES, AnalysisRow, FinalState, ReportRow, State
from service.notifications import announce
from service.storage import Kind


async def find(session: AsyncSession, analysis: UUID) -> AnalysisRow | None:
    return await session.get(AnalysisRow, analysis, populate_existing=True)


async def find_report(session: AsyncSession, analysis: UUID) -> ReportRow | None:
    return await session.get(ReportRow, analysis)


async def count_queued(session: AsyncSession) -> int:
    query = select(func.count()).select_from(AnalysisRow).where(AnalysisRow.state == "queued")
    return await session.scalar(query) or 0


async def uses_blob(session: AsyncSession, kind: Kind, sha256: str) -> bool:
    """Whether an analysis that has not ended needs the blob."""
    column = AnalysisRow.model if kind == "models" else AnalysisRow.batch
    query = select(AnalysisRow.id).where(column == sha256, AnalysisRow.state.in_(LIVE_STATES)).limit(1)
    return await session.scalar(query) is not None


async def newest(
    session: AsyncSession,
    *,
    states: Sequence[State],
    labels: Sequence[dict[str, str]],
    label_keys: Sequence[str],
    before: int | None,
    limit: int,
) -> Sequence[AnalysisRow]:
    """Newest first: those in one of ``states`` (none: any) that carry all labels, older than ``before``."""
    query = select(AnalysisRow).order_by(AnalysisRow.sequence.desc()).limit(limit)
    if states:
        query = query.where(AnalysisRow.state.in_(states))
    for label in labels:
        query = query.where(AnalysisRow.labels.contains(label))
    for key in label_keys:
        query = query.where(AnalysisRow.labels.has_key(key))
    if before is not None:
        query = query.where(AnalysisRow.sequence < before)
    return (await session.scalars(query)).all()


async def start(session: AsyncSession, analysis: UUID) -> AnalysisRow | None:
    """queued or running (a lost attempt) → running, one attempt more; None when it is in another state."""
    return await _change(
        session,
        analysis,
        ("queued", "running"),
        state="running",
        attempts=AnalysisRow.attempts + 1,
        started_at=func.coalesce(AnalysisRow.started_at, func.now()),
        progress=None,
    )


async def requeue(session: AsyncSession, analysis: UUID, attempt: int) -> None:
    """running → queued without counting the attempt: its worker stops in an orderly way."""
    query = (
        update(AnalysisRow)
        .where(AnalysisRow.id == analysis, AnalysisRow.state == "running", AnalysisRow.attempts == attempt)
        .values(state="queued", attempts=attempt - 1, progress=None, revision=AnalysisRow.revision + 1)
    )
    await session.execute(query)
    await announce(session, analysis, ended=False)


async def request_cancel(session: AsyncSession, analysis: UUID) -> AnalysisRow | None:
    """queued → cancelled, running → cancelling; None when it was neither."""
    waiting = await cancelled(session, analysis, allowed=("queued",))
    return waiting or await _change(session, analysis, ("running",), state="cancelling")


async def report_progress(session: AsyncSession, analysis: UUID, progress: dict[str, Any]) -> None:
    await _change(session, analysis, ("running",), progress=progress)


async def succeed(session: AsyncSession, analysis: UUID, report: str) -> AnalysisRow | None:
    """Stores the report and ends the analysis; one that is being cancelled is left to end as that."""
    row = await _change(session, analysis, ("queued", "running"), state="succeeded", finished_at=func.now())
    if row is not None:
        digest = hashlib.sha256(report.encode()).hexdigest()
        values = {"analysis": analysis, "body": report, "sha256": digest}
        await session.execute(insert(ReportRow).values(values).on_conflict_do_nothing())
    return row


async def fail(
    session: AsyncSession, analysis: UUID, error: dict[str, Any], *, timed_out: bool = False
) -> AnalysisRow | None:
    """Ends the analysis with an error; one that is being cancelled is left to end as that."""
    state: FinalState = "timed_out" if timed_out else "failed"
    return await _change(session, analysis, ("queued", "running"), state=state, error=error, finished_at=func.now())


async def cancelled(
    session: AsyncSession, analysis: UUID, *, allowed: Sequence[State] = LIVE_STATES
) -> AnalysisRow | None:
    """Ends the analysis without a report."""
    return await _change(session, analysis, allowed, state="cancelled", finished_at=func.now())


async def without_job(session: AsyncSession) -> Sequence[UUID]:
    """Live analyses whose job the queue has given up; there are none unless something went wrong badly."""
    query = text(
        "SELECT analyses.id FROM analyses LEFT JOIN procrastinate_jobs AS job ON job.id = analyses.job_id"
        " WHERE analyses.state IN ('queued', 'running', 'cancelling')"
        " AND (job.id IS NULL OR job.status NOT IN ('todo', 'doing'))"
    )
    return (await session.scalars(query)).all()


async def _change(session: AsyncSession, analysis: UUID, allowed: Sequence[State], **values: Any) -> AnalysisRow | None:
    query = (
        update(AnalysisRow)
        .where(AnalysisRow.id == analysis, AnalysisRow.state.in_(allowed))
        .values(revision=AnalysisRow.revision + 1, **values)
        .returning(AnalysisRow)
        .execution_options(populate_existing=True)
    )
    row = await session.scalar(query)
    if row is not None:
        await announce(session, analysis, ended=row.state in FINAL_STATES)
    return row
