"""Ways out of the sandbox, tried from inside a child on this machine; after each the zygote serves the next job."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from support.forms import full

from service.sandbox import Job, JobLimits, Zygote

MIB, GIB = 1 << 20, 1 << 30
MEMORY = JobLimits(memory_bytes=256 * MIB, file_bytes=MIB)


@pytest.fixture(params=[False, True], ids=["without a GPU", "with a GPU"])
def gpu(request):
    """Whether the child has what a GPU's driver needs; there need not be one."""
    return request.param


@pytest.fixture
def escape(sandbox, gpu):
    """Tries one way out and gives the outcome; what it needs to be stopped has to be there."""
    return _escape(sandbox, gpu=gpu)


@pytest.fixture
def escape_without_gpu(sandbox):
    return _escape(sandbox, gpu=False)


def _escape(sandbox, *, gpu):
    def attempt(entry, *needs, limits=MEMORY, seconds=60.0, **request):
        job = sandbox.job("echo", limits=limits, **request)
        return play(sandbox, replace(job, entry=f"escape_entries:{entry}", seconds=seconds, gpu=gpu), needs)

    return attempt


def play(sandbox, job: Job, needs):
    async def main(zygote):
        probe = replace(sandbox.job("echo", limits=job.limits), entry="escape_entries:protections", gpu=job.gpu)
        active = (await zygote.run(probe)).result.split()
        if missing := set(needs) - set(active):
            lack(f"this host has no {', '.join(sorted(missing))}")
        request = {"pids": [os.getpid(), zygote.pid], **job.request}
        outcome = await zygote.run(replace(job, request=request), sandbox.progress.append)
        assert (await zygote.run(sandbox.job("echo"))).status == "succeeded"
        return outcome

    return sandbox.standing_scenario(main)


def lack(reason):
    """A machine that runs the tests for others must have all that they try."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture
def secret(tmp_path):
    """Another tenant's file, in the folder that job folders are in."""
    folder = tmp_path / "other-job"
    folder.mkdir()
    (folder / "model").write_text("precious")
    return folder / "model"


@pytest.mark.parametrize("path", ["/etc/shadow", "/etc/passwd", "/proc/1/status", "/dev/full"])
def test_files_of_the_system_cannot_be_read(escape, path):
    assert escape("read", "landlock", path=path).result == "EACCES"


def test_another_jobs_file_cannot_be_read(escape, secret):
    assert escape("read", "landlock", path=str(secret)).result == "EACCES"


def test_another_jobs_file_cannot_be_reached_by_a_link(sandbox, secret):
    job = replace(sandbox.job("echo", path="link"), entry="escape_entries:read")
    (job.folder / "link").symlink_to(secret)

    assert play(sandbox, job, ["landlock"]).result == "EACCES"


@pytest.mark.parametrize("path", [Path.home(), "/tmp", "/", "/proc", "/dev"], ids=str)  # noqa: S108
def test_folders_outside_cannot_be_listed(escape, path):
    assert escape("list_folder", "landlock", path=str(path)).result == "EACCES"


def test_a_file_outside_cannot_be_changed_in_any_way(escape, secret):
    before = secret.stat()

    assert escape("change_files", "landlock", "seccomp", path=str(secret)).result == "nothing"
    assert secret.read_text() == "precious"
    assert [path.name for path in secret.parent.iterdir()] == ["model"]
    after = secret.stat()
    assert (after.st_mode, after.st_uid, after.st_mtime) == (before.st_mode, before.st_uid, before.st_mtime)


def test_the_jobs_own_files_can_be_read_and_not_changed(sandbox):
    job = replace(sandbox.job("echo", path="model"), entry="escape_entries:read")
    (job.folder / "model").write_text("own")

    assert play(sandbox, job, ["landlock"]).result == "succeeded"
    changes = replace(job, entry="escape_entries:change_files")
    assert play(sandbox, changes, ["landlock", "seccomp"]).result == "nothing"


def test_a_file_that_is_granted_can_be_read_where_it_is_and_neither_changed_nor_what_is_beside_it(sandbox, secret):
    (secret.parent / "beside").write_text("precious")

    def result(entry, path, *needs):
        job = replace(sandbox.job("echo", path=str(path)), entry=f"escape_entries:{entry}", readable=(secret,))
        return play(sandbox, job, ["landlock", *needs]).result

    assert result("read", secret) == "succeeded"
    assert result("change_files", secret, "seccomp") == "nothing"
    assert secret.read_text() == "precious"
    assert result("read", secret.parent / "beside") == "EACCES"
    assert result("list_folder", secret.parent) == "EACCES"


@pytest.mark.parametrize("family", ["TCP", "Unix", "Unix without a path"])
def test_a_database_cannot_be_reached(escape, tmp_path, family):
    address = {
        "TCP": ("127.0.0.1", 0),
        "Unix": f"{tmp_path}/.s.PGSQL.5432",
        "Unix without a path": f"\0wsb-{os.getpid()}",
    }
    with socket.socket(socket.AF_INET if family == "TCP" else socket.AF_UNIX) as database:
        database.bind(address[family])
        database.listen()
        database.settimeout(0)
        port = database.getsockname()[1] if family == "TCP" else 0
        path = "" if family == "TCP" else address[family]

        assert escape("connect", "seccomp", port=port, path=path).result == "EPERM"
        with pytest.raises(BlockingIOError):
            database.accept()


def test_no_socket_of_any_family_can_be_made(escape):
    assert escape("make_sockets", "seccomp").result == "EPERM"


def test_a_fork_bomb_does_not_get_as_far_as_its_first_fork(escape):
    assert escape("fork_until_refused", "seccomp").result == "0 EPERM"


def test_threads_come_to_an_end(escape):
    limits = replace(MEMORY, threads=50)
    started = int(escape("start_threads_until_refused", "rlimit_nproc", limits=limits, most=5000).result)

    assert 0 < started < 1000


def test_no_program_can_be_started(escape):
    assert escape("run_program", "seccomp").result == "EPERM EPERM EPERM"


def test_the_processes_of_the_service_cannot_be_looked_into(escape):
    assert escape("reach_into", "landlock", "seccomp").result == "nothing"


def test_the_processes_of_the_service_cannot_be_signalled(escape):
    assert escape("signal_others", "seccomp").result == "EPERM"


def test_no_file_makes_the_kernel_send_a_signal(escape):
    assert escape("signal_by_files", "seccomp").result == "EPERM"


def test_flags_of_files_can_be_set_as_long_as_no_signal_follows(escape):
    assert escape("set_flags_of_files").result == "succeeded"


def test_the_networks_of_the_host_cannot_be_seen(escape):
    assert escape("list_networks", "network_namespace").result == "lo"


def test_the_processes_of_the_service_cannot_be_slowed_down(escape):
    assert escape("slow_others_down", "seccomp").result == "EPERM"


@pytest.mark.parametrize("how", ["at once", full("bit by bit")])
def test_a_hundred_gigabytes_are_out_of_memory(escape, gpu, how):
    outcome = escape("take_memory", "rlimit_data", how=how, bytes=100 * GIB)

    assert (outcome.status, outcome.error.code) == ("out_of_memory", "out_of_memory")
    assert outcome.peak_memory_bytes < (3 * GIB if gpu else GIB)


@pytest.mark.parametrize("how", ["as a stack", "by growing the stack"])
def test_a_stack_that_no_limit_counts_cannot_be_had(escape, how):
    assert escape("take_memory", "seccomp", how=how, bytes=GIB).result == "EPERM"


@pytest.mark.parametrize("how", ["shared", "as a file"])
def test_memory_that_no_limit_counts_cannot_be_had(escape_without_gpu, how):
    assert escape_without_gpu("take_memory", "seccomp", how=how, bytes=GIB).result == "EPERM"


def test_addresses_without_end_cannot_be_had(escape_without_gpu):
    outcome = escape_without_gpu("take_memory", "rlimit_as", how="as addresses", bytes=100 * GIB)

    assert outcome.result == "ENOMEM"


def test_large_arrays_grow_and_shrink_without_the_call_that_is_refused(escape):
    assert escape("resize_memory", "seccomp", limits=replace(MEMORY, memory_bytes=GIB)).result == "succeeded"


def test_memory_within_the_limit_can_be_had(escape):
    assert escape("take_memory", "rlimit_data", how="at once", bytes=200 * MIB).status == "succeeded"


def test_limits_cannot_be_raised(escape):
    assert escape("raise_limits").result == "not allowed to raise maximum limit"


def test_nobody_can_become_root(escape):
    assert escape("become_root").result == "EPERM"


def test_an_endless_loop_is_stopped_by_the_clock(sandbox):
    outcome = play(sandbox, replace(sandbox.job("spin"), seconds=0.3), [])

    assert (outcome.status, outcome.error.code) == ("timed_out", "time_limit_exceeded")


def test_the_disk_cannot_be_filled(escape):
    assert escape("fill_the_disk", "landlock", "seccomp").result == "EACCES EFBIG EFBIG EPERM"


def test_every_system_call_in_the_table_is_refused(escape):
    assert escape("call_what_is_refused", "seccomp").result == ""


def test_no_namespace_can_be_made(escape):
    assert escape("make_namespaces", "seccomp").result == "EPERM"


def test_the_death_of_the_parent_cannot_be_ignored(escape):
    assert escape("outlive_the_parent", "seccomp").result == "EPERM"


@pytest.mark.slow
def test_numerical_libraries_work_on_several_threads(sandbox):
    job = replace(sandbox.job("echo"), entry="escape_entries:compute_on_threads", threads=2)

    outcome = sandbox.scenario(lambda zygote: zygote.run(job), "numpy", "torch", "escape_entries")

    assert outcome.result == "4.0 2.0", outcome.log


def test_a_job_does_not_run_with_less_than_it_requires(sandbox):
    job = replace(sandbox.job("echo"), required=("landlock", "armour"))

    outcome = sandbox.run(job)

    assert (outcome.status, outcome.error.code) == ("failed", "sandbox_insufficient")
    assert "armour" in outcome.error.details["missing"]


def test_files_are_not_called_protected_where_job_folders_lie_among_readable_ones(sandbox, tmp_path):
    job = sandbox.job("echo")
    (tmp_path / "site-packages").mkdir()
    among = tmp_path / "site-packages" / "job"
    among.mkdir()

    async def main():
        async with Zygote(["sandbox_entries"], python_path=[Path(__file__).parent, among.parent]) as zygote:
            return await zygote.run(replace(job, folder=among, required=("landlock",)))

    assert asyncio.run(main()).error.code == "sandbox_insufficient"


def test_what_cuda_does_at_its_start_works_and_nothing_more(sandbox):
    outcome = _escape(sandbox, gpu=True)("start_like_cuda", "landlock", "seccomp")

    assert outcome.result.split() == [*["succeeded"] * 4, *["EPERM"] * 7, *["EACCES"] * 3], outcome.log
    assert _escape(sandbox, gpu=False)("start_like_cuda", "landlock", "seccomp").result.split()[:3] == [
        *("EACCES", "EACCES", "EPERM")
    ]


def test_a_signal_to_itself_arrives(sandbox):
    outcome = sandbox.run(sandbox.job("kill_itself", signal=int(signal.SIGUSR1)))

    assert outcome.exit_signal == signal.SIGUSR1
