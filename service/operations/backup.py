"""`wsb backup`: one file with everything that tenants have stored, as it was at one moment."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import psycopg

import wsb_engine
from service.blobs.leftovers import BACKUP_LOCK
from service.blobs.table import files_of
from service.database.engine import is_newer, latest_revision, lock_key
from service.operations.archive import ArchiveWriter, Manifest, StoredFile, Table
from service.operations.tables import Connection, copy, data_tables
from service.settings import Settings
from service.storage.factory import open_blobs
from service.storage.store import BlobCorruptError, BlobMissingError, BlobStore

_LOCK_TIMEOUT = "60s"
_FORMATS = "SET client_encoding = 'UTF8'; SET datestyle = 'ISO'; SET intervalstyle = 'postgres'"
_BLOBS = "SELECT DISTINCT ON (kind, sha256) kind, sha256, model_files FROM blobs ORDER BY kind, sha256"


class NotBackedUpError(Exception):
    """There is nothing to back up, or not by this version; the message says why and what to do."""


async def back_up(settings: Settings, url: str, path: Path) -> Manifest:
    """Write a backup while the service may be running.

    The tables are read in one snapshot. Files that are deleted meanwhile stay where they are until all of the
    snapshot's files are copied.

    Args:
        settings: Settings of the installation.
        url: URL of its database.
        path: File to write.

    Returns:
        What the backup contains; files that are missing or damaged are listed there.

    Raises:
        NotBackedUpError: if the tables are of another version, or another backup is in progress.
        StorageUnavailableError: if the storage does not respond.
        psycopg.OperationalError: if the database can't be reached.
        OSError: if the file can't be written.
    """
    with ArchiveWriter(path) as archive, open_blobs(settings) as store:
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            await connection.execute(_FORMATS)
            await _lock(connection)
            created_at = datetime.now(UTC)
            async with connection.transaction():
                await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
                revision = await _revision(connection)
                tables = [
                    Table(name=name, columns=columns, rows=await _copy_table(connection, archive, name, columns))
                    for name, columns in (await data_tables(connection)).items()
                ]
                files = await _files(connection)
            damaged = await _copy_files(store, archive, files, path.parent)
        manifest = Manifest(
            version=wsb_engine.__version__,
            revision=revision,
            created_at=created_at,
            tables=tables,
            files=len(files) - len(damaged),
            damaged=damaged,
        )
        archive.finish(manifest)
    return manifest


async def _lock(connection: Connection) -> None:
    """Put off the removal of files until the connection is closed.

    Before the snapshot, outside of its transaction: a file that was removed before the lock was taken belongs to a row
    that the snapshot no longer has.
    """
    await connection.execute(f"SET lock_timeout = '{_LOCK_TIMEOUT}'")
    try:
        await connection.execute("SELECT pg_advisory_lock(%s)", [lock_key(BACKUP_LOCK)])
    except psycopg.errors.LockNotAvailable as error:
        raise NotBackedUpError(
            "Another backup of this installation is in progress; wait until it has ended."
        ) from error


async def _revision(connection: Connection) -> str:
    known = await (await connection.execute("SELECT to_regclass('alembic_version')::text")).fetchone()
    if known is None or known[0] is None:
        raise NotBackedUpError("The database has no tables of the service; check WSB_DATABASE_URL and WSB_DATA_DIR.")
    row = await (await connection.execute("SELECT version_num FROM alembic_version")).fetchone()
    revision = str(row[0]) if row else "none"
    if revision != latest_revision():
        kind = "a newer" if is_newer(revision) else "an older"
        raise NotBackedUpError(
            f"The tables are of {kind} version of the service (revision {revision}, and this version's is "
            f"{latest_revision()}); back up with that version."
        )
    return revision


async def _copy_table(connection: Connection, archive: ArchiveWriter, name: str, columns: list[str]) -> int:
    async with connection.cursor() as cursor:
        with archive.table(name) as entry:
            async with cursor.copy(copy(name, columns, "TO STDOUT")) as rows:
                async for chunk in rows:
                    entry.write(chunk)
        return cursor.rowcount


async def _files(connection: Connection) -> list[StoredFile]:
    blobs = await (await connection.execute(_BLOBS)).fetchall()
    return [
        StoredFile(kind, file["sha256"], None if model_files is None else sha256)
        for kind, sha256, model_files in blobs
        for file in files_of(kind, sha256, model_files)
    ]


async def _copy_files(store: BlobStore, archive: ArchiveWriter, files: Sequence[StoredFile], folder: Path) -> list[str]:
    """Copy files to the archive, by way of a folder; return the paths of those that are missing or damaged."""
    damaged = []
    with tempfile.TemporaryDirectory(prefix=".wsb-backup-", dir=folder) as scratch:
        place = Path(scratch, "file")
        for file in files:
            try:
                await store.copy(file.kind, file.sha256, place, model=file.model)
            except (BlobMissingError, BlobCorruptError):
                damaged.append(file.path)
            else:
                archive.add(file, place)
    return damaged
