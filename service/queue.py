"""The queue: Procrastinate on the service's own Postgres, one queue for each kind of device asked for."""

from __future__ import annotations

from uuid import UUID

import procrastinate
from sqlalchemy.ext.asyncio import AsyncSession

from service.database import driver_connection

RUN_ANALYSIS = "run_analysis"
ANY_DEVICE = "analyses"


def open_queue(conninfo: str) -> procrastinate.App:
    """The queue behind a database; connections are made only when a worker opens it."""
    connector = procrastinate.PsycopgConnector(conninfo=conninfo, min_size=1, max_size=4)
    return procrastinate.App(connector=connector)


def queue_name(device: str) -> str:
    """Where an analysis waits that asked for ``device``: any, a kind (cpu, cuda) or one (cuda:1)."""
    return ANY_DEVICE if device == "auto" else f"{ANY_DEVICE}.{device}"


def queues_of(device: str) -> list[str]:
    """The queues that a worker with ``device`` serves."""
    kind = device.partition(":")[0]
    return list(dict.fromkeys([ANY_DEVICE, queue_name(kind), queue_name(device)]))


async def defer(session: AsyncSession, queue: procrastinate.App, analysis: UUID, *, device: str, priority: int) -> int:
    """Queues an analysis within the session's transaction; the number of the job."""
    task = queue.configure_task(
        RUN_ANALYSIS,
        queue=queue_name(device),
        priority=priority,
        connection=await driver_connection(session),
    )
    return await task.defer_async(analysis=str(analysis))


async def abort(session: AsyncSession, queue: procrastinate.App, job: int) -> None:
    """Takes a waiting job back, or tells the worker that runs it to stop, when the transaction commits."""
    connection = await driver_connection(session)
    await queue.job_manager.cancel_job_by_id_async(job, abort=True, delete_job=True, connection=connection)
