"""Checks whether analyses can be accepted and run; each part is checked independently and with a time limit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

from sqlalchemy import select, text
from sqlalchemy.exc import SQLAlchemyError

from service.context import Context
from service.database import workers
from service.database.engine import is_away
from service.errors import ServiceError
from service.kit.shared_call import SharedCall
from service.storage.store import require_room

OK = "ok"
_TOLD = 20
"""Failed workers that the check names."""
NO_DATABASE = "The database does not answer."

Check = Callable[[Context], Awaitable[str]]


async def _server(context: Context) -> str:
    return "The server is stopping." if context.stopping.is_set() else OK


async def _database(context: Context) -> str:
    async with context.database.transaction() as session:
        await session.execute(select(1))
    return OK


async def _migrations(context: Context) -> str:
    return OK if await context.database.is_current() else "The database's tables are of an older version."


async def _storage(context: Context) -> str:
    try:
        await asyncio.to_thread(_write, context)
        await context.blobs.probe()
    except ServiceError as error:
        return error.detail
    except OSError as error:
        return f"Models and batches can't be written: {error.strerror or error}."
    return OK


def _write(context: Context) -> None:
    with context.blobs.receive("models") as upload:
        upload.write(b"\0")
        require_room(upload.path.parent, 0, context.settings.min_free_bytes)


async def _queue(context: Context) -> str:
    async with context.database.transaction() as session:
        try:
            await session.execute(text("SELECT status, worker_id FROM procrastinate_jobs LIMIT 1"))
        except SQLAlchemyError as error:
            if is_away(error):
                raise
            return "The queue's tables can't be read."
    return OK


async def _worker(context: Context) -> str:
    async with context.database.transaction() as session:
        present = await workers.alive(session, within_seconds=context.settings.stalled_seconds)
        failed = [] if present else await workers.failed(session)
    return OK if present else " ".join(["No worker is alive.", *map(_told, failed[-_TOLD:])])


async def _failed_devices(context: Context) -> str:
    async with context.database.transaction() as session:
        return "\n".join(map(_told, (await workers.failed(session))[-_TOLD:]))


def _told(worker: workers.WorkerRow) -> str:
    return f"The worker on {worker.device} of {worker.host} has left: {worker.problem}."


CHECKS: dict[str, Check] = {
    "server": _server,
    "database": _database,
    "migrations": _migrations,
    "storage": _storage,
    "queue": _queue,
    "worker": _worker,
}
"""Ordered so that the first check that fails is the one to fix first."""


class Readiness:
    """The checks of one application; concurrent requests share them."""

    def __init__(self, context: Context) -> None:
        self._seconds = context.settings.probe_seconds
        self._calls = {name: SharedCall(partial(_examine, check, context)) for name, check in CHECKS.items()}
        self._failed = SharedCall(partial(_failed_devices, context))

    async def checks(self) -> dict[str, str]:
        """Return ``OK`` or what is wrong, by part, within ``probe_seconds``."""
        return dict(zip(self._calls, await asyncio.gather(*map(self._outcome, self._calls.values())), strict=True))

    async def failed_devices(self) -> list[str]:
        """Say which workers have left because their device failed; empty if the database does not answer in time."""
        try:
            return (await self._failed.outcome(self._seconds)).splitlines()
        except (TimeoutError, SQLAlchemyError, OSError):
            return []

    async def _outcome(self, call: SharedCall[str]) -> str:
        try:
            return await call.outcome(self._seconds)
        except TimeoutError:
            return f"No answer within {self._seconds:g} seconds."


async def _examine(check: Check, context: Context) -> str:
    try:
        return await check(context)
    except (SQLAlchemyError, OSError) as error:
        return NO_DATABASE if is_away(error) else "The database's tables can't be read."
