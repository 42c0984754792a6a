"""Control groups, on a tree of plain files that looks like the kernel's; no real one is needed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from service.sandbox.cgroup import delegated_group, has_killed, job_group, join

FILES = {
    "cgroup.controllers": "cpu memory pids\n",
    "cgroup.procs": "1\n7\n",
    "cgroup.subtree_control": "",
    "memory.max": "max\n",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "cgroup"
    root.mkdir()
    fill(root)
    return root


def fill(group: Path, **changes: str) -> None:
    for name, text in {**FILES, **changes}.items():
        (group / name).write_text(text)


def found(root: Path, own: str = "0::/\n") -> Path | None:
    (root.parent / "own").write_text(own)
    return delegated_group(root, root.parent / "own")


def test_the_group_that_a_container_sees_is_taken_and_its_processes_make_room(root: Path) -> None:
    assert found(root) == root
    assert (root / "cgroup.subtree_control").read_text() == "+memory"
    assert (root / "wsb-service" / "cgroup.procs").read_text() == "7"  # the last of those written one by one


def test_a_worker_that_was_moved_already_finds_the_same_group(root: Path) -> None:
    (root / "wsb-service").mkdir()
    assert found(root, "0::/wsb-service\n") == root


def test_a_group_that_nobody_has_handed_over_is_left_alone(root: Path) -> None:
    session = root / "session"
    session.mkdir()
    fill(session)
    assert found(root, "0::/session\n") is None
    assert (session / "cgroup.subtree_control").read_text() == ""


def test_a_group_that_systemd_has_handed_over_is_taken(root: Path) -> None:
    unit = root / "wsb.service"
    unit.mkdir()
    fill(unit)
    try:
        os.setxattr(unit, "user.delegate", b"1")
    except OSError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"this file system takes no attributes: {error}")
    assert found(root, "0::/wsb.service\n") == unit


@pytest.mark.parametrize("missing", ["cgroup.controllers", "memory.max", "cgroup.procs"])
def test_without_what_the_kernel_offers_there_is_none(root: Path, missing: str) -> None:
    (root / missing).unlink()
    assert found(root) is None


@pytest.mark.parametrize("own", ["", "4:memory:/x\n", "0::/gone\n"])
def test_another_version_of_control_groups_is_not_used(root: Path, own: str) -> None:
    assert found(root, own) is None


def test_without_the_memory_controller_there_is_none(root: Path) -> None:
    fill(root, **{"cgroup.controllers": "cpu pids\n"})
    assert found(root) is None


def test_a_job_has_a_group_with_its_limit_and_without_swap(root: Path) -> None:
    with job_group(root, 1 << 30) as group:
        assert group is not None
        assert group.parent == root
        assert (group / "memory.max").read_text() == str(1 << 30)
        assert (group / "memory.swap.max").read_text() == "0"
        for path in group.iterdir():
            path.unlink()  # the kernel's files go with their group
    assert not group.exists()


def test_a_job_without_a_limit_has_no_group(root: Path) -> None:
    with job_group(root, None) as group:
        assert group is None


def test_where_no_group_can_be_made_the_job_has_none(root: Path) -> None:
    with job_group(root / "gone", 1 << 30) as group:
        assert group is None


def test_groups_that_a_killed_worker_has_left_are_removed(root: Path) -> None:
    left = root / "wsb-job-left"
    left.mkdir()
    assert found(root) == root
    assert not left.exists()


def test_joining_says_whether_it_worked(root: Path) -> None:
    assert join(root)
    assert (root / "cgroup.procs").read_text() == "0"
    assert not join(root / "gone")


@pytest.mark.parametrize(
    ("events", "killed"), [("low 0\noom 3\noom_kill 1\n", True), ("oom_kill 0\n", False), ("", False)]
)
def test_the_kernels_count_says_whether_memory_ran_out(root: Path, events: str, killed: bool) -> None:
    (root / "memory.events").write_text(events)
    assert has_killed(root) is killed
