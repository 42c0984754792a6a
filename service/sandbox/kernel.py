"""System calls that Python has no function for; each raises OSError if the kernel refuses it."""

from __future__ import annotations

import ctypes
import os
from functools import cache


def prctl(option: int, argument: int, pointer: int = 0) -> None:
    """Call prctl(2).

    Raises:
        OSError: if the kernel refuses.
    """
    arguments = (argument, pointer, 0, 0)
    if _libc().prctl(ctypes.c_int(option), *map(ctypes.c_ulong, arguments)) != 0:
        raise _error()


def system_call(number: int, *arguments: int) -> int:
    """Make a system call whose arguments are integers or addresses.

    Raises:
        OSError: if the kernel refuses or doesn't know the call.
    """
    result = int(_libc().syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments)))
    if result < 0:
        raise _error()
    return result


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
