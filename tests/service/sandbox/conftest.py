"""A zygote with the test entries in it, and ways to watch processes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import pytest
from support.service import DEADLINE, until

from service.sandbox import Job, JobLimits, Outcome, Zygote

HERE = Path(__file__).parent

T = TypeVar("T")


class Processes:
    """Looks at processes from outside."""

    @staticmethod
    def is_alive(pid: int) -> bool:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return False
        return stat.rpartition(")")[2].split()[0] not in "ZX"  # a zombie is as dead as its parent lets it be

    def wait_until_gone(self, *pids: int) -> None:
        until(lambda: not any(map(self.is_alive, pids)))


class Sandbox:
    """Runs test entries, each in a job folder under ``root``."""

    unsealed = ("unsealed", "sandbox_entries")
    """To be preloaded where a child is to do what Landlock and the filter of system calls forbid."""

    def __init__(self, root: Path, standing: Callable[[], tuple[asyncio.Runner, Zygote]]) -> None:
        self._root, self._standing = root, standing
        self._jobs = 0
        self.progress: list[dict[str, Any]] = []

    def zygote(self, *preload: str) -> Zygote:
        return Zygote(preload or ["sandbox_entries"], python_path=[HERE, self._root])

    def job(self, function: str, *, limits: JobLimits | None = None, **request: Any) -> Job:
        self._jobs += 1
        folder = self._root / f"job-{self._jobs}"
        folder.mkdir()
        job = Job(folder=folder, entry=f"sandbox_entries:{function}", request=request, seconds=60.0)
        return job if limits is None else replace(job, limits=limits)

    def scenario(self, play: Callable[[Zygote], Awaitable[T]], *preload: str) -> T:
        """Plays something in an event loop with a zygote of its own."""

        async def main() -> T:
            async with self.zygote(*preload) as zygote:
                return await play(zygote)

        return asyncio.run(asyncio.wait_for(main(), DEADLINE))

    def standing_scenario(self, play: Callable[[Zygote], Awaitable[T]]) -> T:
        """Plays something with the zygote that stays for all tests of this process."""
        runner, zygote = self._standing()

        async def main() -> T:
            return await play(zygote)

        return runner.run(asyncio.wait_for(main(), DEADLINE))

    def run(self, job: Job, *preload: str) -> Outcome:
        """Runs one job, keeping its progress; in a zygote of its own if it names what that is to preload."""

        def play(zygote: Zygote) -> Awaitable[Outcome]:
            return zygote.run(job, self.progress.append)

        return self.scenario(play, *preload) if preload else self.standing_scenario(play)


@pytest.fixture(scope="session")
def standing_zygote() -> Iterator[Callable[[], tuple[asyncio.Runner, Zygote]]]:
    """Gives, once it is asked for, an event loop and a zygote in it."""
    with ExitStack() as end:

        @cache
        def start() -> tuple[asyncio.Runner, Zygote]:
            runner = end.enter_context(asyncio.Runner())
            zygote = Zygote(["escape_entries", "sandbox_entries"], python_path=[HERE])
            runner.run(zygote.start())
            end.callback(lambda: runner.run(zygote.close()))
            return runner, zygote

        yield start


@pytest.fixture
def sandbox(tmp_path: Path, standing_zygote: Callable[[], tuple[asyncio.Runner, Zygote]]) -> Sandbox:
    return Sandbox(tmp_path, standing_zygote)


@pytest.fixture
def processes() -> Processes:
    return Processes()
