"""`wsb restore`: an installation as a backup has it."""

from __future__ import annotations

import zipfile

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from service.analyses import repository
from service.analyses.table import LIVE_STATES, AnalysisRow
from service.blobs import leftovers
from service.blobs.table import BlobRow
from service.database import queue
from service.database.engine import Database, driver_connection, is_newer, migrate, step_back
from service.database.notifications import CHANNEL
from service.operations.archive import ArchiveReader, UnusableArchiveError
from service.operations.tables import clear, continue_identities, copy, has_content
from service.settings import Settings
from service.storage.factory import open_blobs
from service.storage.store import BlobStore

_CHUNK_BYTES = 1 << 20
_LISTENERS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query = :query"
_WORKERS = "SELECT count(*) FROM workers WHERE seen_at > now() - make_interval(secs => :seconds)"


class NotRestoredError(Exception):
    """The installation must not be overwritten as it is; the message says why and what to do."""


async def restore(settings: Settings, url: str, archive: ArchiveReader, *, replace: bool) -> None:
    """Load a backup into an installation whose processes are stopped; what had not ended is queued again.

    The tables are loaded in one transaction: after an error the installation is as it was, but for files that no row
    names.

    Args:
        settings: Settings of the installation.
        url: URL of its database.
        archive: The backup.
        replace: Whether to delete what is there; otherwise it must be empty.

    Raises:
        UnusableArchiveError: if the backup is damaged, or of a newer version.
        NotRestoredError: if the installation is in use, or not empty.
        NewerDatabaseError: if its tables are of a newer version.
        InsufficientStorageError, StorageUnavailableError: if the storage can't take the files.
        sqlalchemy.exc.OperationalError: if the database can't be reached.
    """
    if is_newer(archive.manifest.revision):
        raise UnusableArchiveError(
            f"The backup is of a newer version of the service ({archive.manifest.version}, tables at revision "
            f"{archive.manifest.revision}); restore it with that version."
        )
    database = Database(url)
    try:
        with open_blobs(settings) as store:
            async with database.transaction() as session:
                await _check_unused(session, settings)
                if not replace and await has_content(await driver_connection(session)):
                    raise NotRestoredError(
                        "The installation is not empty. Restore into another one, or add --replace to delete all that"
                        " is in it now."
                    )
            await _store_files(archive, store)
            async with database.transaction() as session:
                await _load(session, archive)
                await _queue_again(session, url)
            await leftovers.sweep(database, store)
    finally:
        await database.close()


async def _check_unused(session: AsyncSession, settings: Settings) -> None:
    """Raise NotRestoredError if a process of the service is running."""
    running = await session.scalar(text(_LISTENERS), {"query": f"LISTEN {CHANNEL}"}) or 0
    if await session.scalar(text("SELECT to_regclass('workers')")) is not None:
        running += await session.scalar(text(_WORKERS), {"seconds": settings.stalled_seconds}) or 0
    if running:
        raise NotRestoredError(
            "Processes of the service use this database. Stop all of them (wsb serve, wsb worker), and try again after"
            f" {settings.stalled_seconds:g} seconds."
        )


async def _store_files(archive: ArchiveReader, store: BlobStore) -> None:
    try:
        for file, content in archive.files():
            with store.receive(file.kind) as upload:
                while chunk := content.read(_CHUNK_BYTES):
                    upload.write(chunk)
                if upload.sha256 != file.sha256:
                    raise UnusableArchiveError(f"The backup is damaged: {file.path} has changed. Use another backup.")
                await store.keep(upload, model=file.model)
    except zipfile.BadZipFile as error:
        raise UnusableArchiveError(f"The backup is damaged: {error}. Use another backup.") from error


async def _load(session: AsyncSession, archive: ArchiveReader) -> None:
    """Replace the content of the tables."""
    connection = await session.connection()
    await migrate(connection)
    replaced = (await session.scalars(select(BlobRow))).all()
    session.expunge_all()
    driver = await driver_connection(session)
    await clear(driver)
    await step_back(connection, archive.manifest.revision)
    await driver.execute("SET LOCAL client_encoding = 'UTF8'; SET LOCAL datestyle = 'ISO'")
    for table in archive.manifest.tables:
        async with driver.cursor() as cursor:
            with archive.table(table.name) as content:
                async with cursor.copy(copy(table.name, table.columns, "FROM STDIN")) as rows:
                    while chunk := content.read(_CHUNK_BYTES):
                        await rows.write(chunk)
            if cursor.rowcount != table.rows:
                raise UnusableArchiveError(f"The backup is damaged: rows of {table.name} are missing.")
    await continue_identities(driver)
    await migrate(connection)
    await leftovers.add(session, replaced)


async def _queue_again(session: AsyncSession, url: str) -> None:
    """Queue what had not ended; an attempt that was running does not count."""
    app = queue.open_queue(url)
    query = select(AnalysisRow).where(AnalysisRow.state.in_(LIVE_STATES)).order_by(AnalysisRow.sequence)
    for row in (await session.scalars(query)).all():
        if row.state == "cancelling":
            await repository.cancelled(session, row.id)
            continue
        await repository.requeue(session, row.id, row.attempts)
        device = queue.wanted_device(row.options)
        row.job_id = await queue.defer(session, app, row.id, device=device, priority=row.priority)
