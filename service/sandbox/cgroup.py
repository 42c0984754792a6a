"""A control group for each job, which limits all of its memory, if this process may create such groups.

This requires cgroup v2 and a delegated subtree: all that a container sees, or a group that systemd marks as delegated
(``Delegate=yes``).
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
"""Attempts, because processes may be forked while others are being moved."""


def delegated_group(root: Path = _ROOT, own: Path = _OWN) -> Path | None:
    """Return the group below which jobs can have their own; None if there is none.

    Only a group without processes can delegate the memory controller, so its processes are moved to a child group. A
    service that has its own group calls this before it starts processes for jobs.
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
    # The root group of the machine itself has no memory limit.
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
    """Yield a group for one job below ``parent``, without swap; None if there is no parent or it can't be created."""
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
    """Move this process into the group; return whether the kernel allows it."""
    with suppress(OSError):
        (group / "cgroup.procs").write_text("0")
        return True
    return False


def has_killed(group: Path) -> bool:
    """Whether the kernel has killed a process of the group because its memory was exhausted."""
    try:
        events = dict(line.split() for line in (group / "memory.events").read_text().splitlines())
        return int(events["oom_kill"]) > 0
    except (OSError, ValueError, KeyError):
        return False


def _remove(group: Path) -> None:
    with suppress(OSError):  # a group that still has a process is left for the next start
        group.rmdir()
