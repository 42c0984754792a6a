"""Blobs in a folder of this machine."""

from __future__ import annotations

import asyncio
import os
import shutil
from contextlib import suppress
from pathlib import Path

from service.storage.store import BlobMissingError, BlobStore, Kind, Upload, blob_path, full_disk_as_problem


class FolderStore(BlobStore):
    """Blobs as files below a folder, each at its ``blob_path``."""

    async def keep(self, upload: Upload, *, model: str | None = None) -> None:
        await asyncio.to_thread(self._keep, upload, model)

    def _keep(self, upload: Upload, model: str | None) -> None:
        place = self.folder / blob_path(upload.kind, upload.sha256, model)
        with full_disk_as_problem():
            upload.sync()
            place.parent.mkdir(parents=True, exist_ok=True)
            # Atomic, because uploads are on the same file system.
            os.replace(upload.path, place)
            _sync_folder(place.parent)
            if model is not None:
                _sync_folder(place.parent.parent)

    async def remove(self, kind: Kind, sha256: str, *, model: str | None = None) -> None:
        await asyncio.to_thread(self._remove, self.folder / blob_path(kind, sha256, model), model)

    def _remove(self, place: Path, model: str | None) -> None:
        place.unlink(missing_ok=True)
        if model is not None:
            with suppress(OSError):  # the model's other files are still there, or the folder is gone already
                place.parent.rmdir()

    async def probe(self) -> None:
        """Do nothing: the folder is that of the uploads, whose check covers it."""

    async def _fetch(self, path: str, destination: Path) -> None:
        try:
            # Not a hard link: an untrusted process may be given the destination and could change the stored blob
            # through the link.
            await asyncio.to_thread(shutil.copyfile, self.folder / path, destination)
        except FileNotFoundError as error:
            raise BlobMissingError(path) from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
