"""The training runs of a tenant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import func, select

from service.analyses.table import AnalysisRow
from service.context import Context
from service.series.checkpoints import RUN


class Run(NamedTuple):
    """A training run: a value of the label ``run``."""

    name: str
    checkpoints: int
    """Number of its analyses that have a report."""

    @property
    def label(self) -> str:
        return f"{RUN}:{self.name}"


async def list_runs(context: Context, tenant: str) -> tuple[Sequence[Run], bool]:
    """List a tenant's runs, those with the newest checkpoints first, and whether there are older ones too."""
    most = context.settings.max_series_listed
    labelled = (
        select(AnalysisRow.labels[RUN].astext.label("name"), AnalysisRow.sequence)
        .where(AnalysisRow.tenant == tenant, AnalysisRow.state == "succeeded", AnalysisRow.labels.has_key(RUN))
        .subquery()
    )
    query = (
        select(labelled.c.name, func.count())
        .group_by(labelled.c.name)
        .order_by(func.max(labelled.c.sequence).desc())
        .limit(most + 1)
    )
    async with context.database.transaction() as session:
        found = [Run(name, count) for name, count in await session.execute(query)]
    return found[:most], len(found) > most
