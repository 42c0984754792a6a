"""Who computes on a worker's device, and what is ready beforehand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import datetime

import pytest
from support.service import Service, StartService, until

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


Files = dict[str, bytes]


@pytest.fixture
def files(model_bytes: bytes, batch_bytes: bytes) -> Files:
    return {"model": model_bytes, "batch": batch_bytes}


def submit(service: Service, files: Files, command: str) -> str:
    form = {**files, "request": json.dumps({"options": {"output": command}}).encode()}
    identifier: str = service.client.post("/v1/analyses", files=form).json()["id"]
    return identifier


def states(service: Service, *analyses: str) -> list[str]:
    return [service.client.get(f"/v1/analyses/{analysis}").json()["state"] for analysis in analyses]


def test_small_analyses_run_side_by_side(start_service: StartService, files: Files) -> None:
    service = start_service(small_jobs=2)
    three = [submit(service, files, "small:3") for _ in range(3)]
    until(lambda: states(service, *three) == ["running", "running", "queued"])
    until(lambda: states(service, *three) == ["succeeded"] * 3)


def test_an_analysis_that_does_not_say_that_it_is_small_runs_alone(start_service: StartService, files: Files) -> None:
    service = start_service(small_jobs=2)
    two = [submit(service, files, command) for command in ("sleep:1", "small:1")]
    until(lambda: states(service, *two) == ["running", "queued"])
    until(lambda: states(service, *two) == ["succeeded"] * 2)
    first, second = (service.client.get(f"/v1/analyses/{analysis}").json() for analysis in two)
    # While the first one's report is stored, it does not compute any more.
    waited = datetime.fromisoformat(second["started_at"]) - datetime.fromisoformat(first["started_at"])
    assert waited.total_seconds() >= 1
