"""The file of a backup: a zip with the tables of the database, the files of models and batches, and a manifest.

Tables are in the text format of Postgres's COPY, which every version of it reads. Files keep their paths below the root
of the storage, and so their digests.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import IO, Literal, NamedTuple, Self, cast

from pydantic import BaseModel, ValidationError

from service.storage.store import Kind, blob_path

_MANIFEST = "manifest.json"
_TABLE = "tables/{name}.copy"
_FILES = "blobs/"
_DIGEST = "[0-9a-f]{64}"
_FILE = re.compile(f"(models|batches|optimizer_states)/[0-9a-f]{{2}}/({_DIGEST})(?:/({_DIGEST}))?")


class UnusableArchiveError(Exception):
    """The file is not a backup that this version can restore; the message says why and what to do."""


class Table(BaseModel):
    """A table of the database."""

    name: str
    columns: list[str]
    rows: int


class Manifest(BaseModel):
    """What a backup contains."""

    format: Literal[1] = 1
    version: str
    """Version of the service that made it."""
    revision: str
    """Revision of the tables."""
    created_at: datetime
    tables: list[Table]
    files: int
    damaged: list[str]
    """Files that the database lists but the storage did not have as they should be."""

    def rows(self, table: str) -> int:
        """Return the number of rows of a table; 0 if there is no such table."""
        return next((found.rows for found in self.tables if found.name == table), 0)


class StoredFile(NamedTuple):
    """A file of a model or batch in a backup."""

    kind: Kind
    sha256: str
    model: str | None
    """Digest of the model that it is one file of, if the model has several."""

    @property
    def path(self) -> str:
        """Path below the root of the storage."""
        return blob_path(self.kind, self.sha256, self.model)


class ArchiveWriter:
    """Writes a backup; the file appears only once it is complete, and only its owner can read it.

    Args:
        path: Path of the file.

    Raises:
        OSError: if it can't be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = path.with_name(f"{path.name}.part")

    def __enter__(self) -> Self:
        descriptor = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._file = os.fdopen(descriptor, "wb")
        self._zip = zipfile.ZipFile(self._file, "w")
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()
        self._file.close()
        self._partial.unlink(missing_ok=True)

    def table(self, name: str) -> IO[bytes]:
        """Start a table; close what is returned before anything else is written."""
        info = zipfile.ZipInfo(_TABLE.format(name=name))
        info.compress_type = zipfile.ZIP_DEFLATED
        return self._zip.open(info, "w", force_zip64=True)

    def add(self, file: StoredFile, content: Path) -> None:
        """Add a file; it is not compressed, because weights hardly can be."""
        self._zip.write(content, _FILES + file.path)

    def finish(self, manifest: Manifest) -> None:
        """Complete the backup, which is on the disk when this returns."""
        self._zip.writestr(_MANIFEST, manifest.model_dump_json(indent=2))
        self._zip.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        os.replace(self._partial, self._path)


class ArchiveReader:
    """Reads a backup; a context manager.

    Args:
        path: Path of the file.

    Raises:
        UnusableArchiveError: if it is not a complete backup, or was made in another format.
        OSError: if it can't be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._zip = zipfile.ZipFile(path)
            self.manifest = Manifest.model_validate_json(self._zip.read(_MANIFEST))
        except (zipfile.BadZipFile, KeyError, ValidationError) as error:
            raise UnusableArchiveError(
                f"{path} is not a complete backup of this format; use a file that wsb backup wrote."
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def table(self, name: str) -> IO[bytes]:
        """Open a table of the manifest."""
        return self._zip.open(_TABLE.format(name=name))

    def files(self) -> Iterator[tuple[StoredFile, IO[bytes]]]:
        """Yield each file with its content, which is closed afterwards."""
        for name in self._zip.namelist():
            match = _FILE.fullmatch(name.removeprefix(_FILES))
            if match is None or not name.startswith(_FILES):
                continue
            kind, first, second = cast(Kind, match[1]), match[2], match[3]
            file = StoredFile(kind, second or first, first if second else None)
            with self._zip.open(name) as content:
                yield file, content
