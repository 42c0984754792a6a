"""What this machine is: driver, GPU, torch, kernel."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator

import torch
from findings import Finding
from machine import Machine

from service.sandbox.landlock import landlock_version
from wsb_engine import devices


def findings(machine: Machine) -> Iterator[Finding]:
    found = devices.count()
    yield Finding("GPUs", str(found), "at least 1", None if machine.dry else found >= 1)
    for index in range(found):
        of = devices.properties(devices.numbered(index))
        yield Finding(
            f"cuda:{index}",
            f"{of.name}, {of.memory / 2**30:.0f} GiB, {of.multiprocessors} multiprocessors, float64 at "
            f"{of.double_rate:.3g} of the rate of float32",
        )
    yield Finding("driver", _driver())
    yield Finding("torch", f"{torch.__version__}, CUDA {torch.version.cuda}, cuDNN {_cudnn()}")
    landlock = landlock_version()
    yield Finding("Landlock", str(landlock), "at least 1", landlock >= 1)
    yield Finding("machine", f"{os.cpu_count()} cores, Linux {os.uname().release}, Python {platform.python_version()}")


def _driver() -> str:
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "none found"


def _cudnn() -> str:
    return str(torch.backends.cudnn.version())
