"""Content-addressed blobs in a folder: written beside their place while hashed, then renamed into it.

Callers see kinds ("models", "batches"), digests and files, never the folder's layout, so that an object store
can take the folder's place.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, Self

from service.scratch import ScratchFolder

Kind = Literal["models", "batches"]


class BlobMissingError(Exception):
    """The database knows a blob that the folder does not hold."""


class Upload:
    """A blob on its way in; leaves nothing behind unless it was kept.

    Use as a context manager. ``sha256`` and ``size`` describe what has been written so far.
    """

    def __init__(self, folder: Path, kind: Kind) -> None:
        descriptor, name = tempfile.mkstemp(prefix=f"{kind}-", dir=folder)
        self.kind = kind
        self.path = Path(name)
        self.size = 0
        self._file: BinaryIO = os.fdopen(descriptor, "wb")
        self._hash = hashlib.sha256()

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.size += len(data)

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def flush(self) -> None:
        """Makes what was written readable at ``path``."""
        self._file.flush()

    def sync(self) -> None:
        """Puts the content on the disk itself, not just into its cache."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()
        self.path.unlink(missing_ok=True)


class BlobStore:
    """Blobs under ``<folder>/<kind>/<first two digits>/<digest>``; enter it before receiving uploads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Beside the blobs, because a rename is atomic only within one file system.
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
        return Upload(self._incoming.path, kind)

    async def keep(self, upload: Upload) -> None:
        """Moves a complete upload to its place; durable when this returns. Keeping it twice changes nothing."""
        await asyncio.to_thread(self._keep, upload)

    def _keep(self, upload: Upload) -> None:
        place = self._place(upload.kind, upload.sha256)
        if place.exists():
            return
        upload.sync()
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(upload.path, place)
        _sync_folder(place.parent)

    async def copy(self, kind: Kind, sha256: str, destination: Path) -> None:
        """Writes a blob to ``destination``.

        Raises:
            BlobMissingError: when the folder does not hold it.
        """
        try:
            # A copy and not a hard link: the destination may be handed to a process that isn't trusted, which
            # could otherwise change the stored blob through the link.
            await asyncio.to_thread(shutil.copyfile, self._place(kind, sha256), destination)
        except FileNotFoundError as error:
            raise BlobMissingError(f"{kind}/{sha256}") from error

    async def remove(self, kind: Kind, sha256: str) -> None:
        await asyncio.to_thread(self._place(kind, sha256).unlink, missing_ok=True)

    def _place(self, kind: Kind, sha256: str) -> Path:
        return self.folder / kind / sha256[:2] / sha256


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
