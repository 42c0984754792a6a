"""Analyses that this worker leaves to others: for lack of memory, of their devices, or because its device failed."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from service.analyses.schemas import AnalysisError
from service.analyses.table import AnalysisRow
from service.database import workers


class LeftToOthersError(Exception):
    """The analysis can't run in this worker but can in another, which will take it from the queue."""


async def leave_to_others(session: AsyncSession, row: AnalysisRow, worker: str, *, within_seconds: float) -> None:
    """Leave an analysis to another live worker that offers its device, if there is one.

    Raises:
        LeftToOthersError: if there is one.
    """
    for other in await workers.alive(session, within_seconds=within_seconds):
        if other.device != worker and workers.offers(other, row.options):
            raise LeftToOthersError(str(row.id))


async def unavailable(
    session: AsyncSession, row: AnalysisRow, worker: str, *, within_seconds: float
) -> AnalysisError | None:
    """Return why no live worker owns all the devices that an analysis asks for; None if this one does.

    Raises:
        LeftToOthersError: if another one does.
    """
    if row.options.get("devices") is None or workers.owner_offers(worker, row.options):
        return None
    await leave_to_others(session, row, worker, within_seconds=within_seconds)
    return AnalysisError(
        code="device_unavailable",
        message=f"No worker owns all of {', '.join(row.options['devices'])}.",
        advice="Start one with wsb worker --devices, or ask for devices=all.",
    )
