"""A TorchScript archive, checked from its bytes before torch sees any of it.

``torch.jit.load`` has no safe mode: it calls ``__setstate__``, evaluates default values, and follows sizes and shapes
that the file states. What passes here is written into a new archive, which is what torch gets; so it can't read the
zip file in another way than the check did, nor find members that were not checked.
"""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Mapping

from wsb_engine.errors import ModelError
from wsb_engine.formats.torchscript import problems
from wsb_engine.formats.torchscript.archive.calls import check_depth
from wsb_engine.formats.torchscript.archive.pickles import check_pickle
from wsb_engine.formats.torchscript.archive.sourcecode import CODE_BYTES, check_source

ENTRIES = 100_000
UNPACKED_BYTES = 2**31 - 1
RATIO = 200
"""Uncompressed to compressed size of a member; source text comes to 20, zeros to 1000."""
SMALL_MEMBER = 1 << 16
"""Below this a member's ratio does not matter."""
PICKLE_BYTES = 1 << 26
NAME_BYTES = 1024

_NAME = re.compile(r"[A-Za-z0-9_.+ -]+(?:/[A-Za-z0-9_.+ -]+)+")
_KEPT = re.compile(r"version|byteorder|\.data/version|(?:data|constants)\.pkl|(?:data|constants)/[^/]+|code/.+\.py")
_RECORD = re.compile(r"(data|constants)/([^/]+)")
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OverflowError, NotImplementedError, RuntimeError)


def checked_archive(data: bytes) -> bytes:
    """Return the archive without anything that a module does not need, once everything in it has been checked.

    Args:
        data: The file's bytes, a zip archive.

    Returns:
        A new archive, uncompressed, with the members that torch needs.

    Raises:
        ModelError: ``model_invalid``, ``model_too_large``, ``model_too_complex``, ``torchscript_code_refused``,
            ``torchscript_mobile_refused``.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            members = _names(entries)
            _check_kind(set(members))
            for entry in entries:
                _check_entry(entry)
            total = sum(entry.file_size for entry in entries)
            if total > UNPACKED_BYTES:
                raise problems.too_large("the unpacked archive", total, UNPACKED_BYTES)
            wanted = {name: entry for name, entry in members.items() if _KEPT.fullmatch(name)}
            _check_sizes(wanted)
            contents = {name: _read(archive, entry) for name, entry in wanted.items()}
    except _DAMAGE as error:
        raise problems.invalid(f"the archive is damaged: {error}") from error
    _check_contents(contents)
    return _packed(contents)


def _names(entries: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    """Members by their names below the archive's one folder."""
    problems.limit("members in its archive", len(entries), ENTRIES)
    found: dict[str, zipfile.ZipInfo] = {}
    folders = set()
    for entry in entries:
        name = entry.orig_filename
        parts = name.split("/")
        odd = len(name) > NAME_BYTES or not _NAME.fullmatch(name) or ".." in parts or "." in parts
        if odd:
            raise problems.invalid(f"the archive has a member with the name {name[:200]!r}")
        folder, _, inner = name.partition("/")
        folders.add(folder)
        if inner in found:
            raise problems.invalid(f"the archive has two members {name!r}")
        found[inner] = entry
    if len(folders) != 1:
        raise problems.invalid(f"the archive has {len(folders)} folders at its top, not one")
    return found


def _check_kind(names: set[str]) -> None:
    has_code = any(name.startswith("code/") for name in names)
    if "bytecode.pkl" in names and not has_code:
        raise ModelError(
            "the file is a TorchScript module for mobile devices: bytecode without code",
            code="torchscript_mobile_refused",
            advice="Save the scripted module with torch.jit.save, or export the model to ONNX.",
        )
    missing = {"data.pkl", "constants.pkl"} - names
    if missing or not has_code:
        raise problems.invalid(f"the archive lacks {', '.join(sorted(missing)) or 'code'}")


def _check_entry(entry: zipfile.ZipInfo) -> None:
    if entry.flag_bits & 0x1:
        raise problems.invalid(f"member {entry.filename!r} is encrypted")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise problems.invalid(f"member {entry.filename!r} is compressed in a way that torch does not use")
    allowed = max(RATIO * entry.compress_size, SMALL_MEMBER)
    if entry.file_size > allowed:
        raise problems.too_large(f"member {entry.filename!r} of the archive, unpacked,", entry.file_size, allowed)


def _check_sizes(wanted: Mapping[str, zipfile.ZipInfo]) -> None:
    code = sum(entry.file_size for name, entry in wanted.items() if name.startswith("code/"))
    if code > CODE_BYTES:
        raise problems.too_large("the module's code", code, CODE_BYTES)
    for name in ("data.pkl", "constants.pkl"):
        if wanted[name].file_size > PICKLE_BYTES:
            raise problems.too_large(name, wanted[name].file_size, PICKLE_BYTES)


def _read(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """Return a member's bytes, never more than its entry states."""
    with archive.open(entry) as file:
        content = file.read(entry.file_size + 1)
    if len(content) != entry.file_size:
        raise problems.invalid(f"member {entry.filename!r} has {len(content)} bytes or more, not {entry.file_size}")
    return content


def _check_contents(contents: Mapping[str, bytes]) -> None:
    records: dict[str, dict[str, int]] = {"data": {}, "constants": {}}
    for name, content in contents.items():
        match = _RECORD.fullmatch(name)
        if match is not None:
            records[match[1]][match[2]] = len(content)
    units = []
    for name, content in contents.items():
        if name.startswith("code/"):
            try:
                source = content.decode()
            except UnicodeDecodeError as error:
                raise problems.invalid(f"{name} is not text") from error
            units += check_source(name, source)
    check_depth(units)
    for name in records:
        check_pickle(f"{name}.pkl", contents[f"{name}.pkl"], records[name])


def _packed(contents: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in contents.items():
            archive.writestr(f"archive/{name}", content)
    return buffer.getvalue()
