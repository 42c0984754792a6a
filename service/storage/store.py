"""Content-addressed blobs: received into a local file while hashed, then kept in a folder or in an object store.

Callers see kinds ("models", "batches"), digests and files, never where the blobs are.
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
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from service.errors import ServiceError
from service.storage.scratch import ScratchFolder
from service.storage.writeback import start_writeback

Kind = Literal["models", "batches"]

_CHECKED_EVERY = 16 << 20
_WRITTEN_BACK_EVERY = 16 << 20


class InsufficientStorageError(ServiceError):
    status = HTTPStatus.INSUFFICIENT_STORAGE
    code = "insufficient_storage"
    title = "Insufficient storage"


class StorageUnavailableError(ServiceError):
    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "storage_unavailable"
    title = "The storage of models and batches does not answer"


class BlobMissingError(Exception):
    """The database knows a blob that is not stored."""


class BlobCorruptError(Exception):
    """What is stored under a digest has another one."""


class Upload:
    """A blob on its way in; leaves nothing behind unless it was kept.

    Use as a context manager. ``sha256`` and ``size`` describe what has been written so far.

    Raises:
        InsufficientStorageError: by what writes, when the disk is full or has less than ``min_free_bytes`` left.
    """

    def __init__(self, folder: Path, kind: Kind, min_free_bytes: int = 0) -> None:
        with full_disk_told():
            descriptor, name = tempfile.mkstemp(prefix=f"{kind}-", dir=folder)
        self.kind = kind
        self.path = Path(name)
        self.size = 0
        # Without a buffer there is nothing to flush, which could fail, when a failed upload is closed.
        self._file = os.fdopen(descriptor, "wb", buffering=0)
        self._hash = hashlib.sha256()
        self._min_free_bytes = min_free_bytes
        self._unchecked = 0
        self._started = 0
        """Bytes that are on their way to the disk."""

    def write(self, data: bytes | memoryview) -> None:
        self._unchecked += len(data)
        if self._unchecked >= _CHECKED_EVERY:
            require_room(self.path.parent, self._unchecked, self._min_free_bytes)
            self._unchecked = 0
        with full_disk_told():
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

    def sync(self) -> None:
        """Puts the content on the disk itself, not just into its cache."""
        os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()
        self.path.unlink(missing_ok=True)


class BlobStore(ABC):
    """Blobs by kind and digest; enter it before receiving uploads.

    Args:
        folder: Folder of incoming uploads; created if missing.
        min_free_bytes: Room on its disk that uploads must leave.
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._incoming.__exit__(kind, error, traceback)

    def receive(self, kind: Kind) -> Upload:
        """A new upload; the caller writes to it, then keeps it or leaves its context."""
        return Upload(self._incoming.path, kind, self._min_free_bytes)

    def require_room(self, size: int) -> None:
        """Raises InsufficientStorageError when ``size`` bytes more would leave too little."""
        require_room(self.folder, size, self._min_free_bytes)

    async def copy(self, kind: Kind, sha256: str, destination: Path) -> None:
        """Writes a blob to ``destination``, a copy that shares nothing with what is stored.

        Raises:
            BlobMissingError: when it is not stored.
            BlobCorruptError: when what is stored is not what was kept.
            StorageUnavailableError: when the storage does not answer.
        """
        await self._fetch(kind, sha256, destination)
        if await asyncio.to_thread(_digest, destination) != sha256:
            raise BlobCorruptError(f"{kind}/{sha256}")

    @abstractmethod
    async def keep(self, upload: Upload) -> None:
        """Stores a complete upload, which becomes visible as a whole; durable when this returns.

        What is stored already is replaced: a blob that got damaged is mended when it is sent again.

        Raises:
            InsufficientStorageError: when the disk is full.
            StorageUnavailableError: when the storage does not answer.
        """

    @abstractmethod
    async def remove(self, kind: Kind, sha256: str) -> None:
        """Removes a blob, if it is there."""

    @abstractmethod
    async def probe(self) -> None:
        """Raises StorageUnavailableError when blobs can't be kept; uploads are another matter."""

    @abstractmethod
    async def _fetch(self, kind: Kind, sha256: str, destination: Path) -> None:
        """Writes what is stored to ``destination``; raises as ``copy``, which checks it, does."""


def blob_path(kind: Kind, sha256: str) -> str:
    """Where a blob lies, relative to the root of its store."""
    return f"{kind}/{sha256[:2]}/{sha256}"


def require_room(folder: Path, size: int, min_free_bytes: int) -> None:
    """Raises InsufficientStorageError unless ``size`` bytes more leave ``min_free_bytes`` on the folder's disk."""
    if shutil.disk_usage(folder).free - size < min_free_bytes:
        raise _no_room()


@contextmanager
def full_disk_told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_room() from error
        raise


def _no_room() -> InsufficientStorageError:
    return InsufficientStorageError(
        "The disk of models and batches has no room for it.",
        advice="Delete models and batches that are not needed any more, or tell the operator.",
    )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
