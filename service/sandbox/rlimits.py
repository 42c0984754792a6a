"""Resource limits of a process (setrlimit(2)), and the memory that is available."""

from __future__ import annotations

import math
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

from service.sandbox.job import JobLimits

with suppress(ModuleNotFoundError):  # on Windows
    import resource

_CPU_GRACE_SECONDS = 2
"""Time between the signal for the CPU limit and the one that can't be ignored."""

_ADDRESSES_PER_BYTE = 16
"""Libraries reserve far more addresses than they use; an unused one costs 1/512 byte of page tables."""

_STACK_BYTES = 64 << 20
"""Largest stack of the main thread; a stack does not count as private memory."""

_GPU_BYTES = 2 << 30
"""Private memory that a process with CUDA maps before it computes anything; with less it ends at the start."""

_MEMORY_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Memory limits of a container, as it sees its own control group."""


def limit_resources(limits: JobLimits, *, gpu: bool) -> list[str]:
    """Lower all limits, except that on CPU time, irrevocably; a lower hard limit of the host stays in force.

    Args:
        limits: Limits of the job.
        gpu: Whether the job may use GPU devices. Their driver reserves addresses for all of their memory, so the
            address space is then not limited.

    Returns:
        The names of the limits that are now active.

    Raises:
        OSError: if the kernel refuses.
    """
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_NOFILE, limits.open_files)
    _lower(resource.RLIMIT_FSIZE, limits.file_bytes)
    soft, _ = resource.getrlimit(resource.RLIMIT_STACK)
    _lower(resource.RLIMIT_STACK, _STACK_BYTES if soft == resource.RLIM_INFINITY else min(_STACK_BYTES, soft))
    active = ["rlimit_core", "rlimit_nofile", "rlimit_fsize"]
    if os.getuid() != 0:  # which is exempt
        _lower(resource.RLIMIT_NPROC, _threads() + limits.threads)
        active.append("rlimit_nproc")
    if limits.memory_bytes is not None:
        addresses, data = _used()
        _lower(resource.RLIMIT_DATA, data + max(limits.memory_bytes, _GPU_BYTES if gpu else 0))
        active.append("rlimit_data")
        if not gpu:
            _lower(resource.RLIMIT_AS, addresses + _ADDRESSES_PER_BYTE * limits.memory_bytes)
            active.append("rlimit_as")
    return active


def limit_cpu_time(seconds: float) -> None:
    """Lower the limit on CPU time irrevocably, in case the parent is not there to stop the job.

    Args:
        seconds: Wall-clock limit of the job; it may use this much CPU time on each core.

    Raises:
        OSError: if the kernel refuses.
    """
    used, allowed = int(time.process_time()), math.ceil(seconds * len(os.sched_getaffinity(0)))
    _lower(resource.RLIMIT_CPU, used + allowed, grace=_CPU_GRACE_SECONDS)


def usable_memory_bytes() -> int:
    """Return the memory of this machine, or of the container that this process is in."""
    amounts = [_physical_bytes()]
    for path in _MEMORY_LIMITS:
        with suppress(OSError, ValueError):  # another version of control groups, or no limit ("max")
            amounts.append(int(Path(path).read_text()))
    return min(amounts)


def _physical_bytes() -> int:
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return sys.maxsize  # on Windows, where nothing confines an analysis to it


def _lower(kind: int, ceiling: int, *, grace: int = 0) -> None:
    _, hard = resource.getrlimit(kind)
    unlimited = hard == resource.RLIM_INFINITY
    highest = ceiling + grace if unlimited else min(ceiling + grace, hard)
    resource.setrlimit(kind, (min(ceiling, highest), highest))


def _threads() -> int:
    """Threads on this machine: an upper bound on those of this user, which the kernel counts."""
    return int(Path("/proc/loadavg").read_text().split()[3].partition("/")[2])


def _used() -> tuple[int, int]:
    """Bytes of address space and of private memory that this process already uses."""
    pages = Path("/proc/self/statm").read_text().split()
    return int(pages[0]) * resource.getpagesize(), int(pages[5]) * resource.getpagesize()
