"""Who is let in next."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from service.kit.gate import Gate, Turns


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(20):
        await asyncio.sleep(0)


class Crowd:
    """Callers of a gate, each of which stays inside until it is told to leave."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self.inside: list[str] = []
        self._leave: dict[int, asyncio.Event] = {}
        self.tasks: list[asyncio.Task[None]] = []

    async def come(self, tenants: str, *, seconds: float = 300) -> None:
        for tenant in tenants:
            leave = self._leave[len(self.tasks)] = asyncio.Event()
            self.tasks.append(asyncio.create_task(self._stay(tenant, leave, seconds)))
        await settle()

    async def go(self, *numbers: int) -> None:
        for number in numbers:
            self._leave[number].set()
            await settle()

    async def _stay(self, tenant: str, leave: asyncio.Event, seconds: float) -> None:
        async with self._gate.passed(tenant, seconds=seconds):
            self.inside.append(tenant)
            await leave.wait()


def play(act: Callable[[Crowd], Coroutine[Any, Any, None]], *, limit: int, reserve: int) -> None:
    async def run() -> None:
        crowd = Crowd(Gate(limit, reserve=reserve))
        await act(crowd)
        for number in range(len(crowd.tasks)):
            await crowd.go(number)
        await asyncio.gather(*crowd.tasks, return_exceptions=True)

    asyncio.run(run())


def test_a_tenant_never_takes_the_places_that_are_reserved() -> None:
    async def act(crowd: Crowd) -> None:
        await crowd.come("aaaaa")
        assert crowd.inside == list("aaa")
        await crowd.come("bb")
        assert crowd.inside == list("aaab")

    play(act, limit=4, reserve=1)


def test_tenants_enter_in_turn_however_many_wait() -> None:
    async def act(crowd: Crowd) -> None:
        await crowd.come("aaaaaaaa")
        await crowd.come("bbc")
        await crowd.go(0, 1, 2)
        assert crowd.inside == list("aaabc")

    play(act, limit=2, reserve=0)


def test_who_gives_up_leaves_its_place_to_others() -> None:
    async def act(crowd: Crowd) -> None:
        await crowd.come("aabb")
        crowd.tasks[1].cancel()
        crowd.tasks[2].cancel()
        await settle()
        await crowd.go(0)
        assert crowd.inside == ["a", "b"]

    play(act, limit=1, reserve=0)


def test_who_gives_up_at_the_moment_it_is_let_in_loses_no_place() -> None:
    async def act(crowd: Crowd) -> None:
        await crowd.come("ab")
        crowd._leave[0].set()
        for _ in range(20):
            await asyncio.sleep(0)
            crowd.tasks[1].cancel()
        await crowd.come("c")
        assert crowd.inside[-1] == "c"

    play(act, limit=1, reserve=0)


def test_a_wait_ends_in_a_timeout() -> None:
    async def act(crowd: Crowd) -> None:
        await crowd.come("a")
        await crowd.come("a", seconds=0.01)
        with pytest.raises(TimeoutError):
            await crowd.tasks[1]
        await crowd.go(0)
        await crowd.come("a")
        assert crowd.inside == ["a", "a"]

    play(act, limit=1, reserve=0)


def test_in_a_pass_of_the_loop_one_caller_of_each_tenant_goes_on() -> None:
    async def run() -> list[str]:
        turns, gone = Turns(), []

        async def go(tenant: str) -> None:
            await turns.taken(tenant)
            gone.append(tenant)

        tasks = [asyncio.create_task(go(tenant)) for tenant in "aaaaa"]
        await asyncio.sleep(0)
        tasks[1].cancel()
        tasks += [asyncio.create_task(go("b"))]
        await asyncio.gather(*tasks, return_exceptions=True)
        return gone

    assert asyncio.run(run()) == list("abaaa")


def test_who_comes_alone_does_not_wait() -> None:
    async def run() -> None:
        turns = Turns()
        for _ in range(3):
            await turns.taken("a")
            await settle()

    asyncio.run(run())
