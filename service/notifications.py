"""Changes of analyses as they happen: one LISTEN connection a process, fanned out to whoever waits."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from uuid import UUID

import psycopg
import structlog
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

CHANNEL = "wsb_analyses"
_ENDED, _CHANGED = "ended", "changed"

log = structlog.get_logger(__name__)


async def announce(session: AsyncSession, analysis: UUID, *, ended: bool) -> None:
    """Tells every process, when the session's transaction commits, that the analysis has changed, or has ended."""
    await session.execute(select(func.pg_notify(CHANNEL, f"{analysis} {_ENDED if ended else _CHANGED}")))


class Notifications:
    """Wakes waiters when the analysis they wait for has ended.

    A notification that is lost with its connection is made up for by waking every waiter after a reconnect;
    waiters read the state themselves.
    """

    def __init__(self, conninfo: str, *, retry_seconds: float = 1.0) -> None:
        self._conninfo = conninfo
        self._retry_seconds = retry_seconds
        self._waiters: dict[str, set[asyncio.Event]] = defaultdict(set)

    @contextmanager
    def subscribe(self, analysis: UUID) -> Iterator[asyncio.Event]:
        """An event that is set when the analysis ends, or may have ended unnoticed; the waiter clears it."""
        key, event = str(analysis), asyncio.Event()
        self._waiters[key].add(event)
        try:
            yield event
        finally:
            self._waiters[key].discard(event)
            if not self._waiters[key]:
                del self._waiters[key]

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Listens in the background; the first connection is up when the block begins."""
        connection = await self._connect()
        task = asyncio.create_task(self._listen(connection), name="notifications")
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

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
                        self._wake(key)
                async with connection:
                    async for notification in connection.notifies():
                        analysis, _, what = notification.payload.partition(" ")
                        if what == _ENDED:
                            self._wake(analysis)
            except psycopg.OperationalError as error:
                log.warning("notifications_lost", error=str(error))
                await asyncio.sleep(self._retry_seconds)
            connection = None

    def _wake(self, key: str) -> None:
        for event in self._waiters.get(key, ()):
            event.set()
