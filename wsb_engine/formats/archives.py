"""Names in a zip archive, read with bounded work: enough to tell formats apart, no member is opened."""

from __future__ import annotations

import os
import struct
from typing import BinaryIO

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_MAX_COMMENT = 0xFFFF


class NotAnArchiveError(Exception):
    """The file has no readable central directory."""


def member_names(file: BinaryIO, *, limit: int = 100_000) -> list[str]:
    """Read the names of at most ``limit`` members, in the order of the central directory.

    Raises:
        NotAnArchiveError: if the directory is missing, cut off or larger than the limit.
    """
    size = file.seek(0, os.SEEK_END)
    count, start, length = _directory(file, size)
    if count > limit or start + length > size:
        raise NotAnArchiveError("central directory out of bounds")
    file.seek(start)
    return [_next_name(file) for _ in range(count)]


def _directory(file: BinaryIO, size: int) -> tuple[int, int, int]:
    tail_start = max(0, size - _END.size - _MAX_COMMENT)
    file.seek(tail_start)
    tail = file.read()
    position = tail.rfind(b"PK\x05\x06")
    if position < 0 or len(tail) - position < _END.size:
        raise NotAnArchiveError("no end of central directory")
    _, _, _, _, count, length, start, _ = _END.unpack_from(tail, position)
    locator = position - _LOCATOR64.size
    if locator >= 0 and tail[locator : locator + 4] == b"PK\x06\x07":
        _, _, end64, _ = _LOCATOR64.unpack_from(tail, locator)
        if end64 + _END64.size > size:
            raise NotAnArchiveError("zip64 record out of bounds")
        file.seek(end64)
        record = _END64.unpack(file.read(_END64.size))
        if record[0] != b"PK\x06\x06":
            raise NotAnArchiveError("no zip64 record")
        count, length, start = record[7], record[8], record[9]
    return count, start, length


def _next_name(file: BinaryIO) -> str:
    header = file.read(_ENTRY.size)
    if len(header) < _ENTRY.size or header[:4] != b"PK\x01\x02":
        raise NotAnArchiveError("central directory cut off")
    fields = _ENTRY.unpack(header)
    name_length, extra_length, comment_length = fields[10], fields[11], fields[12]
    name = file.read(name_length)
    file.seek(extra_length + comment_length, os.SEEK_CUR)
    return name.decode("utf-8", errors="replace")
