"""Files of deleted models and batches, until they are removed too.

A file is removed after the deletion of its last row is committed: a file without a row is only waste, a row without a
file is a lie. What is still to be removed is a row as well, so that a process that dies in between leaves no waste, and
so that a backup can put the removal off until it has copied the files that were there when it began.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from sqlalchemy import JSON, Text, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from service.blobs.table import BlobRow, StoredFile, blob_lock, files_of
from service.database.engine import Base, Database, lock, try_lock_shared
from service.storage.store import BlobStore, Kind

BACKUP_LOCK = "backup"
"""Held alone by a backup, and shared by those who remove files."""


class LeftoverRow(Base):
    """A model or batch whose files are to be removed, unless a tenant has sent it again."""

    __tablename__ = "leftovers"

    kind: Mapped[str] = mapped_column(Text, primary_key=True)
    sha256: Mapped[str] = mapped_column(Text, primary_key=True)
    model_files: Mapped[list[StoredFile] | None] = mapped_column(JSON(none_as_null=True))


async def add(session: AsyncSession, blobs: Iterable[BlobRow]) -> None:
    """Note the files of blobs whose rows this transaction deletes."""
    values = [{"kind": row.kind, "sha256": row.sha256, "model_files": row.model_files} for row in blobs]
    if values:
        await session.execute(insert(LeftoverRow).on_conflict_do_nothing(), values)


async def remove(database: Database, store: BlobStore, kind: Kind, sha256: str) -> bool:
    """Remove the files of a deleted blob, unless it was sent again; return False if a backup needs them for now."""
    async with database.transaction() as session:
        if not await try_lock_shared(session, BACKUP_LOCK):
            return False
        await lock(session, blob_lock(kind, sha256))
        row = await session.get(LeftoverRow, (kind, sha256))
        if row is None:
            return True
        anyones = select(BlobRow.tenant).where(BlobRow.kind == kind, BlobRow.sha256 == sha256).limit(1)
        if await session.scalar(anyones) is None:
            shared_model = None if row.model_files is None else sha256
            for file in files_of(kind, sha256, row.model_files):
                await store.remove(kind, file["sha256"], model=shared_model)
        await session.delete(row)
    return True


async def sweep(database: Database, store: BlobStore) -> None:
    """Remove all files that are still to be removed, unless a backup is in progress."""
    async with database.transaction() as session:
        found = (await session.execute(select(LeftoverRow.kind, LeftoverRow.sha256))).all()
    for kind, sha256 in found:
        if not await remove(database, store, cast(Kind, kind), sha256):
            return
