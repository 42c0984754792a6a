"""The queue: Procrastinate on the service's Postgres, with one queue per requested device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, LiteralString
from uuid import UUID

import procrastinate
from procrastinate.exceptions import ConnectorException
from sqlalchemy.ext.asyncio import AsyncSession

from service import traces
from service.database.engine import driver_connection, is_away, patiently
from service.internals.queue import Notify
from service.kit.devices import kind_of, owned

RUN_ANALYSIS = "run_analysis"
ANY_DEVICE, SEVERAL = "analyses", "several"

_RECONNECT_SECONDS = 2.0
"""Pause between attempts of the pool, which by default doubles it without limit."""


def open_queue(conninfo: str, *, patience: float = 0) -> procrastinate.App:
    """Make the queue of a database; it connects only when a worker opens it.

    Args:
        conninfo: Connection string of the database.
        patience: Seconds for which a worker tolerates an unavailable database.
    """
    return procrastinate.App(connector=_PatientConnector(conninfo, patience))


class _PatientConnector(procrastinate.PsycopgConnector):
    """Waits for a database that is away; an error would end the queue's worker and its running job.

    Every statement of a worker may be repeated: a job fetched by a statement whose response was lost is found by the
    worker among its own jobs, and ending or retrying a job twice has no effect.
    """

    def __init__(self, conninfo: str, patience: float) -> None:
        pause = _RECONNECT_SECONDS
        super().__init__(conninfo=conninfo, min_size=1, max_size=4, timeout=pause, reconnect_timeout=pause)
        self._patience = patience

    async def execute_query_async(self, query: LiteralString, **arguments: Any) -> None:
        once = super().execute_query_async
        await patiently(lambda: once(query, **arguments), seconds=self._patience)

    async def execute_query_one_async(self, query: LiteralString, **arguments: Any) -> dict[str, Any]:
        once = super().execute_query_one_async
        return await patiently(lambda: once(query, **arguments), seconds=self._patience)

    async def execute_query_all_async(self, query: LiteralString, **arguments: Any) -> list[dict[str, Any]]:
        once = super().execute_query_all_async
        return await patiently(lambda: once(query, **arguments), seconds=self._patience)

    async def listen_notify(self, on_notification: Notify, channels: Iterable[str]) -> None:
        while True:
            try:
                await super().listen_notify(on_notification, channels)
            except ConnectorException as error:
                if not is_away(error):
                    raise
            await self.execute_query_async("SELECT 1")


def queue_name(device: str) -> str:
    """Name of the queue of analyses that request ``device``: auto, a kind (cpu, cuda), one device (cuda:1), several."""
    return ANY_DEVICE if device == "auto" else f"{ANY_DEVICE}.{device}"


def wanted_device(options: Mapping[str, Any]) -> str:
    """Return the device that the options of an analysis request; ``SEVERAL`` if they request several."""
    return str(options["device"]) if options.get("devices") is None else SEVERAL


def queues_of(worker: str) -> list[str]:
    """Names of the queues that a worker serves, by its name; it names the devices that it owns."""
    devices = owned(worker)
    wanted = [*map(kind_of, devices), *devices, *([SEVERAL] if len(devices) > 1 else [])]
    return list(dict.fromkeys([ANY_DEVICE, *map(queue_name, wanted)]))


async def defer(session: AsyncSession, queue: procrastinate.App, analysis: UUID, *, device: str, priority: int) -> int:
    """Queue an analysis within the session's transaction; return the number of the job.

    Args:
        session: Session of the transaction.
        queue: The queue.
        analysis: Identifier of the analysis.
        device: Device that it requests; ``SEVERAL`` if it requests several.
        priority: Higher ones go first.
    """
    task = queue.configure_task(
        RUN_ANALYSIS,
        queue=queue_name(device),
        priority=priority,
        connection=await driver_connection(session),
    )
    return await task.defer_async(analysis=str(analysis), **traces.carried())


async def abort(session: AsyncSession, queue: procrastinate.App, job: int) -> None:
    """Remove a waiting job, or tell the worker that runs it to stop, when the transaction commits."""
    connection = await driver_connection(session)
    await queue.job_manager.cancel_job_by_id_async(job, abort=True, delete_job=True, connection=connection)
