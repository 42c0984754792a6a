"""The system-call filter: calls that no job needs fail with EPERM, which libraries can handle (seccomp(2))."""

from __future__ import annotations

import ctypes
import errno
import os
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

_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Column of the table and the kernel's name for the architecture, by ``uname -m``."""


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Parameters of the filter besides its table.

    Args:
        pid: This process, the only one that it may send signals to.
        refuse_truncation: Whether opening a file may not truncate it, if nothing else prevents that.
        shared_memory: Whether shared memory may be created, which limits on private memory do not count; a GPU driver
            may need it.
    """

    pid: int
    refuse_truncation: bool
    shared_memory: bool


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
        "kill": _only(0, wanted.pid),
        "tgkill": _only(0, wanted.pid),
        "prlimit64": _only(0, 0, wanted.pid),
        "sched_setaffinity": _only(0, 0, wanted.pid),
        "prctl": [(_LOAD, 0, 0, _argument(0)), (_JUMP_EQUAL, 0, 1, _PR_SET_PDEATHSIG), _REFUSE, _PASS],
    }
    if not wanted.shared_memory:
        rules["memfd_create"] = [_REFUSE]
        rules["mmap"] = [
            *_if_any_bit(3, _MAP_GROWSDOWN),  # counted as a stack, whose limit binds only once it is touched
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


def _only(index: int, *values: int) -> list[Instruction]:
    """Allow a call only if its argument, as 32 bits, is one of the values."""
    tests: list[Instruction] = []
    for value in values:
        tests += [(_JUMP_EQUAL, 0, 1, value), _PASS]
    return [(_LOAD, 0, 0, _argument(index)), *tests, _REFUSE]


def _argument(index: int) -> int:
    return _ARGUMENTS + 8 * index
