"""Whose analysis a worker takes next: tenants take turns, in proportion to their weights.

The queue alone would take jobs by priority and age, so that a tenant with a thousand jobs, or with the highest
priority, would keep the others waiting. A rank that a job gets when it is queued can't mend that: nobody knows yet
which tenants will queue something before its turn. So a worker decides when it takes a job (start-time fair queueing of
Goyal, Vin and Cheng, 1996). A tenant's next turn starts where its last one ended, and lasts 1/weight; the turn that
starts first is taken. Priority and age only order a tenant's own jobs. A tenant that was away continues at the start of
the turn that was taken last, so that it neither loses turns nor saves them up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from procrastinate import jobs
from sqlalchemy import Double, Text
from sqlalchemy.orm import Mapped, mapped_column

from service.database.engine import Base
from service.internals.queue import BaseConnector


class TurnRow(Base):
    """The last turn of a tenant on one kind of device."""

    __tablename__ = "turns"

    device: Mapped[str] = mapped_column(Text, primary_key=True)
    """Kind of device: cpu or cuda. A tenant has its share of each."""
    tenant: Mapped[str] = mapped_column(Text, primary_key=True)
    started: Mapped[float] = mapped_column(Double)
    """Start of the turn when it was chosen."""
    ended: Mapped[float] = mapped_column(Double)


# A job without an analysis, whose analysis ended and was deleted, belongs to nobody; it takes turns as a tenant "".
_CLAIM = """
WITH taken_last AS (SELECT coalesce(max(started), 0) AS start FROM turns WHERE device = %(device)s),
next AS (
    SELECT job.id, coalesce(analysis.tenant, '') AS tenant, greatest(last.ended, taken_last.start) AS start
    FROM procrastinate_jobs AS job
    CROSS JOIN taken_last
    LEFT JOIN analyses AS analysis ON analysis.id = (job.args ->> 'analysis')::uuid
    LEFT JOIN turns AS last ON last.device = %(device)s AND last.tenant = coalesce(analysis.tenant, '')
    WHERE job.status = 'todo' AND job.queue_name = ANY (%(queues)s::varchar[])
        AND (job.scheduled_at IS NULL OR job.scheduled_at <= now())
    ORDER BY start, last.started NULLS FIRST, tenant, job.priority DESC, job.id
    LIMIT 1
    FOR UPDATE OF job SKIP LOCKED
),
taken AS (
    INSERT INTO turns (device, tenant, started, ended)
    SELECT %(device)s, tenant, start, start + 1 / coalesce((%(weights)s::jsonb ->> tenant)::float, 1) FROM next
    -- Another worker may have taken a job of the same tenant at this moment. This turn comes after that one, but is no
    -- reason for a tenant that waits to lose its own: started, from which others continue, stays where it was chosen.
    ON CONFLICT (device, tenant) DO UPDATE SET
        started = greatest(turns.started, excluded.started),
        ended = greatest(turns.ended, excluded.started) + excluded.ended - excluded.started
)
UPDATE procrastinate_jobs AS job SET status = 'doing', worker_id = %(worker_id)s FROM next WHERE job.id = next.id
RETURNING job.id, job.status, job.task_name, job.priority, job.lock, job.queueing_lock, job.args, job.scheduled_at,
    job.queue_name, job.attempts, job.worker_id
"""


async def claim(
    connector: BaseConnector, queues: Iterable[str], worker_id: int, *, device: str, weights: Mapping[str, float]
) -> jobs.Job | None:
    """Take a job from the queue and mark it as this worker's; None if there is none.

    Args:
        connector: Connection of the queue.
        queues: Names of the queues that the worker serves.
        worker_id: Number of the worker in the queue.
        device: Device of the worker: cpu or cuda:N.
        weights: Weights of tenants; the others have 1.
    """
    kind = device.partition(":")[0]
    rows = await connector.execute_query_all_async(
        _CLAIM, queues=list(queues), worker_id=worker_id, device=kind, weights=dict(weights)
    )
    return jobs.Job.from_row(rows[0]) if rows else None
