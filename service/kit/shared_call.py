"""Coalesces concurrent identical calls into one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

Value = TypeVar("Value")


class SharedCall(Generic[Value]):
    """Callers that arrive while the call is in progress wait for its outcome.

    A call that takes too long is not cancelled: it may be uncancellable, such as a query to a database that hangs, and
    the next caller must not start a second one.
    """

    def __init__(self, call: Callable[[], Coroutine[Any, Any, Value]]) -> None:
        self._call = call
        self._task: asyncio.Task[Value] | None = None

    async def outcome(self, seconds: float) -> Value:
        """Return the result of the call, or raise its exception.

        Raises:
            TimeoutError: if it is not done within ``seconds``.
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
    """Retrieve the exception of a call that nobody awaits any more, so that asyncio doesn't report it."""
    if not task.cancelled():
        task.exception()
