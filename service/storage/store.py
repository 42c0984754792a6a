"""Content-addressed blobs: hashed while received into a local file, then kept in a folder or an object store.

Callers see kinds ("models", "batches", "optimizer_states"), digests and files, but not where the blobs are stored.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Self

from service.errors import ServiceError
from service.storage.scratch import ScratchFolder
from service.storage.writeback import start_writeback

Kind = Literal["models", "batches", "optimizer_states"]

_CHECKED_EVERY = 16 << 20
_WRITTEN_BACK_EVERY = 16 << 20


class InsufficientStorageError(ServiceError, status=507, code="insufficient_storage", title="Insufficient storage"): ...


class StorageUnavailableError(
    ServiceError, status=503, code="storage_unavailable", title="The storage of models and batches is unavailable"
): ...


class BlobMissingError(Exception):
    """A blob that the database lists is not stored."""


class BlobCorruptError(Exception):
    """The content stored under a digest has a different digest."""


class Upload:
    """A blob being received; a context manager, which deletes the file unless it was kept.

    ``sha256`` and ``size`` describe what has been written so far.

    Raises:
        InsufficientStorageError: on writing, if the disk is full or would keep less than ``min_free_bytes`` free.
    """

    def __init__(self, folder: Path, kind: Kind, min_free_bytes: int = 0) -> None:
        with full_disk_as_problem():
            descriptor, name = tempfile.mkstemp(prefix=f"{kind}-", dir=folder)
        self.kind = kind
        self.path = Path(name)
        self.size = 0
        # Unbuffered, so that closing a failed upload has nothing to flush, which could fail.
        self._file = os.fdopen(descriptor, "wb", buffering=0)
        self._hash = hashlib.sha256()
        self._min_free_bytes = min_free_bytes
        self._unchecked = 0
        self._started = 0
        """Bytes whose writeback has started."""

    def write(self, data: bytes | memoryview) -> None:
        self._unchecked += len(data)
        if self._unchecked >= _CHECKED_EVERY:
            require_room(self.path.parent, self._unchecked, self._min_free_bytes)
            self._unchecked = 0
        with full_disk_as_problem():
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) or 0 :]
        self._hash.update(data)
        self.size += len(data)
        if self.size - self._started >= _WRITTEN_BACK_EVERY:
            start_writeback(self._file.fileno(), self._started, self.size - self._started)
            self._started = self.size

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def close(self) -> None:
        """Close the file; nothing may be written any more. Uploads that wait for others then hold no descriptor."""
        self._file.close()

    def sync(self) -> None:
        """Flush the content to disk (fsync)."""
        if not self._file.closed:
            os.fsync(self._file.fileno())
            return
        with self.path.open("rb") as file:
            os.fsync(file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self.path.unlink(missing_ok=True)


class BlobStore(ABC):
    """Blobs by kind and digest; enter it before receiving uploads.

    Args:
        folder: Folder of incoming uploads; created if missing.
        min_free_bytes: Free space that uploads must leave on its disk.
    """

    def __init__(self, folder: Path, *, min_free_bytes: int = 0) -> None:
        self.folder = folder
        self._min_free_bytes = min_free_bytes
        self._incoming = ScratchFolder(folder / "incoming")

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        self._incoming.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._incoming.__exit__()

    def receive(self, kind: Kind) -> Upload:
        """Start an upload; the caller writes to it, then keeps it or leaves its context."""
        return Upload(self._incoming.path, kind, self._min_free_bytes)

    def require_room(self, size: int) -> None:
        """Raise InsufficientStorageError if ``size`` more bytes would leave too little free space."""
        require_room(self.folder, size, self._min_free_bytes)

    async def copy(self, kind: Kind, sha256: str, destination: Path, *, model: str | None = None) -> None:
        """Write an independent copy of a blob to ``destination``.

        Args:
            kind: Kind of the blob.
            sha256: Digest of its content.
            destination: Path of the copy.
            model: Digest of the model that the blob is one file of, if the model has several.

        Raises:
            BlobMissingError: if it is not stored.
            BlobCorruptError: if the stored content has changed.
            StorageUnavailableError: if the storage does not respond.
        """
        await self._fetch(blob_path(kind, sha256, model), destination)
        if await asyncio.to_thread(_digest, destination) != sha256:
            raise BlobCorruptError(blob_path(kind, sha256, model))

    @abstractmethod
    async def keep(self, upload: Upload, *, model: str | None = None) -> None:
        """Store a complete upload atomically; it is durable when this returns.

        An existing blob is replaced, so that sending a damaged one again repairs it.

        Args:
            upload: The upload.
            model: Digest of the model that it is one file of, if the model has several.

        Raises:
            InsufficientStorageError: if the disk is full.
            StorageUnavailableError: if the storage does not respond.
        """

    @abstractmethod
    async def remove(self, kind: Kind, sha256: str, *, model: str | None = None) -> None:
        """Remove a blob, if it exists; arguments as for ``copy``."""

    @abstractmethod
    async def probe(self) -> None:
        """Raise StorageUnavailableError if blobs can't be kept; receiving uploads is checked elsewhere."""

    @abstractmethod
    async def _fetch(self, path: str, destination: Path) -> None:
        """Write the content stored at a ``blob_path`` to ``destination``, unchecked; raises as ``copy``."""


def blob_path(kind: Kind, sha256: str, model: str | None = None) -> str:
    """Path of a blob, relative to the root of its store.

    The files of a model that has several are below the model's digest. No two models share them, so that they are
    deleted with the model.
    """
    return f"{kind}/{sha256[:2]}/{sha256}" if model is None else f"{kind}/{model[:2]}/{model}/{sha256}"


def require_room(folder: Path, size: int, min_free_bytes: int) -> None:
    """Raise InsufficientStorageError unless ``size`` more bytes leave ``min_free_bytes`` free on the folder's disk."""
    if shutil.disk_usage(folder).free - size < min_free_bytes:
        raise _no_room()


@contextmanager
def full_disk_as_problem() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if is_full_disk(error):
            raise _no_room() from error
        raise


def is_full_disk(error: OSError) -> bool:
    """Whether a file could not be written because its disk, or the quota on it, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def _no_room() -> InsufficientStorageError:
    return InsufficientStorageError(
        "The disk of models and batches has no space for it.",
        advice="Delete models and batches that are no longer needed, or contact the operator.",
    )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
