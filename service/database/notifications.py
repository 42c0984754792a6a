"""Notifications about changes of analyses: one LISTEN connection per process, fanned out to all waiters."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from uuid import UUID

import psycopg
import structlog
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from service.kit.background import background

CHANNEL = "wsb_analyses"
_ENDED, _CHANGED = "ended", "changed"

log = structlog.get_logger(__name__)


async def announce(session: AsyncSession, analysis: UUID, *, ended: bool) -> None:
    """Notify every process, when the session's transaction commits, that the analysis has changed or ended."""
    await session.execute(select(func.pg_notify(CHANNEL, f"{analysis} {_ENDED if ended else _CHANGED}")))


class Notifications:
    """Wakes waiters when their analysis has ended, or at each of its changes.

    After a reconnect every waiter is woken, to make up for notifications lost with the connection; waiters read the
    state themselves.
    """

    def __init__(self, conninfo: str, *, retry_seconds: float = 1.0) -> None:
        self._conninfo = conninfo
        self._retry_seconds = retry_seconds
        self._waiters: dict[str, dict[asyncio.Event, bool]] = defaultdict(dict)
        """For each analysis, the event of each waiter and whether it waits for every change."""

    @contextmanager
    def subscribe(self, analysis: UUID | str, *, every_change: bool = False) -> Iterator[asyncio.Event]:
        """Yield an event that is set when the analysis ends, or may have ended unnoticed; the waiter clears it.

        Args:
            analysis: Identifier of the analysis, or the name of another topic that is announced on the channel.
            every_change: True to set the event at each change of state or progress too. Changes are not queued: several
                before the waiter clears the event are one.
        """
        key, event = str(analysis), asyncio.Event()
        self._waiters[key][event] = every_change
        try:
            yield event
        finally:
            del self._waiters[key][event]
            if not self._waiters[key]:
                del self._waiters[key]

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Listen in the background; the connection is established when the block begins."""
        connection = await self._connect()
        async with background(self._listen(connection), "notifications"):
            yield

    async def _connect(self) -> psycopg.AsyncConnection[tuple[object, ...]]:
        connection = await psycopg.AsyncConnection.connect(self._conninfo, autocommit=True)
        await connection.execute(f"LISTEN {CHANNEL}")
        return connection

    async def _listen(self, connection: psycopg.AsyncConnection[tuple[object, ...]] | None) -> None:
        while True:
            try:
                if connection is None:
                    connection = await self._connect()
                    for key in list(self._waiters):
                        self._wake(key, ended=True)
                async with connection:
                    async for notification in connection.notifies():
                        analysis, _, what = notification.payload.partition(" ")
                        self._wake(analysis, ended=what == _ENDED)
            except psycopg.OperationalError as error:
                log.warning("notifications_lost", error=str(error))
                await asyncio.sleep(self._retry_seconds)
            connection = None

    def _wake(self, key: str, *, ended: bool) -> None:
        for event, every_change in self._waiters.get(key, {}).items():
            if ended or every_change:
                event.set()


async def first_of(*events: asyncio.Event, timeout: float) -> None:  # noqa: ASYNC109 - it does not raise
    """Return when one of the events is set, or after ``timeout`` seconds."""
    tasks = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
