"""Landlock: restricts this process to the files that it is granted (docs.kernel.org, landlock)."""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from service.sandbox.kernel import system_call

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
"""System-call numbers, the same on every architecture."""

_ASK_VERSION = 1
_PATH_BENEATH = 1

_WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE, _IOCTL_DEV = 1 << 1, 1 << 2, 1 << 3, 1 << 14, 1 << 15
TRUNCATE_VERSION = 3
"""Earlier versions allow truncating files that may not be written."""
_FILE_RIGHTS_BY_VERSION = ((1, (1 << 13) - 1), (2, 1 << 13), (TRUNCATE_VERSION, _TRUNCATE), (5, _IOCTL_DEV))
"""All rights to files, including execution, as bits, by the version that introduced them."""
_ALL_TCP = 0b11
_ALL_SCOPES = 0b11
_TCP_VERSION, _SCOPE_VERSION = 4, 6

READ = _READ_FILE | _READ_DIR
READ_AND_WRITE = READ | _WRITE_FILE | _TRUNCATE
USE_DEVICE = _READ_FILE | _WRITE_FILE | _TRUNCATE | _IOCTL_DEV
"""Includes truncation, which has no effect on a device but which programs often request when they open one."""


class _RulesetAttributes(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("tcp", ctypes.c_uint64), ("scopes", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("rights", ctypes.c_uint64), ("descriptor", ctypes.c_int32))


def landlock_version() -> int:
    """Return the version of Landlock's interface that the kernel offers; 0 for none."""
    try:
        return system_call(_CREATE_RULESET, 0, 0, _ASK_VERSION)
    except OSError:
        return 0


def landlock(grants: Sequence[tuple[str, int]], *, beside: Path) -> list[str]:
    """Give up, irrevocably, access to all files except the granted ones, TCP, and signals to outside processes.

    Only this thread and what it starts are restricted, so it must be the only thread. Below ``TRUNCATE_VERSION`` the
    system-call filter must prevent truncation.

    Args:
        grants: Paths with ``READ``, ``READ_AND_WRITE`` or ``USE_DEVICE`` rights to them and everything below; missing
            paths are skipped.
        beside: A folder whose siblings must stay inaccessible.

    Returns:
        The names of the protections that are now active: ``landlock`` for files, unless a grant covers the siblings of
        ``beside``; ``landlock_tcp``; ``landlock_scope`` for signals and abstract sockets.

    Raises:
        OSError: if a kernel that has Landlock refuses it.
    """
    version = landlock_version()
    if version == 0:
        return []
    names = ["landlock"]
    attributes = _RulesetAttributes(files=sum(bits for since, bits in _FILE_RIGHTS_BY_VERSION if version >= since))
    if version >= _TCP_VERSION:
        attributes.tcp = _ALL_TCP
        names.append("landlock_tcp")
    if version >= _SCOPE_VERSION:
        attributes.scopes = _ALL_SCOPES
        names.append("landlock_scope")
    ruleset = system_call(_CREATE_RULESET, ctypes.addressof(attributes), ctypes.sizeof(attributes), 0)
    try:
        granted = {_grant(ruleset, path, rights & attributes.files) for path, rights in grants}
        system_call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    above = {_identity(os.stat(parent)) for parent in beside.resolve().parents}
    return names[1:] if granted & above else names


def _grant(ruleset: int, path: str, rights: int) -> tuple[int, int] | None:
    """Grant one path and return its identity; None if it does not exist."""
    with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISDIR(found.st_mode):
                rights &= ~_READ_DIR
            rule = _PathBeneath(rights=rights, descriptor=descriptor)
            system_call(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.addressof(rule), 0)
            return _identity(found)
        finally:
            os.close(descriptor)
    return None


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino
