"""Devices of this machine, detected without loading torch into this process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_NVIDIA = Path("/dev/nvidiactl")
_AND = "+"
"""Joins the devices in the name of a worker that owns several."""
_INSTANCE = "MIG-"
"""Begins the name of an instance of a GPU."""
_COUNT = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"


def has_gpu() -> bool:
    """Whether the driver of an NVIDIA GPU is present."""
    return _NVIDIA.exists()


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class UnknownDeviceError(ValueError):
    """A device that this machine does not offer."""


def owned(worker: str) -> tuple[str, ...]:
    """Return the devices of a worker, which are its name."""
    return tuple(worker.split(_AND))


def kind_of(device: str) -> str:
    """Return cpu or cuda."""
    return "cpu" if device == "cpu" else "cuda"


def engine_names(worker: str) -> list[str]:
    """Return what the devices of a worker are called in its processes, which see only some of a machine's."""
    return ["cuda:0" if device.startswith(_INSTANCE) else device for device in owned(worker)]


def see_only(worker: str) -> None:
    """Have CUDA show this process and those that it starts nothing but a worker's instance of a GPU (MIG)."""
    if worker.startswith(_INSTANCE):
        os.environ["CUDA_VISIBLE_DEVICES"] = worker


def several_devices(wanted: str) -> str:
    """Resolve the devices that one worker is to own; return its name.

    Args:
        wanted: ``all`` for every GPU, or names separated by commas; the first one leads.

    Raises:
        UnknownDeviceError: if this machine lacks one of them, or they are not several GPUs that one process can use.
    """
    offered = offered_devices()
    names = offered if wanted == "all" else wanted.split(",")
    for name in names:
        if name not in offered:
            raise UnknownDeviceError(f"This machine has no device {name!r}; it has {', '.join(offered)}.")
    if len(set(names)) != len(names) or any(not name.startswith("cuda:") for name in names):
        raise UnknownDeviceError(f"One worker can own several GPUs, such as cuda:0,cuda:1; not {wanted!r}.")
    return _AND.join(names)


def chosen_devices(wanted: str) -> list[str]:
    """Resolve the device that a command requests.

    Args:
        wanted: cpu, cuda:N, an instance of a GPU (MIG-…), ``all`` for every GPU (or the CPU if there is none), or empty
            for the first of these.

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
    """List cuda:0, cuda:1, … if torch can use them, else cpu.

    A process can use only one instance of a GPU (MIG); those in ``CUDA_VISIBLE_DEVICES`` are listed by their names.
    """
    if not has_gpu():
        return ["cpu"]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if all(name.startswith(_INSTANCE) for name in visible):
        return visible
    # In a separate process: CUDA must not be initialised in one that forks.
    found = subprocess.run([sys.executable, "-c", _COUNT], capture_output=True, text=True, check=True, timeout=300)  # noqa: S603 - our own interpreter and text
    return [f"cuda:{index}" for index in range(int(found.stdout))] or ["cpu"]
