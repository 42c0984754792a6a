"""A child of root stops being root: it becomes a user of its own, without rights to anything that is not its own."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from contextlib import suppress

from service.sandbox.kernel import prctl, system_call

_CAPGET = {"x86_64": 125, "aarch64": 90}
_CAPSET = {"x86_64": 126, "aarch64": 91}
_VERSION_3 = 0x20080522
_PR_SET_KEEPCAPS = 8

_DAC_OVERRIDE, _DAC_READ_SEARCH = 1 << 1, 1 << 2
_KILL, _SETGID, _SETUID = 1 << 5, 1 << 6, 1 << 7
_NEEDED_TO_CHANGE = _KILL | _SETGID | _SETUID
"""To change the user, and to kill what is another user's then."""

_FIRST_USER = 0x77000000
"""User ids from here on belong to nobody: above those of containers, below those of special meaning."""


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Half(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def become_nobody(groups: Sequence[int]) -> list[str]:
    """Gives up root's identity, and everyone's capabilities; of root's, the one to read every file is kept.

    Files of a job, and the code it runs, may be readable by root alone; it is for Landlock to say which of them are
    opened. A user of its own is what makes limits on the number of its threads count, since root is exempt from them.

    Args:
        groups: Ids of the groups to be in.

    Returns:
        The names of the protections that are active now: ``private_user``, ``capabilities``.

    Raises:
        OSError: if the kernel refuses that capabilities are given up.
    """
    machine = os.uname().machine
    if machine not in _CAPSET:
        return []
    held = _held(machine)
    kept = held & _DAC_READ_SEARCH or held & _DAC_OVERRIDE  # containers tend to have the second only
    can_change = os.geteuid() == 0 and kept and held & _NEEDED_TO_CHANGE == _NEEDED_TO_CHANGE
    names = []
    if can_change and _change_user(groups):
        names.append("private_user")
    halves = (_Half * 2)()
    halves[0].effective = halves[0].permitted = kept
    header = _Header(version=_VERSION_3)
    system_call(_CAPSET[machine], ctypes.addressof(header), ctypes.addressof(halves))
    return [*names, "capabilities"]


def _held(machine: str) -> int:
    header, halves = _Header(version=_VERSION_3), (_Half * 2)()
    system_call(_CAPGET[machine], ctypes.addressof(header), ctypes.addressof(halves))
    return int(halves[0].permitted)


def _change_user(groups: Sequence[int]) -> bool:
    """Whether there is such a user here: a container may have few of them."""
    user = _FIRST_USER + os.getpid()
    with suppress(OSError):
        prctl(_PR_SET_KEEPCAPS, 1)
        os.setgroups(groups)
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        return True
    return False
