"""What a child has, and what it has not."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from service.sandbox import JobLimits
from service.sandbox.confinement import GPU_VARIABLES, KEPT_VARIABLES, QUIET_VARIABLES, THREAD_VARIABLES
from service.sandbox.unconfined import run_unconfined

DEPENDING_ON_HOST = {
    *("oom_score", "descendant_reaper", "private_user", "rlimit_nproc"),
    *("landlock", "landlock_tcp", "landlock_scope", "seccomp", "network_namespace"),
}


def test_the_environment_holds_nothing_that_the_caller_had(sandbox, monkeypatch):
    monkeypatch.setenv("WSB_DATABASE_URL", "postgresql://wsb:hunter2@db/wsb")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    seen = json.loads(sandbox.run(sandbox.job("environment"), "sandbox_entries").result)

    assert "hunter2" not in json.dumps(seen)


def test_without_a_sandbox_the_environment_holds_no_secret_either(sandbox, monkeypatch):
    monkeypatch.setenv("WSB_DATABASE_URL", "postgresql://wsb:hunter2@db/wsb")
    monkeypatch.setattr("sys.path", [str(Path(__file__).parent), *sys.path])
    job = replace(sandbox.job("environment"), threads=3)
    seen = json.loads(asyncio.run(run_unconfined(job)).result)

    assert "hunter2" not in json.dumps(seen)
    assert (seen["now"]["OMP_NUM_THREADS"], seen["now"]["HOME"]) == ("3", str(job.folder))


def test_the_environment_is_short(sandbox, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    job = replace(sandbox.job("environment"), threads=3)
    now = json.loads(sandbox.run(job, "sandbox_entries").result)["now"]

    assert now.pop("CUDA_VISIBLE_DEVICES") == "1"
    assert now.pop("OMP_NUM_THREADS") == "3"
    assert now.pop("HOME") == now.pop("TMPDIR") == now.pop("TORCHINDUCTOR_CACHE_DIR") == str(job.folder)
    assert set(now) - set(KEPT_VARIABLES) == set(THREAD_VARIABLES) - {"OMP_NUM_THREADS"} | set(QUIET_VARIABLES)


def test_a_child_with_a_gpu_multiplies_matrices_reproducibly(sandbox):
    job = replace(sandbox.job("environment"), gpu=True)

    assert json.loads(sandbox.run(job).result)["now"].items() >= GPU_VARIABLES.items()


def effective_capabilities() -> int:
    """Those of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("CapEff:")).split()[1], 16)


def test_a_child_is_confined_and_says_so(sandbox):
    limits = JobLimits(open_files=100, file_bytes=12345)
    job = replace(sandbox.job("surroundings", limits=limits), threads=2, seconds=30.0)
    seen = json.loads(sandbox.run(job).result)

    protections = set(seen.pop("sandbox"))
    user, groups, tasks = seen.pop("user"), seen.pop("groups"), seen.pop("tasks")
    if "private_user" in protections:
        assert len({*user, *groups}) == 1
        assert user[0] > 1 << 30
    oom_score, capabilities = seen.pop("oom_score"), seen.pop("capabilities")
    if "oom_score" in protections:
        assert oom_score == "1000"
    if "rlimit_nproc" in protections:
        assert tasks[0] == tasks[1] >= limits.threads
    override_modes, read_all_files = 1 << 1, 1 << 2
    assert {int(mask, 16) for mask in capabilities} <= {0, override_modes, read_all_files}
    bounding_set, may_drop_it = seen.pop("bounding_set"), 1 << 8
    if effective_capabilities() & may_drop_it:
        assert bounding_set == 0
    assert protections - DEPENDING_ON_HOST == {
        "setsid",
        "parent_death_signal",
        "no_new_privs",
        "capabilities",
        "rlimit_core",
        "rlimit_nofile",
        "rlimit_fsize",
        "rlimit_cpu",
        "empty_environment",
    }
    cores = len(os.sched_getaffinity(0))
    assert seen == {
        "folder": str(job.folder),
        "temporary_folder": str(job.folder),
        "stdin": "",
        "descriptors": [0, 1, 2, seen["descriptors"][-1]],
        "leads_session": True,
        "no_new_privs": "1",
        "blocked_signals": 0,
        "sigterm_is_default": True,
        "core": [0, 0],
        "open_files": [100, 100],
        "file_bytes": [12345, 12345],
        "cpu_seconds": [30 * cores, 30 * cores + 2],
        "threads": 2,
    }


def test_two_jobs_do_not_see_each_others_state(sandbox):
    async def play(zygote):
        return [(await zygote.run(sandbox.job("remember"))).result for _ in range(2)]

    assert sandbox.scenario(play) == ["1", "1"]


def test_a_job_cannot_be_told_to_use_another_jobs_protections(sandbox):
    outcome = sandbox.run(sandbox.job("surroundings", sandbox=["pretended"], threads=99))

    seen = json.loads(outcome.result)
    assert "pretended" not in seen["sandbox"]
    assert seen["threads"] is None


def test_a_log_file_that_is_a_link_is_refused(sandbox, tmp_path):
    job = sandbox.job("echo")
    (tmp_path / "victim").write_text("precious")
    (job.folder / "child.log").symlink_to(tmp_path / "victim")

    with pytest.raises(OSError, match="symbolic link"):
        sandbox.run(job)
    assert (tmp_path / "victim").read_text() == "precious"
