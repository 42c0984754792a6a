"""The arrays of a batch file: .npz, never with pickles, or .safetensors.

Large input arrays that are stored as they are in memory are mapped, not read: their rows are copied where they are
used, so that a batch may be larger than memory. Everything else is read.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import mmap
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsb_engine.errors import BatchError, first_line
from wsb_engine.sources.npy import read_header
from wsb_engine.sources.samples import MAX_BYTES

MAX_ARRAYS = 256
MAX_MAPPED_BYTES = 1 << 40
"""Limit on the bytes of all arrays of a batch, those that are mapped included."""
MAPPED_FROM = 256 << 20
"""Bytes from which an array is mapped; smaller ones are read, so that they may be written to."""
_BLOCK = 4 << 20
"""Bytes that are read at once."""
_LOCAL_HEADER = 30
"""Bytes of the header of a zip archive's member, before its name and further fields."""
_STORED = "Send fewer samples, or save them with numpy.savez: large arrays without compression stay in the file."
_File = io.BufferedReader | io.BytesIO
_READ_WHOLE = ("y", "weights")
"""Arrays that are used as a whole."""


def read_batch_file(
    source: bytes | Path, kind: Literal["npz", "safetensors"], max_bytes: int = MAX_MAPPED_BYTES
) -> tuple[dict[str, NDArray[Any] | Tensor], str]:
    """Return all arrays of a batch file by name, and the file's SHA-256 in hexadecimal digits.

    A mapped array is read-only memory although its flags deny that, at any address, and the file must not change while
    it is in use.

    Raises:
        BatchError: ``batch_invalid``, ``batch_too_large``, ``object_array``.
        OSError: if the file can't be read.
    """
    read = _read_npz if kind == "npz" else _read_safetensors
    with _opened(source) as file:
        size = file.seek(0, os.SEEK_END)
        _require_size(size, max_bytes, "Send fewer samples.")
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return read(file, None if isinstance(file, io.BytesIO) else _Pages(file, size), max_bytes), digest


class _Pages:
    """Arrays in read-only pages of a file, which is mapped when the first one is requested."""

    def __init__(self, file: io.BufferedReader, size: int) -> None:
        self.path = file.name
        self._file, self._size = file, size
        self._content: NDArray[np.uint8] | None = None

    def array(self, start: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return the array whose elements begin at that byte of the file."""
        if self._content is None:
            content = mmap.mmap(self._file.fileno(), self._size, access=mmap.ACCESS_READ)
            self._content = np.frombuffer(content, np.uint8)
        stop = start + math.prod(shape) * dtype.itemsize
        if stop > self._size:
            raise EOFError(f"it ends at byte {self._size:,}, an array at byte {stop:,}")
        return np.asarray(_Exposed(self._content, start, shape, dtype))


class _Exposed:
    """An array for ``np.asarray`` that numpy takes to be writable, since torch warns of those that are not."""

    def __init__(self, content: NDArray[np.uint8], start: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._content = content  # keeps the pages mapped
        address = content.ctypes.data + start
        self.__array_interface__ = {"version": 3, "data": (address, False), "shape": shape, "typestr": dtype.str}


@contextmanager
def _opened(source: bytes | Path) -> Iterator[_File]:
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        yield file


def _read_npz(file: _File, pages: _Pages | None, max_bytes: int) -> dict[str, NDArray[Any] | Tensor]:
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if len(members) > MAX_ARRAYS:
                raise BatchError(
                    f"the batch has {len(members)} arrays, the limit is {MAX_ARRAYS}",
                    code="batch_too_large",
                    advice="Keep x, y, weights or one array per model input.",
                )
            _require_size(sum(member.file_size for member in members), max_bytes, "Send fewer samples.")
            arrays: dict[str, NDArray[Any] | Tensor] = {}
            held = 0
            for member in members:
                name = member.filename.removesuffix(".npy")
                if name in arrays:
                    raise _damaged(f"array {name!r} appears twice")
                with archive.open(member) as stream:
                    shape, fortran, dtype = read_header(stream, name, member.file_size, "batch_invalid")
                    count = member.file_size - stream.tell()
                    stored = member.compress_type == zipfile.ZIP_STORED and not fortran
                    if pages is not None and stored and _is_mapped(name, count, dtype):
                        start = _first_byte(file, member) + stream.tell()
                        while stream.read(_BLOCK):
                            pass  # compares the checksum
                        arrays[name] = pages.array(start, shape, dtype)
                        continue
                    held += count
                    _require_size(held, MAX_BYTES, _STORED)
                    arrays[name] = _read(stream, count).view(dtype).reshape(shape, order="F" if fortran else "C")
            return arrays
    except (
        zipfile.BadZipFile,
        zipfile.LargeZipFile,
        zlib.error,
        EOFError,
        OSError,
        NotImplementedError,
        RuntimeError,
        UnicodeDecodeError,  # a member's name
    ) as error:
        raise _damaged(str(error) or type(error).__name__) from error


def _first_byte(file: _File, member: zipfile.ZipInfo) -> int:
    """Return where the content of a stored member begins; the archive has checked the header before it."""
    file.seek(member.header_offset)
    header = file.read(_LOCAL_HEADER)
    name, extra = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
    return member.header_offset + len(header) + name + extra


def _is_mapped(name: str, count: int, dtype: np.dtype[Any]) -> bool:
    """Return whether an array stays in the file: it is large, and torch has its dtype."""
    computes = dtype.isnative and (dtype.kind in "fib" or dtype == np.uint8) and dtype.itemsize <= 8
    return count >= MAPPED_FROM and name not in _READ_WHOLE and computes


def _read(stream: IO[bytes], count: int) -> NDArray[np.uint8]:
    """Read that many bytes block by block."""
    content = np.empty(count, np.uint8)
    for start in range(0, count, _BLOCK):
        block = stream.read(min(_BLOCK, count - start))
        if len(block) < min(_BLOCK, count - start):
            raise EOFError("it ends within an array")
        content[start : start + len(block)] = np.frombuffer(block, np.uint8)
    return content


_WIDTHS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_WHOLE_NUMBERS = {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8}
_DTYPES = {**_WIDTHS, **_WHOLE_NUMBERS, "BOOL": torch.bool}
"""Dtypes of mapped arrays by their names in .safetensors files."""


_MOST_DIMENSIONS = 64
"""Dimensions of an array that torch computes with."""


def _read_safetensors(file: _File, pages: _Pages | None, max_bytes: int) -> dict[str, NDArray[Any] | Tensor]:
    import safetensors
    import safetensors.torch

    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    try:
        if pages is None or size < MAPPED_FROM:
            return {name: _narrow(name, read) for name, read in safetensors.torch.load(file.read()).items()}
        with safetensors.safe_open(pages.path, "np") as checked:  # which checks that the header fits the file
            names = checked.keys()
        length = int.from_bytes(file.read(8), "little")
        header, first, held = json.loads(file.read(length)), 8 + length, 0
        arrays: dict[str, NDArray[Any] | Tensor] = {}
        for name in names:
            entry = header[name]
            start, stop = entry["data_offsets"]
            dtype = _DTYPES.get(entry["dtype"])
            if dtype is None:
                raise BatchError(
                    f"array {name!r} has dtype {entry['dtype']}",
                    code="unsupported_array_dtype",
                    advice="Use a real floating, integer or boolean dtype of at most 64 bits.",
                    array=name,
                )
            if _is_mapped(name, stop - start, np.dtype(np.uint8)):
                content = pages.array(first + start, (stop - start,), np.dtype(np.uint8))
            else:
                held += stop - start
                _require_size(held, MAX_BYTES, "Send fewer samples.")
                file.seek(first + start)
                content = _read(file, stop - start)
            arrays[name] = _narrow(name, torch.from_numpy(content).view(dtype).reshape(entry["shape"]))
        return arrays
    except (safetensors.SafetensorError, ValueError, KeyError, EOFError) as error:
        raise _damaged(first_line(error)) from error


def _narrow(name: str, tensor: Tensor) -> Tensor:
    """Return the tensor, if torch computes with so many dimensions."""
    if tensor.ndim > _MOST_DIMENSIONS:
        raise _damaged(f"array {name!r} has {tensor.ndim} dimensions")
    return tensor


def _require_size(size: int, limit: int, advice: str) -> None:
    if size > limit:
        raise BatchError(
            f"the batch holds {size:,} bytes, the limit is {limit:,}",
            code="batch_too_large",
            advice=advice,
            size=size,
            limit=limit,
        )


def _damaged(reason: str) -> BatchError:
    return BatchError(
        f"the batch file can't be read: {reason}",
        code="batch_invalid",
        advice="The file is damaged or incomplete: write it again and compare its size and checksum.",
    )
