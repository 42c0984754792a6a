"""Makes tenants take turns: where a limited number of callers may be at once, and in the event loop."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar

TENANT: ContextVar[str] = ContextVar("tenant", default="")
"""The tenant of the current request; empty for what the service does by itself."""


class Gate:
    """A semaphore that tenants share.

    A pool that serves callers in the order of their arrival makes one caller of a tenant wait for a hundred of another.

    Args:
        limit: Number of callers inside.
        reserve: Number of places that no single tenant may take, so that another one finds a free place.
    """

    def __init__(self, limit: int, *, reserve: int) -> None:
        self._free = limit
        self._share = limit - reserve
        self._inside = Counter[str]()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        """Callers that wait, by tenant; the tenant whose turn is next comes first."""

    @asynccontextmanager
    async def passed(self, tenant: str, *, seconds: float) -> AsyncIterator[None]:
        """Be inside during the block.

        Raises:
            TimeoutError: if there is no place within ``seconds``.
        """
        async with asyncio.timeout(seconds):
            await self._enter(tenant)
        try:
            yield
        finally:
            self._leave(tenant)

    async def _enter(self, tenant: str) -> None:
        if tenant not in self._waiting and self._admits(tenant):
            self._take(tenant)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # let in at the moment at which it gave up
                self._leave(tenant)
            raise

    def _admits(self, tenant: str) -> bool:
        return self._free > 0 and self._inside[tenant] < self._share

    def _take(self, tenant: str) -> None:
        self._free -= 1
        self._inside[tenant] += 1

    def _leave(self, tenant: str) -> None:
        self._free += 1
        self._inside[tenant] -= 1
        self._inside += Counter()  # drop those at 0
        while self._free > 0 and self._let_in():
            pass

    def _let_in(self) -> bool:
        """Let in the first caller of the first tenant that may enter; return whether there is one."""
        for tenant in [tenant for tenant in self._waiting if self._admits(tenant)]:
            callers = self._waiting.pop(tenant)
            while callers and callers[0].done():  # gave up
                callers.popleft()
            if not callers:
                continue
            callers.popleft().set_result(None)
            self._take(tenant)
            if callers:
                self._waiting[tenant] = callers
            return True
        return False


class Turns:
    """Lets one caller of each tenant go on in each pass of the event loop.

    A hundred requests that arrive together would otherwise all begin within one pass, and everyone else would wait.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        """Callers that wait, for each tenant of which one has gone on in this pass."""

    async def taken(self, tenant: str) -> None:
        """Wait until it is this caller's turn."""
        loop = asyncio.get_running_loop()
        waiting = self._waiting.get(tenant)
        if waiting is None:
            if not self._waiting:
                loop.call_soon(self._next_pass, loop)
            self._waiting[tenant] = deque()
            return
        turn: asyncio.Future[None] = loop.create_future()
        waiting.append(turn)
        await turn

    def _next_pass(self, loop: asyncio.AbstractEventLoop) -> None:
        for tenant, waiting in list(self._waiting.items()):
            while waiting and waiting[0].done():  # gave up
                waiting.popleft()
            if waiting:
                waiting.popleft().set_result(None)
            else:
                del self._waiting[tenant]
        if self._waiting:
            loop.call_soon(self._next_pass, loop)
