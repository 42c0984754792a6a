"""The files of an analysis, copied to where its child can read them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from service.analyses.table import AnalysisRow
from service.blobs.table import StoredFile
from service.child.entry import BATCH_FILE, DATA_FOLDER, MODEL_FILE, STATE_FILE
from service.storage.store import BlobCorruptError, BlobMissingError, BlobStore, Kind, require_room

_COPIES = 8
"""Files that one job copies at once."""


async def copy_files(blobs: BlobStore, row: AnalysisRow, model_files: Sequence[StoredFile], folder: Path) -> None:
    """Copy the files of an analysis to the folder of its job.

    Args:
        blobs: Where they are stored.
        row: The analysis.
        model_files: Files of its model, the model itself first.
        folder: Folder of the job.

    Raises:
        InsufficientStorageError: if the folder's disk has no room for them.
        BlobMissingError, BlobCorruptError: with the name of the file.
        StorageUnavailableError: if the storage does not respond.
    """
    turns = asyncio.Semaphore(_COPIES)
    model = row.model if len(model_files) > 1 else None

    async def copy(kind: Kind, sha256: str, place: Path, what: str, model: str | None = None) -> None:
        async with turns:
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                await blobs.copy(kind, sha256, place, model=model)
            except (BlobMissingError, BlobCorruptError) as error:
                raise type(error)(what) from error

    require_room(folder, sum(file["size"] for file in model_files), 0)
    data = folder / DATA_FOLDER
    data.mkdir()
    first, *others = model_files
    try:
        async with asyncio.TaskGroup() as copies:
            what = f"The model sha256:{row.model}"
            copies.create_task(copy("models", first["sha256"], folder / MODEL_FILE, what, model))
            what = f"The batch sha256:{row.batch}"
            copies.create_task(copy("batches", row.batch, folder / BATCH_FILE, what))
            if row.optimizer_state is not None:
                what = f"The optimizer's state sha256:{row.optimizer_state}"
                copies.create_task(copy("optimizer_states", row.optimizer_state, folder / STATE_FILE, what))
            for file in others:
                what = f"The model's data file {file['name']!r}"
                copies.create_task(copy("models", file["sha256"], data / file["name"], what, model))
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from errors
