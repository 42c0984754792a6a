"""A PyTorch 2 archive as members by name: checked before anything is unpacked, weights mapped and not copied.

``torch.export.save`` writes a zip archive: the program as JSON, each storage as raw bytes, and pickles that are not
needed. No pickle is opened here. Members that are not compressed, as torch leaves them, are read where they are.
"""

from __future__ import annotations

import hashlib
import io
import mmap
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from wsb_engine.formats.pt2 import problems

MEMBERS = 100_000
RATIO = 200
"""Largest ratio of uncompressed to compressed size of a member; text comes to 20, zeros to 1000."""
SMALL_MEMBER = 1 << 16
"""Size in bytes below which the ratio does not matter."""
UNPACKED_BYTES = 2**31 - 1
"""Largest total size of the compressed members, unpacked."""
NAME_BYTES = 1024

_ALIGNMENT = 8
"""Bytes to which the elements of a tensor have to be aligned; torch aligns members to 64."""
_NAME = re.compile(r"[^\x00-\x1f\\]+")
_LOCAL = struct.Struct("<4s5H3L2H")
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OverflowError, NotImplementedError, struct.error)


@dataclass(frozen=True)
class Archive:
    """The members of an archive by their names below its folder; none has been read."""

    content: memoryview
    """The whole file, writable: a private map of it, or a copy."""
    members: Mapping[str, zipfile.ZipInfo]
    sha256: str

    def read(self, name: str, most: int) -> bytes:
        """Return a member's bytes.

        Raises:
            ModelError: ``model_invalid`` if it is missing or damaged, ``model_too_large``.
        """
        entry = self._entry(name)
        if entry.file_size > most:
            raise problems.too_large(f"member {name!r} of the archive", entry.file_size, most)
        return bytes(self.view(name))

    def view(self, name: str) -> memoryview:
        """Return a member's bytes without a copy if it is not compressed.

        Raises:
            ModelError: ``model_invalid`` if it is missing or damaged.
        """
        entry = self._entry(name)
        start, stored = self._place(entry)
        raw = self.content[start : start + stored]
        if entry.compress_type == zipfile.ZIP_DEFLATED:
            raw = memoryview(_inflated(raw, entry))
        if len(raw) != entry.file_size or zlib.crc32(raw) != entry.CRC:
            raise problems.invalid(f"member {name!r} of the archive is damaged")
        return memoryview(bytearray(raw)) if start % _ALIGNMENT else raw

    def _entry(self, name: str) -> zipfile.ZipInfo:
        if name not in self.members:
            raise problems.invalid(f"the archive lacks {name!r}")
        return self.members[name]

    def _place(self, entry: zipfile.ZipInfo) -> tuple[int, int]:
        """Return where a member's bytes begin, and how many are stored."""
        header = self.content[entry.header_offset : entry.header_offset + _LOCAL.size]
        if len(header) < _LOCAL.size or bytes(header[:4]) != b"PK\x03\x04":
            raise problems.invalid(f"the archive has no member where {entry.filename!r} should be")
        *_, name_bytes, extra_bytes = _LOCAL.unpack(header)
        name_start = entry.header_offset + _LOCAL.size
        start = name_start + name_bytes + extra_bytes
        if bytes(self.content[name_start : name_start + name_bytes]) != entry.orig_filename.encode():
            raise problems.invalid(f"the archive has another member where {entry.filename!r} should be")
        if start + entry.compress_size > len(self.content):
            raise problems.invalid(f"member {entry.filename!r} of the archive goes beyond the file's end")
        return start, entry.compress_size


def open_archive(source: bytes | Path) -> Archive:
    """Map a file, or copy its bytes, and check the names and sizes of its members.

    Args:
        source: Path of the file, or its bytes.

    Raises:
        ModelError: ``model_invalid``, ``model_too_large``, ``model_too_complex``.
        OSError: if the file can't be read.
    """
    if isinstance(source, bytes):
        # One copy, because torch makes no tensor of memory that it must not write to.
        content = memoryview(bytearray(source))
        return Archive(content, _members(io.BytesIO(source), len(source)), hashlib.sha256(source).hexdigest())
    with source.open("rb") as file:
        content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
        members = _members(file, len(content))
    return Archive(content, members, hashlib.sha256(content).hexdigest())


def _members(file: BinaryIO, size: int) -> Mapping[str, zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except _DAMAGE as error:
        raise problems.invalid(f"the archive is damaged: {error}") from error
    problems.limit("members in its archive", len(entries), MEMBERS)
    found: dict[str, zipfile.ZipInfo] = {}
    folders = set()
    for entry in entries:
        _check_entry(entry)
        folder, _, inner = entry.orig_filename.partition("/")
        folders.add(folder)
        if inner in found:
            raise problems.invalid(f"the archive has two members {entry.filename[:200]!r}")
        found[inner] = entry
    if len(folders) != 1:
        raise problems.invalid(f"the archive has {len(folders)} folders at its top, not one")
    stored = sum(entry.compress_size for entry in entries)
    if stored > size:
        raise problems.invalid("the members of the archive overlap")
    unpacked = sum(entry.file_size for entry in entries if entry.compress_type != zipfile.ZIP_STORED)
    if unpacked > UNPACKED_BYTES:
        raise problems.too_large("the unpacked archive", unpacked, UNPACKED_BYTES)
    return found


def _check_entry(entry: zipfile.ZipInfo) -> None:
    name = entry.orig_filename
    parts = name.split("/")
    odd = len(name) > NAME_BYTES or not _NAME.fullmatch(name) or ".." in parts or "." in parts or not parts[0]
    if odd or len(parts) < 2:
        raise problems.invalid(f"the archive has a member with the name {name[:200]!r}")
    if entry.flag_bits & 0x1:
        raise problems.invalid(f"member {name!r} is encrypted")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise problems.invalid(f"member {name!r} is compressed in a way that the reader does not know")
    if entry.compress_type == zipfile.ZIP_STORED and entry.file_size != entry.compress_size:
        raise problems.invalid(f"member {name!r} states two sizes")
    allowed = max(RATIO * entry.compress_size, SMALL_MEMBER)
    if entry.file_size > allowed:
        raise problems.too_large(f"member {name!r} of the archive, unpacked,", entry.file_size, allowed)


def _inflated(raw: memoryview, entry: zipfile.ZipInfo) -> bytearray:
    """Return a member unpacked, one byte more than it states at most."""
    try:
        return bytearray(zlib.decompressobj(-zlib.MAX_WBITS).decompress(raw, entry.file_size + 1))
    except zlib.error as error:
        raise problems.invalid(f"member {entry.filename!r} of the archive is damaged: {error}") from error
