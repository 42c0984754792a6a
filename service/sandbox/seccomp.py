"""The system-call filter: calls that no job needs fail with EPERM, which libraries can handle (seccomp(2))."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from service.sandbox.kernel import prctl
from service.sandbox.syscalls import CONDITIONAL, NEWEST, REFUSED

_PR_SET_SECCOMP = 22
_MODE_FILTER = 2
_PR_SET_PDEATHSIG = 1

# Classic BPF: code, jump if true, jump if false, constant. Jumps count the instructions to skip.
Instruction = tuple[int, int, int, int]
_LOAD, _AND, _JUMP_EQUAL, _JUMP_GREATER, _JUMP_ANY_BIT, _RETURN = 0x20, 0x54, 0x15, 0x25, 0x45, 0x06
_PASS: Instruction = (_RETURN, 0, 0, 0x7FFF0000)
_REFUSE: Instruction = (_RETURN, 0, 0, 0x00050000 | errno.EPERM)
_DENY_EXISTENCE: Instruction = (_RETURN, 0, 0, 0x00050000 | errno.ENOSYS)

_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
"""Offsets into the filter's view of a call; each argument has 8 bytes, lower half first."""

_X32 = 1 << 30
"""Bit in the number of a call by the x32 ABI of x86-64, which nothing here uses."""

_CLONE_THREAD = 0x00010000
_CLONE_NAMESPACES = 0x7E020000
_MAP_SHARED, _MAP_ANONYMOUS, _MAP_GROWSDOWN = 0x01, 0x20, 0x100

_SIGNAL_COMMANDS = (8, 10, 15, 1024, 1026)
"""Commands of fcntl(2) after which the kernel signals whom the caller names: F_SETOWN, F_SETSIG, F_SETOWN_EX,
F_SETLEASE, F_NOTIFY. Kernels before 6.12 check only on delivery, and with the rights of whoever changed the file."""
_SET_FLAGS = 4
_ASYNC = 0x2000
_IOCTLS = (0x5452, 0x8901, 0x8902, 0x5412, 0x40086602, 0x40046602, 0x401C5820)
"""Commands of ioctl(2): the same signals (FIOASYNC, FIOSETOWN, SIOCSPGRP), input to a terminal (TIOCSTI), and
attributes of files, which Landlock does not cover (FS_IOC_SETFLAGS, FS_IOC32_SETFLAGS, FS_IOC_FSSETXATTR)."""
_SOCKET_TYPE = 0xF
"""Bits of socket(2)'s type that are not flags."""

_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Column of the table and the kernel's name for the architecture, by ``uname -m``."""


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Parameters of the filter besides its table.

    Args:
        pid: This process, the only one that it may send signals to.
        refuse_truncation: Whether opening a file may not truncate it, if nothing else prevents that.
        gpu: Whether to allow what a GPU driver needs: shared memory, which limits on private memory do not count, and
            a socket to listen on that nothing in this process may accept from.
    """

    pid: int
    refuse_truncation: bool
    gpu: bool


def seccomp(wanted: Filter) -> list[str]:
    """Install the filter irrevocably for this thread and what it starts; ``no_new_privs`` must be set.

    Returns:
        ``["seccomp"]``; empty if the kernel has no such filter or the table has no numbers for this architecture.
    """
    program = compiled(os.uname().machine, wanted)
    if not program:
        return []
    instructions = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(instructions, len(instructions))
    header = struct.pack("@HP", len(program), ctypes.addressof(buffer))
    head = ctypes.create_string_buffer(header, len(header))
    with suppress(OSError):  # a kernel built without filters
        prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.addressof(head))
        return ["seccomp"]
    return []


def compiled(machine: str, wanted: Filter) -> list[Instruction]:
    """Compile the filter to a list of instructions; empty for an unknown machine."""
    if machine not in _MACHINES:
        return []
    column, architecture = _MACHINES[machine]
    program: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, architecture),
        _REFUSE,
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_ANY_BIT, 0, 1, _X32),
        _REFUSE,
        (_JUMP_GREATER, 0, 1, NEWEST),
        _DENY_EXISTENCE,
    ]
    blocks = {**{name: [_REFUSE] for name in REFUSED}, **_conditional_rules(wanted)}
    for name, block in blocks.items():
        number = (REFUSED.get(name) or CONDITIONAL[name])[column]
        if number is not None:
            program += [(_JUMP_EQUAL, 0, len(block), number), *block]
    return [*program, _PASS]


def _conditional_rules(wanted: Filter) -> dict[str, Sequence[Instruction]]:
    """Instructions for calls that depend on their arguments, by name; each block ends with a return."""
    rules: dict[str, Sequence[Instruction]] = {
        "clone": [*_if_any_bit(0, _CLONE_NAMESPACES), (_JUMP_ANY_BIT, 1, 0, _CLONE_THREAD), _REFUSE, _PASS],
        # its arguments are in memory, which the filter can't read; libraries fall back on clone
        "clone3": [_DENY_EXISTENCE],
        "fcntl": [
            *_if_one_of(1, _SIGNAL_COMMANDS),
            (_JUMP_EQUAL, 0, 3, _SET_FLAGS),
            *_if_any_bit(2, _ASYNC),
            _PASS,
        ],
        "ioctl": [*_if_one_of(1, _IOCTLS), _PASS],
        "kill": _only(0, wanted.pid),
        "tgkill": _only(0, wanted.pid),
        "prlimit64": _only(0, 0, wanted.pid),
        "sched_setaffinity": _only(0, 0, wanted.pid),
        "prctl": [*_if_one_of(0, (_PR_SET_PDEATHSIG,)), _PASS],
        # counted as a stack, whose limit binds only once it is touched
        "mmap": [*_if_any_bit(3, _MAP_GROWSDOWN), _PASS],
    }
    if wanted.gpu:
        # cuInit binds and listens on an abstract socket of this kind, and fails if it can't
        rules["socket"] = [
            (_LOAD, 0, 0, _argument(0)),
            (_JUMP_EQUAL, 1, 0, socket.AF_UNIX),
            _REFUSE,
            (_LOAD, 0, 0, _argument(1)),
            (_AND, 0, 0, _SOCKET_TYPE),
            (_JUMP_EQUAL, 1, 0, socket.SOCK_SEQPACKET),
            _REFUSE,
            _PASS,
        ]
    else:
        rules |= {name: [_REFUSE] for name in ("bind", "listen", "memfd_create", "socket")}
        rules["mmap"] = [
            *_if_any_bit(3, _MAP_GROWSDOWN),
            (_AND, 0, 0, _MAP_SHARED | _MAP_ANONYMOUS),
            (_JUMP_EQUAL, 0, 1, _MAP_SHARED | _MAP_ANONYMOUS),
            _REFUSE,
            _PASS,
        ]
    if wanted.refuse_truncation:
        rules["open"] = [*_if_any_bit(1, os.O_TRUNC), _PASS]
        rules["openat"] = [*_if_any_bit(2, os.O_TRUNC), _PASS]
        rules["openat2"] = [_DENY_EXISTENCE]
    return rules


def _if_any_bit(index: int, bits: int) -> list[Instruction]:
    """Refuse a call whose argument has any of the bits; otherwise leave the argument loaded."""
    return [(_LOAD, 0, 0, _argument(index)), (_JUMP_ANY_BIT, 0, 1, bits), _REFUSE]


def _if_one_of(index: int, values: Sequence[int]) -> list[Instruction]:
    """Refuse a call whose argument, as 32 bits, is one of the values; otherwise leave the argument loaded."""
    tests = [instruction for value in values for instruction in ((_JUMP_EQUAL, 0, 1, value), _REFUSE)]
    return [(_LOAD, 0, 0, _argument(index)), *tests]


def _only(index: int, *values: int) -> list[Instruction]:
    """Allow a call only if its argument, as 32 bits, is one of the values."""
    tests: list[Instruction] = []
    for value in values:
        tests += [(_JUMP_EQUAL, 0, 1, value), _PASS]
    return [(_LOAD, 0, 0, _argument(index)), *tests, _REFUSE]


def _argument(index: int) -> int:
    return _ARGUMENTS + 8 * index
