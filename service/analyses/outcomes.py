"""Ends analyses with a report or an error, and updates the counters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from service.analyses import repository
from service.analyses.error_codes import is_service_failure
from service.analyses.table import AnalysisRow
from service.database import counters
from service.database.counters import Event

PHASES = (
    *("load", "setup", "loss", "parity", "rounding", "enclosure", "moments", "deflation", "population", "spectrum"),
    *("layers", "groups", "classes", "gauss_newton", "alignment", "scaled", "optimizer"),
)
"""Phases of an analysis, in order; a cheap closed form goes before the enclosure, and nothing is finished after it."""

TIMINGS = (*PHASES, "total")
"""Timings taken from a report; other names are ignored, because a hostile child could make up any number of them."""

_CAUSES = {
    "out_of_memory": "out_of_memory",
    "memory_limit": "memory_limit",
    "time_limit": "time_limit",
    "time_limit_exceeded": "time_limit",
    "worker_lost": "worker_lost",
    **dict.fromkeys(("worker_child_exited", "worker_child_killed", "worker_protocol_violation"), "crashed"),
    **dict.fromkeys(("worker_zygote_died", "invalid_report"), "crashed"),
    "device_failed": "device_failed",
    "blob_missing": "blob_missing",
    "blob_corrupt": "blob_corrupt",
}
_INTERNAL, _REJECTED = "internal", "rejected"

CAUSES = (*dict.fromkeys(_CAUSES.values()), _INTERNAL, _REJECTED)


def cause(code: str) -> str:
    """Map an error code to one of ``CAUSES``, to bound the label's cardinality: codes come from a child."""
    return _CAUSES.get(code) or (_INTERNAL if is_service_failure(code) else _REJECTED)


async def succeed(
    session: AsyncSession, analysis: UUID, report: str, timings: Mapping[str, float]
) -> AnalysisRow | None:
    """Call ``repository.succeed`` and count the analysis.

    Args:
        session: Session of the transaction.
        analysis: Identifier of the analysis.
        report: Report as JSON.
        timings: Seconds, by names of ``TIMINGS``.
    """
    row = await repository.succeed(session, analysis, report)
    if row is not None:
        phases = [Event("phase", name, timings[name]) for name in PHASES if name in timings]
        duration = [Event("duration", seconds=timings["total"])] if "total" in timings else []
        await counters.add(session, [*phases, *duration, *_wait(row)])
    return row


async def fail(
    session: AsyncSession, analysis: UUID, error: dict[str, Any], *, timed_out: bool = False
) -> AnalysisRow | None:
    """Call ``repository.fail`` and count the analysis."""
    row = await repository.fail(session, analysis, error, timed_out=timed_out)
    if row is not None:
        await counters.add(session, [Event("failed", cause(str(error["code"]))), *_wait(row)])
    return row


def _wait(row: AnalysisRow) -> list[Event]:
    if row.started_at is None:
        return []
    return [Event("queue_wait", seconds=(row.started_at - row.created_at).total_seconds())]
