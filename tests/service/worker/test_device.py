"""Who computes on a worker's device, and what is ready beforehand."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime

import pytest
from support.service import Files, Service, StartService, submit

from service.worker.device import Device


async def has_room(device: Device) -> bool | None:
    """None where that is waited for."""
    try:
        return await asyncio.wait_for(device.room(), 0.02)
    except TimeoutError:
        return None


def play(scenario: Callable[[Device], Awaitable[None]], threads: int = 2) -> None:
    async def main() -> None:
        await scenario(Device(threads))

    asyncio.run(main())


def test_one_analysis_has_all_threads_for_itself() -> None:
    async def scenario(device: Device) -> None:
        assert await has_room(device)
        device.add(1)
        assert await has_room(device) is None
        device.leave(1)
        assert await has_room(device)

    play(scenario)


def test_small_ones_are_as_many_as_threads() -> None:
    async def scenario(device: Device) -> None:
        for job in (1, 2):
            assert await has_room(device)
            device.add(job)
            assert await has_room(device) is None
            device.share(job)
        assert await has_room(device) is None
        device.leave(1)
        assert await has_room(device)

    play(scenario)


def test_a_device_of_one_thread_has_one_analysis_however_small() -> None:
    async def scenario(device: Device) -> None:
        device.add(1)
        device.share(1)
        assert await has_room(device) is None

    play(scenario, threads=1)


def test_whoever_waits_for_room_is_told_of_it_and_of_the_end() -> None:
    async def scenario(device: Device) -> None:
        device.add(1)
        waiting = [asyncio.create_task(device.room()) for _ in range(2)]
        await asyncio.sleep(0)
        device.leave(1)
        assert await asyncio.gather(*waiting) == [True, True]
        device.add(2)
        last = asyncio.create_task(device.room())
        await asyncio.sleep(0)
        device.close()
        assert not await last

    play(scenario)


def test_an_analysis_that_has_left_can_neither_share_nor_leave_again() -> None:
    async def scenario(device: Device) -> None:
        device.add(1)
        device.leave(1)
        device.share(1)
        device.leave(1)
        assert await has_room(device)

    play(scenario)


def starts(service: Service, *analyses: str) -> list[datetime]:
    """When each of these was started, once all have succeeded."""
    ended = [service.ended(analysis) for analysis in analyses]
    assert [analysis["state"] for analysis in ended] == ["succeeded"] * len(ended)
    return [datetime.fromisoformat(analysis["started_at"]) for analysis in ended]


@pytest.mark.slow
def test_small_analyses_run_side_by_side(start_service: StartService, files: Files) -> None:
    service = start_service(small_jobs=2)
    first, second, third = sorted(starts(service, *(submit(service, files, "small:5") for _ in range(3))))
    assert (second - first).total_seconds() < 5 <= (third - first).total_seconds()


@pytest.mark.slow
def test_an_analysis_that_does_not_say_that_it_is_small_runs_alone(start_service: StartService, files: Files) -> None:
    service = start_service(small_jobs=2)
    first, second = starts(service, *(submit(service, files, command) for command in ("sleep:1", "small:0")))
    # While the first one's report is stored, it does not compute any more.
    assert (second - first).total_seconds() >= 1
