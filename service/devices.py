"""Which devices this machine offers, found out without loading torch into this process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_NVIDIA = Path("/dev/nvidiactl")
_COUNT = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"


def has_gpu() -> bool:
    """Whether there is a GPU's driver, at least."""
    return _NVIDIA.exists()


def offered_devices() -> list[str]:
    """cuda:0, cuda:1, … where torch can use them, else cpu."""
    if not has_gpu():
        return ["cpu"]
    # In a process of its own: CUDA must not be initialised in one that forks.
    found = subprocess.run([sys.executable, "-c", _COUNT], capture_output=True, text=True, check=True, timeout=300)  # noqa: S603 - our own interpreter and text
    return [f"cuda:{index}" for index in range(int(found.stdout))] or ["cpu"]
