"""Drops root and the network: a child of root becomes a private user without rights to anything that is not its own."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from contextlib import suppress

from service.sandbox.kernel import prctl, system_call

_UNSHARE = {"x86_64": 272, "aarch64": 97}
_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000
_CAPGET = {"x86_64": 125, "aarch64": 90}
_CAPSET = {"x86_64": 126, "aarch64": 91}
_VERSION_3 = 0x20080522
_PR_SET_KEEPCAPS, _PR_CAPBSET_DROP = 8, 24
_CAPABILITIES = 64
"""More than there are."""

_DAC_OVERRIDE, _DAC_READ_SEARCH = 1 << 1, 1 << 2
_KILL, _SETGID, _SETUID = 1 << 5, 1 << 6, 1 << 7
_NEEDED_TO_CHANGE = _KILL | _SETGID | _SETUID
"""Capabilities for changing the user, and for killing processes that then belong to another user."""

_FIRST_USER = 0x77000000
"""First of the user ids that belong to nobody: above those of containers, below those with a special meaning."""


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Half(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def leave_network() -> list[str]:
    """Move this process to an empty network, so that /proc/self/net tells nothing of the host's connections.

    Only a privileged process may do so as it is; others may in a namespace of users, where the host allows those. Call
    it before ``become_nobody``, which drops what such a namespace grants.

    Returns:
        ``["network_namespace"]``; empty if the host refuses both ways.
    """
    number = _UNSHARE.get(os.uname().machine)
    for kinds in (_NEW_NETWORK, _NEW_USER | _NEW_NETWORK):
        with suppress(OSError):
            if number is not None:
                system_call(number, kinds)
                return ["network_namespace"]
    return []


def become_nobody(groups: Sequence[int]) -> list[str]:
    """Drop root's identity and all capabilities, except root's capability to read every file.

    The files of a job and the code it runs may be readable by root only; Landlock determines which can be opened.
    Limits on the number of threads need a private user, because root is exempt from them.

    Args:
        groups: Ids of the groups to join.

    Returns:
        The names of the protections that are now active: ``private_user``, ``capabilities``.

    Raises:
        OSError: if the kernel refuses to drop capabilities.
    """
    machine = os.uname().machine
    if machine not in _CAPSET:
        return []
    held = _held(machine)
    _drop_bounds()
    kept = held & _DAC_READ_SEARCH or held & _DAC_OVERRIDE  # containers often have only the second
    can_change = os.geteuid() == 0 and kept and held & _NEEDED_TO_CHANGE == _NEEDED_TO_CHANGE
    names = []
    if can_change and _change_user(groups):
        names.append("private_user")
    halves = (_Half * 2)()
    halves[0].effective = halves[0].permitted = kept
    header = _Header(version=_VERSION_3)
    system_call(_CAPSET[machine], ctypes.addressof(header), ctypes.addressof(halves))
    return [*names, "capabilities"]


def _drop_bounds() -> None:
    """Rule out every capability that this process may still get, as far as it may; in a new namespace that is all."""
    for capability in range(_CAPABILITIES):
        with suppress(OSError):  # not allowed, or no such capability
            prctl(_PR_CAPBSET_DROP, capability)


def _held(machine: str) -> int:
    header, halves = _Header(version=_VERSION_3), (_Half * 2)()
    system_call(_CAPGET[machine], ctypes.addressof(header), ctypes.addressof(halves))
    return int(halves[0].permitted)


def _change_user(groups: Sequence[int]) -> bool:
    """Change to a private user; False if there is no such user, because a container may have only a few."""
    user = _FIRST_USER + os.getpid()
    with suppress(OSError):
        prctl(_PR_SET_KEEPCAPS, 1)
        os.setgroups(groups)
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        return True
    return False
