"""Children that are forked and confined before there is anything for them to do."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from dataclasses import replace

from support.service import DEADLINE

from service.sandbox import Place


def test_a_child_that_waits_runs_the_request_that_comes(sandbox):
    async def play(zygote):
        child = await zygote.fork(sandbox.job("echo"))
        assert child.waits
        try:
            return await child.run({"text": "é" * 100_000}, 60), child.waits
        finally:
            await child.end()

    outcome, waits = sandbox.scenario(play)
    assert json.loads(outcome.result)["text"] == "é" * 100_000
    assert not waits


def test_it_is_confined_as_any_other(sandbox):
    job = sandbox.job("echo")

    async def play(zygote):
        child = await zygote.fork(job)
        try:
            ahead = await child.run({}, 60)
        finally:
            await child.end()
        return ahead, await zygote.run(job)

    ahead, fresh = (json.loads(outcome.result)["sandbox"] for outcome in sandbox.scenario(play))
    assert ahead == fresh
    assert "rlimit_cpu" in ahead


def test_what_can_be_done_before_its_request_is_done_once_it_is_confined(sandbox):
    job = replace(sandbox.job("prepared"), ahead=("sandbox_entries:prepare", "one", "two"))

    outcome = sandbox.run(job)

    assert json.loads(outcome.result) == {"arguments": ["one", "two"], "confined": True}


def test_what_fails_before_its_request_is_logged_and_the_job_goes_on(sandbox):
    job = replace(sandbox.job("echo"), ahead=("sandbox_entries:missing",))

    outcome = sandbox.run(job)

    assert outcome.status == "succeeded"
    assert "has no attribute 'missing'" in outcome.log


def test_it_waits_while_others_run(sandbox):
    async def play(zygote):
        child = await zygote.fork(sandbox.job("echo", number=1))
        others = [json.loads((await zygote.run(sandbox.job("echo", number=n))).result)["number"] for n in (2, 3)]
        try:
            return others, json.loads((await child.run({"number": 1}, 60)).result)["number"]
        finally:
            await child.end()

    assert sandbox.scenario(play) == ([2, 3], 1)


def test_its_time_starts_with_its_request(sandbox):
    async def play(zygote):
        child = await zygote.fork(sandbox.job("echo"))
        await asyncio.sleep(1.5)
        try:
            return await child.run({}, 1)
        finally:
            await child.end()

    assert sandbox.scenario(play).status == "succeeded"


def test_one_that_nobody_needs_is_gone_when_it_is_ended(sandbox, processes):
    async def play(zygote):
        child = await zygote.fork(sandbox.job("echo"))
        pid = child._running.pid
        assert processes.is_alive(pid)
        await child.end()
        await child.end()
        return pid, child.waits

    pid, waits = sandbox.scenario(play)
    processes.wait_until_gone(pid)
    assert not waits


def test_it_ends_with_its_zygote(sandbox, processes):
    async def play(zygote):
        child = await zygote.fork(sandbox.job("echo"))
        pid = child._running.pid
        await zygote.close()
        await child.end()
        return pid

    processes.wait_until_gone(sandbox.scenario(play))


def test_one_that_is_killed_while_it_waits_does_not_wait_any_more(sandbox):
    async def play(zygote):
        child = await zygote.fork(sandbox.job("echo"))
        os.kill(child._running.pid, signal.SIGKILL)
        await asyncio.wait_for(asyncio.shield(child._running.ended), DEADLINE)
        try:
            return await child.run({}, 60)
        finally:
            await child.end()

    outcome = sandbox.scenario(play)
    assert outcome.status == "crashed"
    assert outcome.interrupted


def test_what_keeps_it_from_being_confined_is_told_with_its_request(sandbox):
    job = sandbox.job("echo")
    place = Place(folder=job.folder, entry=job.entry, required=("a moat",))

    async def play(zygote):
        child = await zygote.fork(place)
        try:
            return await child.run({}, 60)
        finally:
            await child.end()

    assert sandbox.scenario(play).error.code == "sandbox_insufficient"


def test_children_that_wait_leak_no_descriptor(sandbox):
    async def play(zygote):
        async def one():
            await (await zygote.fork(sandbox.job("echo"))).end()

        def descriptors():
            return len(os.listdir("/proc/self/fd")), len(os.listdir(f"/proc/{zygote.pid}/fd"))

        await one()
        before = descriptors()
        for _ in range(20):
            await one()
        return before, descriptors()

    before, after = sandbox.scenario(play)
    assert before == after
