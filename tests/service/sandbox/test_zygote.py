"""The zygote's own life: how it starts, serves several jobs, dies and is replaced."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import pytest
from support.service import DEADLINE

from service.sandbox import SandboxError, Zygote, process

HERE = Path(__file__).parent


def test_jobs_run_side_by_side(sandbox):
    jobs = [sandbox.job("wait_for_company") for _ in range(2)]
    there = []

    def note(fields):
        there.append(fields)
        if len(there) == len(jobs):
            for job in jobs:
                (job.folder / "company").touch()

    async def play(zygote):
        return await asyncio.gather(*(zygote.run(job, note) for job in jobs))

    assert [outcome.result for outcome in sandbox.scenario(play)] == ["in company"] * 2


@pytest.mark.slow
def test_many_jobs_at_once_all_end_with_their_own_result(sandbox):
    async def play(zygote):
        return await asyncio.gather(*(zygote.run(sandbox.job("echo", number=number)) for number in range(60)))

    outcomes = sandbox.scenario(play)

    assert [json.loads(outcome.result)["number"] for outcome in outcomes] == list(range(60))


@pytest.mark.slow
def test_a_hundred_jobs_leak_no_descriptor(sandbox):
    async def play(zygote):
        async def round_of_jobs():
            await zygote.run(sandbox.job("echo"))
            await zygote.run(sandbox.job("write_bytes", hex="ffffffff"))

        def descriptors():
            return len(os.listdir("/proc/self/fd")), len(os.listdir(f"/proc/{zygote.pid}/fd"))

        await round_of_jobs()
        before = descriptors()
        for _ in range(50):
            await round_of_jobs()
        return before, descriptors()

    before, after = sandbox.scenario(play)

    assert after == before


def test_the_death_of_the_zygote_is_a_crash_and_the_next_job_gets_another(sandbox, processes):
    async def play(zygote):
        first = zygote.pid

        def kill(fields):
            sandbox.progress.append(fields)
            os.kill(first, signal.SIGKILL)

        crashed = await zygote.run(sandbox.job("hang_with_descendants"), kill)
        os.kill(sandbox.progress[0]["fled"], signal.SIGKILL)
        processes.wait_until_gone(sandbox.progress[0]["pid"], sandbox.progress[0]["in_group"])
        assert zygote.pid is None
        return crashed, await zygote.run(sandbox.job("echo"))

    crashed, succeeded = sandbox.scenario(play, *sandbox.unsealed)

    assert (crashed.status, crashed.error.code) == ("crashed", "worker_zygote_died")
    assert succeeded.status == "succeeded"


def test_a_zygote_that_died_between_jobs_is_replaced_unnoticed(sandbox, processes):
    async def play(zygote):
        first = zygote.pid
        os.kill(first, signal.SIGKILL)
        processes.wait_until_gone(first)
        return await zygote.run(sandbox.job("echo"))

    assert sandbox.scenario(play).status == "succeeded"


def test_terminating_the_zygote_ends_its_jobs_and_all_that_they_forked(sandbox, processes):
    async def play(zygote):
        def terminate(fields):
            sandbox.progress.append(fields)
            os.kill(zygote.pid, signal.SIGTERM)

        outcome = await zygote.run(sandbox.job("hang_with_descendants"), terminate)
        processes.wait_until_gone(*sandbox.progress[0].values())
        return outcome

    assert sandbox.scenario(play, *sandbox.unsealed).status == "crashed"


@contextmanager
def parent_process(*arguments):
    """Runs a parent with a hanging job; gives the process and its descendants' ids."""
    command = [sys.executable, HERE / "parent_process.py", *arguments]
    environment = {"PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        try:
            yield parent, json.loads(parent.stdout.readline())
        finally:
            parent.kill()


def test_the_death_of_the_parent_ends_the_zygote_the_child_and_what_it_forked(tmp_path, processes):
    with parent_process(tmp_path, "hang_with_descendants") as (parent, pids):
        assert all(processes.is_alive(pid) for pid in pids.values())
        parent.kill()

        processes.wait_until_gone(*pids.values())
    assert set(pids) == {"zygote", "pid", "in_group", "fled"}


def test_the_zygote_ends_with_its_parent_even_if_another_process_keeps_the_socket_open(tmp_path, processes):
    with parent_process(tmp_path, "hang", "hold") as (parent, pids):
        parent.kill()

        processes.wait_until_gone(pids["zygote"], pids["pid"])
        assert processes.is_alive(pids["holder"])
        os.kill(pids["holder"], signal.SIGKILL)


def test_a_child_ends_with_its_zygote_even_if_the_parent_is_busy(tmp_path, processes):
    with parent_process(tmp_path, "hang") as (parent, pids):
        parent.send_signal(signal.SIGSTOP)
        os.kill(pids["zygote"], signal.SIGKILL)

        processes.wait_until_gone(pids["pid"])


def test_a_child_that_nobody_stops_comes_to_the_end_of_its_cpu_time(tmp_path, processes):
    with parent_process(tmp_path, "spin", "brief") as (parent, pids):
        parent.send_signal(signal.SIGSTOP)

        processes.wait_until_gone(pids["pid"])


@pytest.mark.parametrize(("returns", "status"), [(True, "succeeded"), (False, "timed_out")])
def test_a_process_group_ends_with_its_job_where_the_kernel_does_not_list_children(
    sandbox, processes, tmp_path, returns, status
):
    source = """
        from pathlib import Path
        exists = Path.exists
        Path.exists = lambda path: path.name != "children" and exists(path)
    """
    (tmp_path / "old_kernel.py").write_text(dedent(source))
    job = sandbox.job("hang_with_descendants", **{"return": returns})
    job = replace(job, seconds=60.0 if returns else 0.5)

    outcome = sandbox.scenario(lambda zygote: zygote.run(job, sandbox.progress.append), "old_kernel", *sandbox.unsealed)

    pids = sandbox.progress[0]
    os.kill(pids["fled"], signal.SIGKILL)
    assert outcome.status == status
    processes.wait_until_gone(pids["pid"], pids["in_group"])


def test_a_process_that_fled_cannot_hold_a_job_up_after_the_death_of_the_zygote(sandbox):
    async def play(zygote):
        first = zygote.pid

        def kill_once_it_floods(fields):
            if "flooder" in fields:
                sandbox.progress.append(fields)
            elif zygote.pid == first:
                os.kill(first, signal.SIGKILL)

        try:
            return await zygote.run(sandbox.job("flood_from_another_session"), kill_once_it_floods)
        finally:
            os.kill(sandbox.progress[0]["flooder"], signal.SIGKILL)

    outcome = sandbox.scenario(play, *sandbox.unsealed)

    assert outcome.error.code == "worker_zygote_died"
    assert outcome.seconds < process.KILL_SECONDS


def test_closing_ends_the_zygote_and_its_jobs(sandbox, processes):
    async def main():
        zygote = sandbox.zygote()
        told = asyncio.Event()

        def note(fields):
            sandbox.progress.append(fields)
            told.set()

        running = asyncio.create_task(zygote.run(sandbox.job("hang"), note))
        await asyncio.wait_for(told.wait(), DEADLINE)
        pid = zygote.pid
        await zygote.close()
        processes.wait_until_gone(pid, sandbox.progress[0]["pid"])
        return await running

    assert asyncio.run(main()).status == "crashed"


def test_a_closed_zygote_takes_no_jobs(sandbox):
    async def main():
        zygote = sandbox.zygote()
        await zygote.close()
        await zygote.run(sandbox.job("echo"))

    with pytest.raises(RuntimeError, match="closed"):
        asyncio.run(main())


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("import no_such_module", "zygote_preload_failed"),
        (
            "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()",
            "zygote_not_single_threaded",
        ),
        ("import os\nos._exit(3)", "zygote_start_failed"),
        ("import time\ntime.sleep(60)", "zygote_start_timed_out"),
    ],
    ids=["missing import", "thread", "exit", "slow import"],
)
def test_a_preload_that_goes_wrong_is_refused_with_its_reason(tmp_path, source, code):
    (tmp_path / "preloaded.py").write_text(source)
    seconds = 0.5 if code == "zygote_start_timed_out" else 60.0

    with pytest.raises(SandboxError) as caught:
        asyncio.run(Zygote(["preloaded"], python_path=[tmp_path], start_seconds=seconds).start())

    assert caught.value.code == code


def test_a_failed_fork_is_an_error_of_the_sandbox_and_not_of_the_job(sandbox, tmp_path):
    source = "import os\ndef fork():\n    raise BlockingIOError(11, 'no more processes')\nos.fork = fork"
    (tmp_path / "no_fork.py").write_text(source)

    with pytest.raises(SandboxError, match="no more processes") as caught:
        sandbox.scenario(lambda zygote: zygote.run(sandbox.job("echo")), "no_fork")

    assert caught.value.code == "fork_failed"


@pytest.mark.slow
def test_the_numerical_libraries_start_no_thread_on_import(sandbox):
    libraries = ["torch", "numpy", "onnx", "onnxruntime", "sandbox_entries"]

    outcome = sandbox.scenario(lambda zygote: zygote.run(sandbox.job("echo")), *libraries)

    assert outcome.status == "succeeded"
