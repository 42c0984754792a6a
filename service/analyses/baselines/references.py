"""Reports in requests: given in full, or named by their analysis or as a baseline."""

from __future__ import annotations

from typing import Annotated

from pydantic import Discriminator, StringConstraints, Tag
from sqlalchemy.ext.asyncio import AsyncSession

from service.analyses.baselines import promotion
from service.analyses.service import find_report, parse_id
from service.analyses.table import AnalysisRow
from wsb_engine.report import Report

NAME = r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}"
"""Name of a baseline; identifiers of analyses are such names too, and so can't be given to baselines."""


def _kind(value: object) -> str:
    return "named" if isinstance(value, str) else "report"


ReportReference = Annotated[
    Annotated[str, StringConstraints(pattern=f"^{NAME}$"), Tag("named")] | Annotated[Report, Tag("report")],
    Discriminator(_kind),
]


async def resolve(session: AsyncSession, tenant: str, reference: str | Report) -> tuple[Report, AnalysisRow | None]:
    """Return the report, and the tenant's analysis if the reference names one.

    Raises:
        BaselineNotFoundError: if it is the name of a baseline that does not exist.
        AnalysisNotFoundError, ReportNotReadyError, NoReportError: if the named analysis has no report, or not yet.
    """
    if isinstance(reference, Report):
        return reference, None
    analysis = parse_id(reference.lower())
    if analysis is None:
        analysis = (await promotion.find(session, tenant, reference)).analysis
    row, stored = await find_report(session, tenant, analysis)
    return Report.model_validate_json(stored.body), row
