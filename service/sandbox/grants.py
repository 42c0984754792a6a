"""Which files a child may open: the code it runs, what libraries ask the system for, its job folder, devices."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from glob import glob
from pathlib import Path

from service.sandbox.landlock import READ, USE_DEVICE

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


def grants(folder: Path, code: Iterable[str], *, gpu: bool) -> list[tuple[str, int]]:
    """Paths with the rights to them that a job needs; none may be written to but devices.

    Args:
        folder: Folder of the job.
        code: Paths from ``code_paths``.
        gpu: Whether the job may use the devices of GPUs.
    """
    readable = [str(folder), *code, *_SYSTEM, *(_SYSTEM_WITH_GPU if gpu else ())]
    return [(path, READ) for path in readable] + [(path, USE_DEVICE) for path in ("/dev/null", *gpu_devices(gpu))]


def gpu_devices(gpu: bool) -> list[str]:
    """Device nodes of GPUs on this machine, where the job may use them."""
    return [path for pattern in _GPU_DEVICES for path in glob(f"/dev/{pattern}")] if gpu else []


def code_paths() -> set[str]:
    """Where the code is that this process has imported, and where the libraries are that it may yet import.

    Of a checkout it is the imported packages only: there may be more in it, a data folder say.
    """
    search = [entry for entry in sys.path if os.path.basename(entry) in _LIBRARY_FOLDERS]
    libraries = os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    prefixes = [sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix]
    whole = {path for path in (*search, *libraries, *prefixes) if os.path.isabs(path) and path != "/"}
    beneath = tuple(f"{path}/" for path in whole)
    return whole | {path for path in _imported() if not path.startswith(beneath)}


def _imported() -> set[str]:
    """Packages and modules at the top of what has been imported, wherever they come from."""
    found: set[str] = set()
    for name, module in list(sys.modules.items()):
        if "." in name or module is None:
            continue
        file = getattr(module, "__file__", None)
        found.update(getattr(module, "__path__", None) or ([file] if isinstance(file, str) else []))
    return found
