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
    """Each runs one analysis, in a folder of its own.

    Args:
        zygote: Forks them; whoever closes it ends one that waits.
        place: What they have in common; its folder is where theirs are made.
    """

    def __init__(self, zygote: Zygote, place: Place) -> None:
        self._zygote, self._place = zygote, place
        self._ahead: asyncio.Task[Child | None] | None = None

    def fork_ahead(self) -> None:
        """Has one forked for the next analysis, unless there is one, without waiting for it."""
        if self._ahead is None:
            self._ahead = asyncio.create_task(self._try_to_fork(), name="fork ahead")

    @asynccontextmanager
    async def one(self) -> AsyncIterator[Child]:
        """The one that waits, if there is one; it and its folder are gone afterwards.

        Raises:
            SandboxError: if no child can be forked.
            OSError: if its folder can't be made.
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
        """Ends the one that waits."""
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
            log.warning("not_forked_ahead", error=str(error))  # the analysis that needs one says it, if it lasts
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
