"""Totals that all processes add to and that outlive the analyses, as rows of the database.

Workers have no port for a monitor to scrape and are short-lived, so their counts are stored where every API process
can read them. A total is updated in the same transaction as the event that it counts, so that each event counts once.
A trigger (see the migration) counts analyses that end, whichever process ends them.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import BigInteger, Double, Text, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from service.database.engine import Base

Metric = Literal["ended", "failed", "queue_wait", "duration", "phase", "device_failed"]

BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, math.inf)
"""Upper bounds of the buckets of durations, in seconds."""


class TotalRow(Base):
    __tablename__ = "totals"

    metric: Mapped[Metric] = mapped_column(Text, primary_key=True)
    label: Mapped[str] = mapped_column(Text, primary_key=True)
    bucket: Mapped[float] = mapped_column(Double, primary_key=True)
    """Upper bound of the durations that this row counts; infinity if only the number matters."""
    count: Mapped[int] = mapped_column(BigInteger)
    seconds: Mapped[float] = mapped_column(Double)
    """Sum of the durations."""


@dataclass(frozen=True)
class Event:
    """One thing to count.

    Args:
        metric: What happened.
        label: One of a short list of kinds; never text from a client or a child.
        seconds: Duration; None if it does not matter.
    """

    metric: Metric
    label: str = ""
    seconds: float | None = None


async def add(session: AsyncSession, events: Iterable[Event]) -> None:
    """Count events, no two with the same metric and label, when the session's transaction commits."""
    # Always in the same order, so that transactions that lock the same rows don't deadlock.
    values = [
        {"metric": event.metric, "label": event.label, "count": 1, **_duration(event.seconds)}
        for event in sorted(events, key=lambda event: (event.metric, event.label))
    ]
    if not values:
        return
    # executemany with one row per statement: a statement with any number of rows would be compiled every time.
    new = insert(TotalRow)
    await session.execute(
        new.on_conflict_do_update(
            index_elements=[TotalRow.metric, TotalRow.label, TotalRow.bucket],
            set_={"count": TotalRow.count + 1, "seconds": TotalRow.seconds + new.excluded.seconds},
        ),
        values,
    )


async def read(session: AsyncSession) -> Sequence[TotalRow]:
    """Read all totals, ordered by metric, label and bucket."""
    return (await session.scalars(select(TotalRow).order_by(TotalRow.metric, TotalRow.label, TotalRow.bucket))).all()


def _duration(seconds: float | None) -> dict[str, float]:
    if seconds is None:
        return {"bucket": math.inf, "seconds": 0.0}
    seconds = max(seconds, 0.0)
    return {"bucket": BUCKETS[bisect_left(BUCKETS, seconds)], "seconds": seconds}
