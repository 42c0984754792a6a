"""Keeps one pre-forked, already sandboxed child ready."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import structlog

from service.sandbox import Child, Place, SandboxError, Zygote

log = structlog.get_logger(__name__)


class Children:
    """Children that run one analysis each, in a private folder.

    Args:
        zygote: Zygote that forks them; closing it ends a waiting child.
        place: Place that they share, except for the folder: theirs are created inside it.
    """

    def __init__(self, zygote: Zygote, place: Place) -> None:
        self._zygote, self._place = zygote, place
        self._ahead: asyncio.Task[Child | None] | None = None

    def fork_ahead(self) -> None:
        """Start forking a child for the next analysis, unless there is one; does not wait for it."""
        if self._ahead is None:
            self._ahead = asyncio.create_task(self._try_to_fork(), name="fork ahead")

    @asynccontextmanager
    async def one(self) -> AsyncIterator[Child]:
        """Yield the waiting child, or fork one; it and its folder are removed afterwards.

        Raises:
            SandboxError: if no child can be forked.
            OSError: if its folder can't be created.
        """
        ahead, self._ahead = self._ahead, None
        child = None if ahead is None else await ahead
        if child is not None and not child.waits:
            await _end(child)  # killed from outside, or with its zygote
            child = None
        child = child or await self._fork()
        try:
            yield child
        finally:
            await _end(child)

    async def close(self) -> None:
        """End the waiting child."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.cancel()
            (child,) = await asyncio.gather(ahead, return_exceptions=True)
            if isinstance(child, Child):
                await _end(child)

    async def _try_to_fork(self) -> Child | None:
        try:
            return await self._fork()
        except (SandboxError, OSError) as error:
            log.warning("not_forked_ahead", error=str(error))  # if this persists, the next analysis reports it
            return None

    async def _fork(self) -> Child:
        folder = Path(tempfile.mkdtemp(prefix="job-", dir=self._place.folder))
        try:
            return await self._zygote.fork(replace(self._place, folder=folder))
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


async def _end(child: Child) -> None:
    try:
        await child.end()
    finally:
        shutil.rmtree(child.place.folder, ignore_errors=True)
