"""Blobs in an S3-compatible object store, through obstore.

Endpoint and credentials come from the ``AWS_*`` environment variables.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import obstore
import structlog
from obstore.exceptions import BaseError
from obstore.store import S3Store

from service.storage.store import BlobMissingError, BlobStore, Kind, StorageUnavailableError, Upload, blob_path

_PART_BYTES = 8 << 20
_PARTS_AT_ONCE = 2
"""Parts of one upload held in memory."""
_MOST_PARTS = 10_000
"""Limit of S3."""
_PROBE = "probe"

log = structlog.get_logger(__name__)


class ObjectStore(BlobStore):
    """Blobs as objects, each at its ``blob_path`` below the prefix.

    Args:
        url: s3://bucket/prefix.
        folder: Local folder of incoming uploads.
        min_free_bytes: Room on the folder's disk that uploads must leave.
        patience_seconds: How long to retry a failed request, and how long the store may be silent during one.
    """

    def __init__(self, url: str, folder: Path, *, min_free_bytes: int = 0, patience_seconds: float = 30.0) -> None:
        super().__init__(folder, min_free_bytes=min_free_bytes)
        patience = timedelta(seconds=patience_seconds)
        self._store = S3Store.from_url(
            url,
            # Limit silence rather than whole requests, which would limit the size of blobs. Options given here replace
            # those of the environment.
            client_options={
                "allow_http": os.environ.get("AWS_ALLOW_HTTP", "").lower() == "true",
                "read_timeout": patience,
                "timeout": timedelta(days=1),
            },
            retry_config={
                "max_retries": 1000,
                "retry_timeout": patience,
                "backoff": {
                    "init_backoff": timedelta(milliseconds=100),
                    "max_backoff": timedelta(seconds=2),
                    "base": 2,
                },
            },
        )

    async def keep(self, upload: Upload, *, model: str | None = None) -> None:
        part = max(_PART_BYTES, -(-upload.size // _MOST_PARTS))
        with _errors_as_problem():
            await obstore.put_async(
                self._store,
                blob_path(upload.kind, upload.sha256, model),
                upload.path,
                chunk_size=part,
                max_concurrency=_PARTS_AT_ONCE,
            )

    async def remove(self, kind: Kind, sha256: str, *, model: str | None = None) -> None:
        """Remove a blob; if that fails, log it: a leftover blob is only waste."""
        path = blob_path(kind, sha256, model)
        try:
            with _errors_as_problem():
                await obstore.delete_async(self._store, path)
        except StorageUnavailableError:
            log.warning("blob_left", blob=path)

    async def probe(self) -> None:
        with _errors_as_problem():
            await obstore.put_async(self._store, _PROBE, b"\0")

    async def _fetch(self, path: str, destination: Path) -> None:
        with _errors_as_problem(), destination.open("wb") as file:
            try:
                found = await obstore.get_async(self._store, path)
            except FileNotFoundError as error:
                if "NoSuchBucket" in str(error):
                    raise
                raise BlobMissingError(path) from error
            async for chunk in found.stream(min_chunk_size=_PART_BYTES):
                await asyncio.to_thread(file.write, chunk)


@contextmanager
def _errors_as_problem() -> Iterator[None]:
    try:
        yield
    except (BaseError, FileNotFoundError) as error:
        # The first line is enough; the rest holds the headers and internals of the request.
        log.warning("storage_unavailable", error=str(error).partition("\n")[0])
        raise StorageUnavailableError(
            "The object store of models and batches is unavailable at the moment.",
            advice="Try again; a request with an Idempotency-Key is not executed twice.",
            headers={"Retry-After": "5"},
        ) from error
