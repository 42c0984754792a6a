"""Which devices this machine offers, found out without loading torch into this process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_NVIDIA = Path("/dev/nvidiactl")
_COUNT = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"


def has_gpu() -> bool:
    """Whether there is a GPU's driver, at least."""
    return _NVIDIA.exists()


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class UnknownDeviceError(ValueError):
    """A device that this machine does not offer."""


def chosen_devices(wanted: str) -> list[str]:
    """Devices of this machine by what a command was given.

    Args:
        wanted: cpu, cuda:N, ``all`` for every GPU (or else the CPU), or nothing for the first of these.

    Raises:
        UnknownDeviceError: for another device than those that are here.
    """
    if wanted == "cpu":
        return [wanted]
    offered = offered_devices()
    if wanted == "all":
        return offered
    if wanted and wanted not in offered:
        raise UnknownDeviceError(f"There is no device {wanted!r} here; there are {', '.join(offered)}.")
    return [wanted or offered[0]]


def offered_devices() -> list[str]:
    """cuda:0, cuda:1, … where torch can use them, else cpu."""
    if not has_gpu():
        return ["cpu"]
    # In a process of its own: CUDA must not be initialised in one that forks.
    found = subprocess.run([sys.executable, "-c", _COUNT], capture_output=True, text=True, check=True, timeout=300)  # noqa: S603 - our own interpreter and text
    return [f"cuda:{index}" for index in range(int(found.stdout))] or ["cpu"]
