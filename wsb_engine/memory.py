"""How much memory there is to work in, and which errors mean that it ran out.

What counts is what this process may have in total, not what is free at the moment: the same machine then leads to the
same sizes of chunks, and so to the same report.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

from wsb_engine import devices
from wsb_engine.errors import EngineError

_TEXTS = (
    "allocate memory",  # torch on a CPU, in a plain RuntimeError, and ONNX Runtime
    "not enough memory",
)

SHARE = 0.5
"""Share of the memory in total to work in, if the options state no limit; the rest is for files and libraries."""
_GROUPS, _OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def working_memory(total: int) -> int:
    """Return the bytes to work in out of a total that this process may have."""
    return int(SHARE * total)


def total_memory(device: torch.device) -> int:
    """Return the bytes that this process may have in total on a device.

    On a CPU the least of the machine's memory, the limits of this process, and those of its control groups.
    """
    if devices.is_gpu(device):
        return devices.properties(device).memory
    return min([_physical(), *_process_limits(), *control_group_limits()])


def control_group_limits(root: Path = _GROUPS, own: Path = _OWN_GROUPS) -> Iterator[int]:
    """Yield the memory limits of this process's control groups, versions 1 and 2, on the way up to the root.

    Args:
        root: Where control groups are mounted.
        own: File that names the groups of this process.
    """
    lines = []
    with suppress(OSError):
        lines = own.read_text().splitlines()
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        folder, name = (root / "memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
        # Inside a container the path may be that of the host, which is not there; its own group is then the root.
        parts = [part for part in place.split("/") if part not in ("", "..")]
        for depth in range(len(parts), -1, -1):
            with suppress(OSError, ValueError):  # no such group, or no limit ("max")
                yield int(folder.joinpath(*parts[:depth], name).read_text())


def _physical() -> int:
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return sys.maxsize  # on Windows


def _process_limits() -> Iterator[int]:
    with suppress(ModuleNotFoundError):  # on Windows
        import resource

        for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
            limit, _ = resource.getrlimit(kind)
            if limit != resource.RLIM_INFINITY:
                yield limit


def ran_out(error: BaseException | None) -> bool:
    """Return True if an error, from whichever library, means that memory ran out."""
    if error is None or isinstance(error, EngineError):
        return False
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, Exception) and (devices.ran_out(error) or any(part in text for part in _TEXTS))
