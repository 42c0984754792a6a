"""Every read and every change of analyses; only these functions change a state.

Each change increments the row's revision and sends a notification when its transaction commits. A change names the
states it may leave, so that one that comes too late has no effect.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Select, and_, delete, exists, func, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from service.analyses.numbers import columns
from service.analyses.table import FINAL_STATES, LIVE_STATES, AnalysisRow, BaselineRow, FinalState, ReportRow, State
from service.analyses.verdicts import judge
from service.blobs.table import BlobRow
from service.database.notifications import announce
from service.webhooks import repository as webhooks

_IS_BASELINE = exists().where(BaselineRow.analysis == AnalysisRow.id)


async def find(session: AsyncSession, analysis: UUID, tenant: str) -> AnalysisRow | None:
    """Find an analysis of the tenant; None if there is none."""
    row = await find_anyones(session, analysis)
    return row if row is not None and row.tenant == tenant else None


async def find_anyones(session: AsyncSession, analysis: UUID) -> AnalysisRow | None:
    """Find an analysis of any tenant: for workers, never for a request."""
    return await session.get(AnalysisRow, analysis, populate_existing=True)


async def find_with_report(
    session: AsyncSession, analysis: UUID, tenant: str
) -> tuple[AnalysisRow | None, ReportRow | None]:
    """Find an analysis of the tenant and its report, if there is one.

    One statement sees both or, once they have been deleted, neither.
    """
    query = (
        select(AnalysisRow, ReportRow)
        .outerjoin(ReportRow, ReportRow.analysis == AnalysisRow.id)
        .where(AnalysisRow.id == analysis, AnalysisRow.tenant == tenant)
        .execution_options(populate_existing=True)
    )
    found = (await session.execute(query)).one_or_none()
    return (None, None) if found is None else (found[0], found[1])


async def report_bodies(session: AsyncSession, analyses: Sequence[UUID]) -> dict[UUID, str]:
    """Return the reports of some analyses as JSON, by analysis."""
    query = select(ReportRow.analysis, ReportRow.body).where(ReportRow.analysis.in_(analyses))
    return {row.analysis: row.body for row in await session.execute(query)}


async def count_queued(session: AsyncSession, tenant: str) -> tuple[int, int]:
    """Count the queued analyses: of all tenants, and of this one."""
    theirs = func.count().filter(AnalysisRow.tenant == tenant)
    query = select(func.count(), theirs).select_from(AnalysisRow).where(AnalysisRow.state == "queued")
    every, own = (await session.execute(query)).one()
    return every, own


async def count_live(session: AsyncSession, tenant: str) -> Counter[State]:
    """Count a tenant's analyses that have not ended, by state."""
    query = select(AnalysisRow.state, func.count()).where(
        AnalysisRow.tenant == tenant, AnalysisRow.state.in_(LIVE_STATES)
    )
    return Counter(dict((await session.execute(query.group_by(AnalysisRow.state))).all()))


async def uses_blob(session: AsyncSession, blob: BlobRow) -> bool:
    """Whether an analysis that has not ended needs the blob."""
    query = _of_blob(blob).where(AnalysisRow.state.in_(LIVE_STATES))
    return await session.scalar(query) is not None


async def mentions_blob(session: AsyncSession, blob: BlobRow) -> bool:
    """Whether any analysis uses the blob, ended or not."""
    return await session.scalar(_of_blob(blob)) is not None


async def unmentioned_blobs(session: AsyncSession, moment: datetime, *, limit: int) -> Sequence[BlobRow]:
    """List blobs of any tenant that were last sent before a moment and that no analysis mentions, oldest first."""
    mentioned = exists().where(
        AnalysisRow.tenant == BlobRow.tenant,
        or_(
            and_(BlobRow.kind == "models", AnalysisRow.model == BlobRow.sha256),
            and_(BlobRow.kind == "batches", AnalysisRow.batch == BlobRow.sha256),
            and_(BlobRow.kind == "optimizer_states", AnalysisRow.optimizer_state == BlobRow.sha256),
        ),
    )
    query = select(BlobRow).where(BlobRow.uploaded_at < moment, ~mentioned).order_by(BlobRow.uploaded_at).limit(limit)
    return (await session.scalars(query)).all()


def _of_blob(blob: BlobRow) -> Select[UUID]:
    columns = {
        "models": AnalysisRow.model,
        "batches": AnalysisRow.batch,
        "optimizer_states": AnalysisRow.optimizer_state,
    }
    named = columns[blob.kind] == blob.sha256
    return select(AnalysisRow.id).where(AnalysisRow.tenant == blob.tenant, named).limit(1)


async def earlier(session: AsyncSession, row: AnalysisRow, *series: ColumnElement[bool]) -> AnalysisRow | None:
    """Find the last analysis before this one, of the same tenant and series, whose λ_max can be compared with its.

    Args:
        session: Session to read with.
        row: An analysis that has its report.
        series: Conditions that make the series.
    """
    query = select(AnalysisRow).where(
        AnalysisRow.tenant == row.tenant,
        AnalysisRow.sequence < row.sequence,
        AnalysisRow.state == "succeeded",
        AnalysisRow.batch == row.batch,
        AnalysisRow.parameters == row.parameters,
        AnalysisRow.lambda_max_lower.is_not(None),
        AnalysisRow.reliable.is_not(False),
        *series,
    )
    found: AnalysisRow | None = await session.scalar(query.order_by(AnalysisRow.sequence.desc()).limit(1))
    return found


async def start(session: AsyncSession, analysis: UUID) -> AnalysisRow | None:
    """queued or running (after a lost attempt) → running, with one more attempt; None in any other state."""
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
    """running → queued without counting the attempt, because its worker stops in an orderly way."""
    query = (
        update(AnalysisRow)
        .where(AnalysisRow.id == analysis, AnalysisRow.state == "running", AnalysisRow.attempts == attempt)
        .values(state="queued", attempts=attempt - 1, progress=None, revision=AnalysisRow.revision + 1)
    )
    await session.execute(query)
    await announce(session, analysis, ended=False)


async def request_cancel(session: AsyncSession, analysis: UUID) -> AnalysisRow | None:
    """queued → cancelled, running → cancelling; None in any other state. The caller has checked the tenant."""
    waiting = await cancelled(session, analysis, allowed=("queued",))
    return waiting or await _change(session, analysis, ("running",), state="cancelling")


async def report_progress(
    session: AsyncSession, analysis: UUID, progress: dict[str, Any], *, allowed: Sequence[State] = ("running",)
) -> None:
    await _change(session, analysis, allowed, progress=progress)


async def succeed(session: AsyncSession, analysis: UUID, report: str) -> AnalysisRow | None:
    """Store the report and end the analysis; None if it is being cancelled or has ended."""
    row = await _change(session, analysis, ("queued", "running"), state="succeeded", finished_at=func.now())
    if row is not None:
        digest = hashlib.sha256(report.encode()).hexdigest()
        values = {"analysis": analysis, "body": report, "sha256": digest}
        await session.execute(insert(ReportRow).values(values).on_conflict_do_nothing())
        for name, value in (await asyncio.to_thread(columns, report)).items():
            setattr(row, name, value)
        row.verdict = await judge(session, row, report)
        await _tell(session, row, report)
    return row


async def fail(
    session: AsyncSession, analysis: UUID, error: dict[str, Any], *, timed_out: bool = False
) -> AnalysisRow | None:
    """End the analysis with an error; None if it is being cancelled or has ended."""
    state: FinalState = "timed_out" if timed_out else "failed"
    row = await _change(session, analysis, ("queued", "running"), state=state, error=error, finished_at=func.now())
    if row is not None:
        await _tell(session, row)
    return row


async def cancelled(
    session: AsyncSession, analysis: UUID, *, allowed: Sequence[State] = LIVE_STATES
) -> AnalysisRow | None:
    """End the analysis as cancelled."""
    row = await _change(session, analysis, allowed, state="cancelled", finished_at=func.now())
    if row is not None:
        await _tell(session, row)
    return row


async def delete_ended(session: AsyncSession, analysis: UUID) -> bool:
    """Delete an analysis and its report; return whether it existed, had ended, and was no baseline."""
    query = delete(AnalysisRow).where(AnalysisRow.id == analysis, AnalysisRow.state.in_(FINAL_STATES), ~_IS_BASELINE)
    return await session.scalar(query.returning(AnalysisRow.id)) is not None


async def delete_ended_before(session: AsyncSession, moment: datetime, *, limit: int) -> int:
    """Delete at most ``limit`` analyses that ended before a moment and are no baselines; return their number.

    The oldest come first.
    """
    ended = (AnalysisRow.state.in_(FINAL_STATES), AnalysisRow.finished_at < moment, ~_IS_BASELINE)
    old = select(AnalysisRow.id).where(*ended)
    old = old.order_by(AnalysisRow.finished_at).limit(limit).with_for_update(skip_locked=True)
    deleted = await session.scalars(delete(AnalysisRow).where(AnalysisRow.id.in_(old)).returning(AnalysisRow.id))
    return len(deleted.all())


async def without_job(session: AsyncSession) -> Sequence[UUID]:
    """List live analyses whose job is no longer in the queue, which only a serious fault can cause."""
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


async def _tell(session: AsyncSession, row: AnalysisRow, report: str | None = None) -> None:
    """Have the tenant's webhooks told that an analysis has ended, once the transaction commits."""

    def message() -> dict[str, Any]:
        enclosure = None if report is None else json.loads(report).get("enclosure")
        ends = None if enclosure is None else {name: enclosure["lambda_max"][name] for name in ("lower", "upper")}
        url = f"/v1/analyses/{row.id}"
        data = {
            "id": str(row.id),
            "state": row.state,
            "error": None if row.error is None else row.error.get("code"),
            "verdict": None if row.verdict is None else row.verdict["outcome"],
            "lambda_max": ends,
            "links": {"self": url, "report": None if report is None else f"{url}/report"},
        }
        return {"type": event, "timestamp": datetime.now(UTC).isoformat(), "data": data}

    event = f"analysis.{row.state}"
    await webhooks.record(session, row.tenant, event, message)
