"""Settings of the C library's memory allocator."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 32 << 20


def keep_freed_memory() -> None:
    """Have the C library keep some megabytes of freed memory for reuse, if it supports that (glibc).

    By default it returns a large block at once, and the system must find and clear pages for the next one. For an
    upload, whose chunks are large, that takes as long as receiving them.
    """
    with suppress(AttributeError, OSError):
        library = ctypes.CDLL(None)
        for parameter in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
            library.mallopt(parameter, _KEPT_BYTES)
