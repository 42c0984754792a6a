"""The filter's program, run by an interpreter of its own, for machines that the tests don't run on too."""

from __future__ import annotations

import errno
import os
import struct

import pytest

from service.sandbox.seccomp import Filter, compiled
from service.sandbox.syscalls import CONDITIONAL, NEWEST, REFUSED

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
READ = {"x86_64": 0, "aarch64": 63}
COLUMN = {"x86_64": 0, "aarch64": 1}

PASSED, REFUSED_CALL, UNKNOWN = 0x7FFF0000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
THREAD, NEW_USER, VM = 0x10000, 0x10000000, 0x100
SHARED, PRIVATE, ANONYMOUS, GROWS_DOWN = 0x01, 0x02, 0x20, 0x100

STRICT = Filter(pid=77, refuse_truncation=True, gpu=False)
LAX = Filter(pid=77, refuse_truncation=False, gpu=True)

machines = pytest.mark.parametrize("machine", ARCHITECTURES)


def verdict(wanted, machine, number, *arguments, architecture=None):
    """What the kernel would make of a call, by the manual page of BPF."""
    padded = [*arguments, 0, 0, 0, 0, 0, 0][:6]
    data = struct.pack("<iIQ6Q", number, architecture or ARCHITECTURES[machine], 0, *padded)
    program, position, register = compiled(machine, wanted), 0, 0
    while True:
        code, if_true, if_false, constant = program[position]
        position += 1
        match code:
            case 0x20:
                (register,) = struct.unpack_from("<I", data, constant)
            case 0x54:
                register &= constant
            case 0x06:
                return constant
            case 0x15 | 0x25 | 0x45:
                holds = {0x15: register == constant, 0x25: register > constant, 0x45: bool(register & constant)}[code]
                position += if_true if holds else if_false
            case _:
                raise AssertionError(f"no such instruction: {code:#x}")


def judged(wanted, machine, name, *arguments):
    return verdict(wanted, machine, CONDITIONAL[name][COLUMN[machine]], *arguments)


@machines
def test_what_the_table_refuses_fails_and_what_it_does_not_know_passes(machine):
    refused = {numbers[COLUMN[machine]] for numbers in REFUSED.values()} - {None}
    judged_too = {numbers[COLUMN[machine]] for numbers in CONDITIONAL.values()}

    for number in set(range(NEWEST + 1)) - judged_too:
        assert verdict(STRICT, machine, number) == (REFUSED_CALL if number in refused else PASSED)


@machines
def test_calls_that_are_newer_than_the_table_do_not_exist(machine):
    assert verdict(STRICT, machine, NEWEST + 1) == UNKNOWN


@machines
def test_calls_by_another_way_into_the_kernel_are_refused(machine):
    i386 = 0x40000003
    assert verdict(STRICT, machine, READ[machine], architecture=i386) == REFUSED_CALL
    assert verdict(STRICT, machine, READ[machine] | 1 << 30) == REFUSED_CALL


@machines
@pytest.mark.parametrize(
    ("flags", "expected"),
    [(VM | THREAD, PASSED), (VM, REFUSED_CALL), (0, REFUSED_CALL), (THREAD | NEW_USER, REFUSED_CALL)],
)
def test_clone_makes_threads_only(machine, flags, expected):
    assert judged(STRICT, machine, "clone", flags) == expected
    assert judged(STRICT, machine, "clone3", flags) == UNKNOWN


@machines
@pytest.mark.parametrize("name", ["kill", "tgkill"])
def test_signals_go_to_the_process_itself_only(machine, name):
    assert judged(STRICT, machine, name, 77) == PASSED
    for other in (76, 0, 2**64 - 1, 2**64 - 77):
        assert judged(STRICT, machine, name, other) == REFUSED_CALL


@machines
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (PRIVATE | ANONYMOUS, PASSED),
        (SHARED, PASSED),
        (SHARED | ANONYMOUS, REFUSED_CALL),
        (PRIVATE | ANONYMOUS | GROWS_DOWN, REFUSED_CALL),
    ],
)
def test_memory_that_limits_do_not_count_is_refused_unless_a_driver_needs_it(machine, flags, expected):
    assert judged(STRICT, machine, "mmap", 0, 4096, 3, flags) == expected
    assert judged(LAX, machine, "mmap", 0, 4096, 3, flags) == (REFUSED_CALL if flags & GROWS_DOWN else PASSED)


@machines
def test_a_driver_may_listen_on_one_kind_of_socket(machine):
    unix, inet, stream, packets, flags = 1, 2, 1, 5, 0o2004000
    for name in ("bind", "listen"):
        assert judged(STRICT, machine, name) == REFUSED_CALL
        assert judged(LAX, machine, name) == PASSED
    assert judged(LAX, machine, "socket", unix, packets) == judged(LAX, machine, "socket", unix, packets | flags)
    assert judged(LAX, machine, "socket", unix, packets) == PASSED
    for family, kind in ((unix, stream), (unix, 2), (inet, packets), (inet, stream), (16, 3)):
        assert judged(LAX, machine, "socket", family, kind | flags) == REFUSED_CALL
    assert judged(STRICT, machine, "socket", unix, packets) == REFUSED_CALL


@machines
@pytest.mark.parametrize("wanted", [STRICT, LAX], ids=["strict", "lax"])
def test_no_file_makes_the_kernel_send_signals(machine, wanted):
    duplicate, get_flags, set_flags, nonblocking, asynchronous = 0, 3, 4, 0o4000, 0o20000
    for command in (8, 10, 15, 1024, 1026):
        assert judged(wanted, machine, "fcntl", 3, command, 1) == REFUSED_CALL
    assert judged(wanted, machine, "fcntl", 3, set_flags, nonblocking | asynchronous) == REFUSED_CALL
    assert judged(wanted, machine, "fcntl", 3, set_flags, nonblocking) == PASSED
    for command in (duplicate, get_flags, 1, 2, 9, 1030):
        assert judged(wanted, machine, "fcntl", 3, command, asynchronous) == PASSED
    for command in (0x5452, 0x8901, 0x8902, 0x5412, 0x40086602):
        assert judged(wanted, machine, "ioctl", 3, command) == REFUSED_CALL
    assert judged(wanted, machine, "ioctl", 3, 0x5401) == PASSED


@machines
def test_truncation_on_opening_is_refused_where_nothing_else_sees_to_it(machine):
    assert judged(STRICT, machine, "openat", 0, 0, os.O_TRUNC) == REFUSED_CALL
    assert judged(STRICT, machine, "openat", 0, 0, os.O_RDONLY) == PASSED
    assert judged(LAX, machine, "openat", 0, 0, os.O_TRUNC) == PASSED


def test_an_unknown_machine_has_no_filter():
    assert compiled("m68k", STRICT) == []
