"""Waits for an analysis to end, woken by notifications."""

from __future__ import annotations

import asyncio
from uuid import UUID

from service.analyses.errors import not_found
from service.analyses.repository import find_with_report
from service.analyses.table import FINAL_STATES, AnalysisRow, ReportRow
from service.context import Context
from service.database.notifications import first_of


async def wait_until_ended(
    context: Context, tenant: str, analysis: UUID, seconds: float
) -> tuple[AnalysisRow, ReportRow | None]:
    """Wait until the tenant's analysis ends, the time is up or the server stops; return it and its report.

    Raises:
        AnalysisNotFoundError: if it does not exist or is deleted meanwhile.
    """
    deadline = asyncio.get_running_loop().time() + seconds
    with context.notifications.subscribe(analysis) as ended:
        while True:
            ended.clear()
            async with context.database.transaction() as session:
                row, report = await find_with_report(session, analysis, tenant)
            if row is None:
                raise not_found(str(analysis))
            remaining = deadline - asyncio.get_running_loop().time()
            if row.state in FINAL_STATES or remaining <= 0 or context.stopping.is_set():
                return row, report
            # The poll makes up for lost notifications.
            await first_of(ended, context.stopping, timeout=min(remaining, context.settings.poll_seconds))
