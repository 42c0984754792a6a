"""Devices of this machine, detected without loading torch into this process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_NVIDIA = Path("/dev/nvidiactl")
_COUNT = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"


def has_gpu() -> bool:
    """Whether the driver of an NVIDIA GPU is present."""
    return _NVIDIA.exists()


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class UnknownDeviceError(ValueError):
    """A device that this machine does not offer."""


def chosen_devices(wanted: str) -> list[str]:
    """Resolve the device that a command requests.

    Args:
        wanted: cpu, cuda:N, ``all`` for every GPU (or the CPU if there is none), or empty for the first of these.

    Raises:
        UnknownDeviceError: if this machine has no such device.
    """
    if wanted == "cpu":
        return [wanted]
    offered = offered_devices()
    if wanted == "all":
        return offered
    if wanted and wanted not in offered:
        raise UnknownDeviceError(f"This machine has no device {wanted!r}; it has {', '.join(offered)}.")
    return [wanted or offered[0]]


def offered_devices() -> list[str]:
    """List cuda:0, cuda:1, … if torch can use them, else cpu."""
    if not has_gpu():
        return ["cpu"]
    # In a separate process: CUDA must not be initialised in one that forks.
    found = subprocess.run([sys.executable, "-c", _COUNT], capture_output=True, text=True, check=True, timeout=300)  # noqa: S603 - our own interpreter and text
    return [f"cuda:{index}" for index in range(int(found.stdout))] or ["cpu"]
