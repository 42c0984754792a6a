"""Starts flushing a file to disk while it is still being received."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from functools import cache
from typing import Any

_WRITE = 2
"""SYNC_FILE_RANGE_WRITE: start writing, without waiting."""


@cache
def _library() -> Any:
    library = ctypes.CDLL(None, use_errno=True)
    library.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return library


def start_writeback(descriptor: int, start: int, size: int) -> None:
    """Ask the system to start writing these bytes to disk, if it supports that (Linux).

    This guarantees nothing, but a later fsync has less to wait for.
    """
    with suppress(AttributeError, OSError):
        _library().sync_file_range(descriptor, start, size, _WRITE)
