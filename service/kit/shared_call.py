"""Coalesces concurrent identical calls into one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

Value = TypeVar("Value")


class SharedCall(Generic[Value]):
    """Whoever asks while the call is under way waits for its outcome.

    A call that takes too long is left alone instead of being cancelled: it may be one that can't be, such as a query
    to a database that hangs, and the next to ask must not start another one beside it.
    """

    def __init__(self, call: Callable[[], Coroutine[Any, Any, Value]]) -> None:
        self._call = call
        self._task: asyncio.Task[Value] | None = None

    async def outcome(self, seconds: float) -> Value:
        """What the call gives, or raises.

        Raises:
            TimeoutError: when it is not done in time.
        """
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._call(), name="shared call")
            self._task.add_done_callback(_retrieve)
        task = self._task
        done, _ = await asyncio.wait({task}, timeout=seconds)
        if not done:
            raise TimeoutError
        return task.result()


def _retrieve(task: asyncio.Task[Any]) -> None:
    """Looks at the error of a call that nobody waits for any more, so that it isn't reported as forgotten."""
    if not task.cancelled():
        task.exception()
