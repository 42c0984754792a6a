"""Opens the store that the settings name."""

from __future__ import annotations

from service.settings import Settings
from service.storage.folder import FolderStore
from service.storage.store import BlobStore


def open_blobs(settings: Settings) -> BlobStore:
    """Make the store that the settings name."""
    folder, floor = settings.blob_dir, settings.min_free_bytes
    if settings.blob_bucket is None:
        return FolderStore(folder, min_free_bytes=floor)
    from service.storage.bucket import ObjectStore

    patience = settings.storage_patience_seconds
    return ObjectStore(settings.blob_bucket, folder, min_free_bytes=floor, patience_seconds=patience)
