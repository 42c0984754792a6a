"""External data: tensors of an ONNX model whose elements are in other files, checked and memory-mapped.

A tensor names its file by a path relative to one folder. Only plain relative paths within that folder lead to regular
files; no part of them may be a link, so that nothing outside of the folder can be read. Ranges are checked against the
sizes of files and tensors before any file is mapped, and two tensors may share a range but not parts of one.
"""

from __future__ import annotations

import errno
import mmap
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from itertools import groupby, pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import onnx

from wsb_engine.errors import ModelError, first_line
from wsb_engine.formats.commands import EXPORT_ONNX
from wsb_engine.formats.digest import File
from wsb_engine.formats.graph import problems
from wsb_engine.formats.graph.limits import LIMITS
from wsb_engine.formats.graph.tensors import dtype_of, element_count

_NUMBER = re.compile(r"[0-9]{1,19}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_PLAIN = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_./-]{0,199}")
_SHOWN = 200
"""Characters of a name in a message."""
_TYPED_FIELDS = ("float_data", "double_data", "int32_data", "int64_data", "uint64_data", "string_data")
_NAMED = 10
"""Missing files that a message names; its details have up to ``_LISTED``."""
_LISTED = 100
_AGAIN = f"Export the model again into one file: {EXPORT_ONNX}."
_COPY = "Copy the file into the folder of the model (cp -L follows links)."


@dataclass(frozen=True)
class _Range:
    """Where a tensor's elements are."""

    tensor: str
    element_type: int
    file: str
    offset: int
    length: int

    @property
    def stop(self) -> int:
        return self.offset + self.length


class DataFiles:
    """The data files that a model refers to.

    Args:
        tensors: The tensors of the model with external data.
        folder: Where the files are; None if the model came without a folder.
        own: Status of the model's own file, to which no tensor may refer.
        most: Largest number of bytes of all files together.

    Raises:
        ModelError: ``external_data_refused``, ``external_data_missing``, ``model_too_large``, ``model_too_complex``,
            ``model_invalid``, ``tensor_too_large`` or ``unsupported_dtype``.
    """

    def __init__(
        self, tensors: Sequence[onnx.TensorProto], folder: Path | None, own: os.stat_result | None, most: int
    ) -> None:
        problems.limit("tensors with external data", len(tensors), LIMITS.initialisers)
        self._ranges = [_range(tensor) for tensor in tensors]
        self._folder = folder
        self.sizes = self._find(sorted({each.file for each in self._ranges}), own)
        """Bytes of each file, by the names that the model uses, sorted."""
        _check_total(sum(self.sizes.values()), most, "the data files have")
        _check_total(sum(each.length for each in self._ranges), most, "the tensors in data files take")
        _check_ranges(self._ranges, self.sizes)
        self._maps: dict[str, mmap.mmap] = {}

    def map(self) -> Mapping[str, File]:
        """Map the files into memory, privately, and return what identifies their contents, by name.

        Raises:
            ModelError: ``external_data_refused`` if a file has changed since it was checked.
        """
        digests = {}
        for name, size in self.sizes.items():
            with self._opened(name) as file:
                if os.fstat(file).st_size != size:
                    raise _refused(name, "changed", "changed while it was read", "Load the model again.")
                # Private pages that may be written, since a tensor on read-only ones crashes where it is written.
                content = mmap.mmap(file, size, access=mmap.ACCESS_COPY) if size else b""
            digests[name] = File(size, sha256(content).hexdigest())
            if isinstance(content, mmap.mmap):
                self._maps[name] = content
        return digests

    def elements(self, tensor: onnx.TensorProto) -> tuple[mmap.mmap | bytes, int, int]:
        """Return the file with a tensor's elements, which ``map`` has mapped, and where in it they begin and end."""
        found = _range(tensor)
        return self._maps.get(found.file, b""), found.offset, found.stop

    def _find(self, names: Sequence[str], own: os.stat_result | None) -> dict[str, int]:
        problems.limit("data files", len(names), LIMITS.data_files)
        sizes, missing = {}, []
        for name in names:
            try:
                with self._opened(name) as file:
                    status = os.fstat(file)
            except FileNotFoundError:
                missing.append(name)
                continue
            if own is not None and os.path.samestat(status, own):
                raise _refused(name, "own_file", "is the file of the model itself", _AGAIN)
            sizes[name] = status.st_size
        if missing:
            raise _missing(missing)
        return sizes

    @contextmanager
    def _opened(self, name: str) -> Iterator[int]:
        """Open a regular file of the folder, whatever anyone puts in its place meanwhile.

        Raises:
            FileNotFoundError: if it is not there.
            ModelError: ``external_data_refused``.
        """
        if self._folder is None:
            raise FileNotFoundError(name)
        opened: list[int] = []
        *folders, last = PurePosixPath(name).parts
        try:
            # Not to be listed: a sandbox may grant the files without their folder.
            flags = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC
            opened.append(os.open(self._folder, flags))
            for part in folders:
                _require(part, opened[-1], name, stat.S_ISDIR, "a folder")
                opened.append(os.open(part, flags | os.O_NOFOLLOW, dir_fd=opened[-1]))
            # Before it is opened, since opening a device or a pipe may have effects or wait.
            _require(last, opened[-1], name, stat.S_ISREG, "a regular file")
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            opened.append(os.open(last, flags, dir_fd=opened[-1]))
            if not stat.S_ISREG(os.fstat(opened[-1]).st_mode):
                raise _refused(name, "changed", "changed while it was read", "Load the model again.")
            yield opened[-1]
        except FileNotFoundError:
            raise
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno == errno.ENOMEM:
                raise MemoryError(f"no memory to map {name!r}") from error
            raise _refused(name, "unreadable", f"can't be read: {first_line(error)}", _COPY) from error
        finally:
            for each in opened:
                with suppress(OSError):
                    os.close(each)


def file_names(tensors: Iterable[onnx.TensorProto]) -> tuple[str, ...]:
    """Return the names of the files that tensors with external data refer to, without looking for the files."""
    return tuple(dict.fromkeys(_range(tensor).file for tensor in tensors))


def _range(tensor: onnx.TensorProto) -> _Range:
    where = f"tensor {_clipped(tensor.name)!r}"
    entries: dict[str, str] = {}
    for entry in tensor.external_data:
        key, value = entry.key, entry.value
        if not isinstance(key, str) or not isinstance(value, str):
            raise problems.invalid(f"{where} holds a name that is not UTF-8")
        if key in entries:
            raise _refused(where, "duplicate", f"has {_clipped(key)!r} twice", _AGAIN)
        entries[key] = value
    if tensor.HasField("raw_data") or any(getattr(tensor, field) for field in _TYPED_FIELDS):
        raise _refused(where, "twofold", "keeps data both in the model and in another file", _AGAIN)
    file = _location(where, entries.get("location", ""))
    offset = _number(where, "offset", entries.get("offset", "0"))
    dtype = dtype_of(tensor.data_type, where)
    expected = element_count(tuple(tensor.dims), where) * dtype.itemsize
    length = _number(where, "length", entries["length"]) if "length" in entries else expected
    if length != expected:
        why = f"declares shape {list(tensor.dims)}, which takes {expected} bytes, but its data has {length}"
        raise _refused(where, "length", why, _AGAIN, expected=expected, found=length)
    return _Range(_clipped(tensor.name), tensor.data_type, file, offset, length)


def _location(where: str, location: str) -> str:
    """Return a file's name with its folders, without anything that leads out of the model's folder."""
    path = PurePosixPath(location)
    name = str(path)
    for found, reason, why in (
        (not location, "no_location", "names no file for its data"),
        (len(name.encode()) > LIMITS.name_bytes, "name", "names its data file by more bytes than a path may have"),
        (bool(_CONTROL.search(location)), "name", "names its data file with a control character"),
        ("\\" in location or re.match("[A-Za-z]:", location), "separator", "has a path of Windows to its data file"),
        (path.is_absolute(), "absolute", "has an absolute path to its data file"),
        (".." in path.parts, "parent", "names a data file outside of the model's folder"),
        (not path.parts, "no_location", "names a folder, not a file, for its data"),
    ):
        if found:
            raise _refused(where, reason, f"{why}: {_clipped(location)!r}", _AGAIN, location=_clipped(location))
    return name


def _number(where: str, key: str, value: str) -> int:
    if not _NUMBER.fullmatch(value):
        raise _refused(where, key, f"has {_clipped(value)!r} as the {key} of its data, not a number of bytes", _AGAIN)
    return int(value)


def _require(part: str, folder: int, name: str, kind: Any, what: str) -> None:
    mode = os.stat(part, dir_fd=folder, follow_symlinks=False).st_mode
    if stat.S_ISLNK(mode):
        raise _refused(name, "link", "is a link, or within a folder that is one; links are not followed", _COPY)
    if not kind(mode):
        raise _refused(name, "kind", f"is not {what}", _COPY)


def _check_total(found: int, most: int, what: str) -> None:
    if found > most:
        raise ModelError(
            f"{what} {found} bytes, more than the limit of {most}",
            code="model_too_large",
            advice="Analyse a smaller model, or raise the limit (max_bytes in Python, else WSB_MAX_MODEL_TOTAL_BYTES).",
            size=found,
            limit=most,
        )


def _check_ranges(ranges: Iterable[_Range], sizes: Mapping[str, int]) -> None:
    """Each range lies within its file, and two of them are the same or apart."""
    ordered = sorted(ranges, key=lambda each: (each.file, each.offset, each.stop))
    for each in ordered:
        if each.stop > sizes[each.file]:
            raise _refused(
                f"tensor {each.tensor!r}",
                "beyond_end",
                f"takes bytes {each.offset} to {each.stop} of {each.file!r}, which has {sizes[each.file]}",
                "Copy or send the whole data file again, or export the model again.",
                expected=each.stop,
                found=sizes[each.file],
            )
    for _, group in groupby((each for each in ordered if each.length), key=lambda each: each.file):
        for first, second in pairwise(group):
            same = (first.offset, first.length, first.element_type) == (
                second.offset,
                second.length,
                second.element_type,
            )
            if second.offset < first.stop and not same:
                why = f"shares some bytes of {second.file!r} with tensor {first.tensor!r}, but not all of them"
                raise _refused(f"tensor {second.tensor!r}", "overlap", why, _AGAIN)


def _refused(subject: str, reason: str, why: str, advice: str, **details: Any) -> ModelError:
    about = subject if subject.startswith("tensor ") else f"the data file {_clipped(subject)!r}"
    return ModelError(f"{about} {why}", code="external_data_refused", advice=advice, reason=reason, **details)


def _missing(names: Sequence[str]) -> ModelError:
    shown = ", ".join(_clipped(name) for name in names[:_NAMED])
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ModelError(
        f"the model keeps data in further files, and these are missing: {shown}{more}",
        code="external_data_missing",
        advice="Put them where the model is, under these names, and give the model's path; over HTTP send each as a "
        f"further part: -F {_part(names[0])}. Or export the model into one file: {EXPORT_ONNX}.",
        missing=[_clipped(name) for name in names[:_LISTED]],
        count=len(names),
    )


def _part(name: str) -> str:
    """Return curl's form of a part, without a name that a shell or curl would take for more than that."""
    if not _PLAIN.fullmatch(name):
        return "'model_data=@FILE;filename=NAME'"
    return f"'model_data=@{name};filename={name}'" if "/" in name else f"model_data=@{name}"


def _clipped(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
