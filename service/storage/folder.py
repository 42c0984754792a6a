"""Blobs in a folder of this machine."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

from service.storage.store import BlobMissingError, BlobStore, Kind, Upload, blob_path, full_disk_as_problem


class FolderStore(BlobStore):
    """Blobs as files ``<folder>/<kind>/<first two digits>/<digest>``."""

    async def keep(self, upload: Upload) -> None:
        await asyncio.to_thread(self._keep, upload)

    def _keep(self, upload: Upload) -> None:
        place = self._place(upload.kind, upload.sha256)
        with full_disk_as_problem():
            upload.sync()
            place.parent.mkdir(parents=True, exist_ok=True)
            # Atomic, because uploads are on the same file system.
            os.replace(upload.path, place)
            _sync_folder(place.parent)

    async def remove(self, kind: Kind, sha256: str) -> None:
        await asyncio.to_thread(self._place(kind, sha256).unlink, missing_ok=True)

    async def probe(self) -> None:
        """Do nothing: the folder is that of the uploads, whose check covers it."""

    async def _fetch(self, kind: Kind, sha256: str, destination: Path) -> None:
        try:
            # Not a hard link: an untrusted process may be given the destination and could change the stored blob
            # through the link.
            await asyncio.to_thread(shutil.copyfile, self._place(kind, sha256), destination)
        except FileNotFoundError as error:
            raise BlobMissingError(f"{kind}/{sha256}") from error

    def _place(self, kind: Kind, sha256: str) -> Path:
        return self.folder / blob_path(kind, sha256)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
