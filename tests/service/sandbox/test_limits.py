"""Time limits and cancellation: no process of a job survives them."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace

import pytest
from support.service import DEADLINE

from service.sandbox import process


def test_a_job_over_its_time_is_stopped(sandbox):
    outcome = sandbox.run(replace(sandbox.job("hang"), seconds=0.3))

    assert (outcome.status, outcome.error.code) == ("timed_out", "time_limit_exceeded")
    assert outcome.exit_signal == signal.SIGKILL


def test_a_timeout_kills_what_the_child_forked_too(sandbox, processes):
    async def play(zygote):
        await zygote.run(replace(sandbox.job("hang_with_descendants"), seconds=0.5), sandbox.progress.append)
        processes.wait_until_gone(*sandbox.progress[0].values())

    sandbox.scenario(play, *sandbox.unsealed)

    assert set(sandbox.progress[0]) == {"pid", "in_group", "fled"}


def test_a_result_leaves_no_descendants_behind_either(sandbox, processes):
    async def play(zygote):
        outcome = await zygote.run(sandbox.job("hang_with_descendants", **{"return": True}), sandbox.progress.append)
        processes.wait_until_gone(*sandbox.progress[0].values())
        return outcome

    assert sandbox.scenario(play, *sandbox.unsealed).result == "left them"


def test_a_flood_of_progress_stops_neither_the_clock_nor_the_loop(sandbox):
    ticks = 0

    async def play(zygote):
        nonlocal ticks
        running = asyncio.create_task(zygote.run(replace(sandbox.job("flood"), seconds=0.5)))
        while not running.done():
            await asyncio.sleep(0.01)
            ticks += 1
        return await running

    assert sandbox.scenario(play).status == "timed_out"
    assert ticks >= 3


def test_cancelling_kills_the_child_and_what_it_forked_at_once(sandbox, processes, monkeypatch):
    monkeypatch.setattr(process, "KILL_SECONDS", 10 * DEADLINE)

    async def play(zygote):
        running, pids = await _start(zygote, sandbox.job("hang_with_descendants"))
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert not processes.is_alive(pids["pid"])
        processes.wait_until_gone(*pids.values())

    sandbox.scenario(play, *sandbox.unsealed)


def test_a_job_that_is_cancelled_before_its_fork_leaves_no_child(sandbox):
    async def play(zygote):
        running = asyncio.create_task(zygote.run(sandbox.job("hang")))
        await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        return _children_of(zygote.pid)

    assert sandbox.scenario(play) == []


def test_an_exception_in_the_progress_callback_kills_the_child_and_propagates(sandbox, processes):
    pids = []

    def complain(fields):
        pids.append(fields["pid"])
        raise LookupError("no row for this job")

    with pytest.raises(LookupError, match="no row"):
        sandbox.scenario(lambda zygote: zygote.run(sandbox.job("hang"), complain))

    processes.wait_until_gone(*pids)


def test_a_zygote_that_does_not_answer_is_killed_with_its_children(sandbox, processes, monkeypatch):
    monkeypatch.setattr(process, "KILL_SECONDS", 0.3)

    async def play(zygote):
        running, pids = await _start(zygote, sandbox.job("hang"))
        os.kill(zygote.pid, signal.SIGSTOP)
        running.cancel()
        await asyncio.sleep(0)
        running.cancel()  # a second time, while the first still waits for the child's end
        with pytest.raises(asyncio.CancelledError):
            await running
        processes.wait_until_gone(*pids.values())
        return await zygote.run(sandbox.job("echo"))

    assert sandbox.scenario(play).status == "succeeded"


async def _start(zygote, job):
    """Starts a job and waits for its first progress."""
    told = asyncio.get_running_loop().create_future()

    def note(fields):
        if not told.done():
            told.set_result(fields)

    running = asyncio.create_task(zygote.run(job, note))
    return running, await asyncio.wait_for(told, DEADLINE)


def _children_of(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return file.read().split()
