"""Reuse of reports: which requests are equal, and which reports may answer another request."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

import wsb_engine
from service.analyses.table import AnalysisRow, ReportRow


def fingerprint(**content: Any) -> str:
    """Hash JSON-compatible values with SHA-256; equal values have equal hashes."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


async def find_report(
    session: AsyncSession, tenant: str, inputs: str, kinds: Collection[str]
) -> tuple[AnalysisRow, str] | None:
    """Find the tenant's newest report on these inputs and its analysis, if a run now would give the same.

    Args:
        session: Session to read with.
        tenant: Owner of the report.
        inputs: Fingerprint of model, batch and options.
        kinds: Kinds of devices that workers offer; a report from another kind is not reused. All kinds, if empty.
    """
    query = (
        select(AnalysisRow, ReportRow.body)
        .join(ReportRow, ReportRow.analysis == AnalysisRow.id)
        .where(AnalysisRow.tenant == tenant, AnalysisRow.fingerprint == inputs, AnalysisRow.state == "succeeded")
        .order_by(AnalysisRow.sequence.desc())
        .limit(1)
    )
    found = (await session.execute(query)).one_or_none()
    if found is None:
        return None
    row, body = found
    return (row, body) if _is_current(json.loads(body), kinds) else None


def _is_current(report: dict[str, Any], kinds: Collection[str]) -> bool:
    # A report that reached its time limit is partial: another run may get further.
    return (
        report["engine"]["version"] == wsb_engine.__version__
        and (not kinds or report["engine"]["device"].partition(":")[0] in kinds)
        and all(warning["code"] != "time_limit" for warning in report["warnings"])
    )
