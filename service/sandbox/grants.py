"""The files that a child may open: its code, system files that libraries need, its job folder, devices."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from glob import glob
from pathlib import Path

from service.sandbox.landlock import READ, READ_AND_WRITE, USE_DEVICE

_SYSTEM = (
    *("/usr", "/lib", "/lib32", "/lib64", "/nix/store", "/gnu/store"),
    *("/etc/ld.so.cache", "/etc/localtime"),
    *("/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/sys/vm/overcommit_memory"),
    *("/sys/devices/system/cpu", "/sys/devices/system/node", "/dev/random", "/dev/urandom"),
)
_SYSTEM_WITH_GPU = (
    *("/proc/devices", "/proc/driver", "/proc/modules", "/proc/sys/vm", "/proc/version"),
    *("/sys/bus", "/sys/class", "/sys/devices", "/sys/module"),
)
_GPU_DEVICES = ("nvidia*", "nvidia-caps", "kfd", "dri")
_LIBRARY_FOLDERS = ("site-packages", "dist-packages")


def grants(folder: Path, readable: Iterable[str], *, gpu: bool) -> list[tuple[str, int]]:
    """List the paths that a job needs and the rights to each.

    Only devices may be written to, and with a GPU the files of this process's threads in /proc: CUDA names its threads,
    and does not start if it can't.

    Args:
        folder: Folder of the job.
        readable: Paths from ``code_paths``, and further files.
        gpu: Whether the job may use GPU devices.
    """
    paths = [str(folder), *readable, *_SYSTEM, *(_SYSTEM_WITH_GPU if gpu else ())]
    threads = ["/proc/self/task"] if gpu else []
    devices = ["/dev/null", *gpu_devices(gpu)]
    rights = ((paths, READ), (threads, READ_AND_WRITE), (devices, USE_DEVICE))
    return [(path, right) for granted, right in rights for path in granted]


def gpu_devices(gpu: bool) -> list[str]:
    """List the GPU device nodes of this machine; empty if the job may not use them."""
    return [path for pattern in _GPU_DEVICES for path in glob(f"/dev/{pattern}")] if gpu else []


def code_paths() -> set[str]:
    """Return the paths of the code that this process has imported and of libraries that it may import later.

    Of a checkout, only the imported packages are included: it may hold other things too, such as a data folder.
    """
    search = [entry for entry in sys.path if os.path.basename(entry) in _LIBRARY_FOLDERS]
    libraries = os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    prefixes = [sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix]
    whole = {path for path in (*search, *libraries, *prefixes) if os.path.isabs(path) and path != "/"}
    beneath = tuple(f"{path}/" for path in whole)
    return whole | {path for path in _imported() if not path.startswith(beneath)}


def _imported() -> set[str]:
    """Paths of the top-level packages and modules that have been imported."""
    found: set[str] = set()
    for name, module in list(sys.modules.items()):
        if "." in name or module is None:
            continue
        file = getattr(module, "__file__", None)
        found.update(getattr(module, "__path__", None) or ([file] if isinstance(file, str) else []))
    return found
