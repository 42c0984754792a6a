"""Models and batches to send: their digests, their data files, and their content in chunks."""

from __future__ import annotations

import hashlib
import io
import mmap
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from wsb_engine.formats.digest import model_digest

CHUNK_BYTES = 1 << 16
"""Size of the chunks in which files are sent."""

Source: TypeAlias = str | os.PathLike[str] | bytes
"""A path, the content itself, or the identifier (``sha256:…``) of a file that the server has."""

_IDENTIFIER = re.compile(r"sha256:[0-9a-f]{64}")
_NAME_CHARACTERS = 200
_ARCHIVE = b"PK"
_LOCATION = b"location"
"""Contained in every ONNX file that refers to data files: the key of a data file's name."""


@dataclass(frozen=True)
class File:
    """A model, a batch or the state of an optimizer, and the identifier under which a server stores it."""

    kind: Literal["models", "batches", "optimizer_states"]
    identifier: str
    content: Path | bytes | None
    """None if it is given by its identifier only."""
    data: Mapping[str, Path] = field(default_factory=dict)
    """Data files of a model, by the names by which it refers to them."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(map(_size, (self.content or b"", *self.data.values())))

    def opened(self, stack: ExitStack, progress: Callable[[int], object]) -> list[tuple[str, tuple[str, Any]]]:
        """Open the parts of the form: name of the part, name of the file, content."""
        parts: list[tuple[str, str, Path | bytes]] = [("model", "model", self.content or b"")]
        parts += [("model_data", *each) for each in self.data.items()]
        return [
            (part, (name, _Counted(stack.enter_context(_open(content)), progress))) for part, name, content in parts
        ]

    def chunks(self, progress: Callable[[int], object]) -> Iterator[bytes]:
        """Yield the content of a file without data files."""
        with _open(self.content or b"") as file:
            while chunk := file.read(CHUNK_BYTES):
                progress(len(chunk))
                yield chunk


def model_file(source: Source) -> File:
    """Describe a model; its data files are looked for beside it.

    Raises:
        OSError: if it can't be read.
        ModelError: if data files that it refers to are missing or can't be used.
    """
    named = _named(source)
    if named is not None:
        return File("models", named, None)
    content = _content(source)
    data = {} if isinstance(content, bytes) else _data_files(content)
    parts = {name: _size_and_digest(path) for name, path in data.items()}
    return File("models", f"sha256:{model_digest(_size_and_digest(content), parts)}", content, data)


def batch_file(source: Source) -> File:
    """Describe a batch.

    Raises:
        OSError: if it can't be read.
    """
    return _single("batches", source)


def state_file(source: Source) -> File:
    """Describe the state of an optimizer.

    Raises:
        OSError: if it can't be read.
    """
    return _single("optimizer_states", source)


def _single(kind: Literal["batches", "optimizer_states"], source: Source) -> File:
    """Describe what is one file without further ones."""
    named = _named(source)
    if named is not None:
        return File(kind, named, None)
    content = _content(source)
    return File(kind, f"sha256:{_size_and_digest(content)[1]}", content)


def name_of(source: Source) -> str | None:
    """Return the name of a file as a server accepts it, to show; None if the file is not given by its path."""
    if isinstance(source, bytes) or _named(source):
        return None
    return "".join(filter(str.isprintable, Path(source).name)).strip()[:_NAME_CHARACTERS] or None


def may_have_data_files(model: Path) -> bool:
    """Whether a model file may refer to data files; False for certain without reading its structure."""
    try:
        with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content[: len(_ARCHIVE)] != _ARCHIVE and content.find(_LOCATION) >= 0
    except (OSError, ValueError):
        return False  # empty or unreadable, which the engine reports


def _data_files(model: Path) -> dict[str, Path]:
    if not may_have_data_files(model):
        return {}
    from wsb_engine.formats.load import external_files  # loads torch

    return external_files(model)


def _named(source: Source) -> str | None:
    return source if isinstance(source, str) and _IDENTIFIER.fullmatch(source) else None


def _content(source: Source) -> Path | bytes:
    return source if isinstance(source, bytes) else Path(source)


def _size(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _size_and_digest(content: Path | bytes) -> tuple[int, str]:
    with _open(content) as file:
        return _size(content), hashlib.file_digest(file, "sha256").hexdigest()


def _open(content: Path | bytes) -> io.BytesIO | io.BufferedReader:
    return io.BytesIO(content) if isinstance(content, bytes) else content.open("rb")


class _Counted:
    """A file that tells how much is read from it."""

    def __init__(self, file: io.BufferedIOBase, progress: Callable[[int], object]) -> None:
        self._file = file
        self._progress = progress

    def fileno(self) -> int:
        return self._file.fileno()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int) -> bytes:
        content = self._file.read(size)
        self._progress(len(content))
        return content
