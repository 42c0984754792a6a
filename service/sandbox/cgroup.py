"""A control group for each job, which limits all of its memory, where this process may make such groups.

It takes version 2 of control groups, and a subtree that was handed over: the whole of what a container sees, or a
group that systemd marks as delegated (``Delegate=yes``).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")
_SERVICE, _JOB = "wsb-service", "wsb-job-"
_MARKS = ("user.delegate", "trusted.delegate")
_MOVES = 10
"""Processes may be forked while others are being moved."""


def delegated_group(root: Path = _ROOT, own: Path = _OWN) -> Path | None:
    """The group beneath which jobs can get their own; None where there is none.

    Only a group without processes can pass the control of memory on, so those in it are moved to one beneath it. To be
    called by a service, whose group is its own, before it starts processes for jobs.
    """
    try:
        (relative,) = (line[3:] for line in own.read_text().splitlines() if line.startswith("0::"))
        group = root / relative.lstrip("/")
        if group.name == _SERVICE:  # moved by a worker that started earlier
            group = group.parent
        if not _is_delegated(group, root):
            return None
        service = group / _SERVICE
        service.mkdir(exist_ok=True)
        for _ in range(_MOVES):
            for process in (group / "cgroup.procs").read_text().split():
                with suppress(ProcessLookupError):
                    (service / "cgroup.procs").write_text(process)
        (group / "cgroup.subtree_control").write_text("+memory")
        for left in group.glob(f"{_JOB}*"):
            _remove(left)
    except (OSError, ValueError):
        return None
    return group


def _is_delegated(group: Path, root: Path) -> bool:
    # The root of the machine itself has no limit on memory.
    if "memory" not in (group / "cgroup.controllers").read_text().split() or not (group / "memory.max").exists():
        return False
    files = ("", "cgroup.procs", "cgroup.subtree_control")
    return (group == root or _is_marked(group)) and all(os.access(group / name, os.W_OK) for name in files)


def _is_marked(group: Path) -> bool:
    for name in _MARKS:
        with suppress(OSError):
            if os.getxattr(group, name) == b"1":
                return True
    return False


@contextmanager
def job_group(parent: Path | None, memory_bytes: int | None) -> Iterator[Path | None]:
    """A group for one job beneath ``parent``, without swap; None, where there is no parent or it is refused."""
    group = None if parent is None or memory_bytes is None else _make(parent, memory_bytes)
    try:
        yield group
    finally:
        if group is not None:
            _remove(group)


def _make(parent: Path, memory_bytes: int) -> Path | None:
    try:
        group = Path(tempfile.mkdtemp(prefix=_JOB, dir=parent))
    except OSError:
        return None
    try:
        (group / "memory.max").write_text(str(memory_bytes))
        with suppress(FileNotFoundError):  # a kernel without swap
            (group / "memory.swap.max").write_text("0")
    except OSError:
        _remove(group)
        return None
    return group


def join(group: Path) -> bool:
    """Moves this process into the group; whether the kernel lets it."""
    try:
        (group / "cgroup.procs").write_text("0")
    except OSError:
        return False
    return True


def has_killed(group: Path) -> bool:
    """Whether the kernel has ended a process of the group because its memory was used up."""
    try:
        events = dict(line.split() for line in (group / "memory.events").read_text().splitlines())
        return int(events["oom_kill"]) > 0
    except (OSError, ValueError, KeyError):
        return False


def _remove(group: Path) -> None:
    with suppress(OSError):  # one that still has a process is left to the next start
        group.rmdir()
