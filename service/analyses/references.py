"""Reports in requests: named by their analysis, or given as they are."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from pydantic import Discriminator, Tag
from sqlalchemy.ext.asyncio import AsyncSession

from service.analyses import repository
from service.analyses.errors import NoReportError, ReportNotReadyError
from service.analyses.table import FINAL_STATES, AnalysisRow
from service.analyses.waiting import not_found
from service.errors import InternalError
from wsb_engine.report import Report


def _kind(value: object) -> str:
    return "analysis" if isinstance(value, str | UUID) else "report"


ReportReference = Annotated[
    Annotated[UUID, Tag("analysis")] | Annotated[Report, Tag("report")],
    Discriminator(_kind),
]


async def resolve(session: AsyncSession, tenant: str, reference: UUID | Report) -> tuple[Report, AnalysisRow | None]:
    """The report, and the tenant's analysis that it belongs to where it was named by that.

    Raises:
        AnalysisNotFoundError, ReportNotReadyError, NoReportError: when the analysis has no report, or not yet.
    """
    if isinstance(reference, Report):
        return reference, None
    row = await repository.find(session, reference, tenant)
    if row is None:
        raise not_found(str(reference))
    if row.state not in FINAL_STATES:
        raise ReportNotReadyError(f"The analysis is {row.state}.", headers={"Retry-After": "1"}, analysis=str(row.id))
    if row.state != "succeeded":
        raise NoReportError(f"The analysis ended as {row.state}.", analysis=str(row.id))
    stored = await repository.find_report(session, reference)
    if stored is None:
        raise InternalError("The analysis has succeeded, but its report is missing.")
    return Report.model_validate_json(stored.body), row
