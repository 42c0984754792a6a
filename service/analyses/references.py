"""Reports in requests: given in full, or named by their analysis."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from pydantic import Discriminator, Tag
from sqlalchemy.ext.asyncio import AsyncSession

from service.analyses.service import find_report
from service.analyses.table import AnalysisRow
from wsb_engine.report import Report


def _kind(value: object) -> str:
    return "analysis" if isinstance(value, str | UUID) else "report"


ReportReference = Annotated[
    Annotated[UUID, Tag("analysis")] | Annotated[Report, Tag("report")],
    Discriminator(_kind),
]


async def resolve(session: AsyncSession, tenant: str, reference: UUID | Report) -> tuple[Report, AnalysisRow | None]:
    """Return the report, and the tenant's analysis if the reference names one.

    Raises:
        AnalysisNotFoundError, ReportNotReadyError, NoReportError: if the named analysis has no report, or not yet.
    """
    if isinstance(reference, Report):
        return reference, None
    row, stored = await find_report(session, tenant, reference)
    return Report.model_validate_json(stored.body), row
