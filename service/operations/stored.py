"""What `wsb doctor` finds in the database and in the storage."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

from sqlalchemy import func, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

import wsb_engine
from service.analyses import repository
from service.analyses.table import AnalysisRow
from service.blobs.leftovers import LeftoverRow
from service.blobs.table import BlobRow
from service.database import workers
from service.database.engine import Database, is_newer, latest_revision
from service.errors import ServiceError
from service.operations.findings import Finding, ok, problem, warning
from service.settings import Settings
from service.storage.factory import open_blobs
from service.storage.scratch import ScratchFolder
from service.storage.store import BlobCorruptError, BlobMissingError, BlobStore, Kind, require_room
from service.webhooks.sealing import SealedError, opened
from service.webhooks.table import WebhookRow

_OLDEST_POSTGRES = 13
_API_CONNECTIONS, _WORKER_CONNECTIONS, _OTHER_CONNECTIONS = 1, 5, 14
"""What a process holds besides its pool, and what commands and a superuser need."""
_LONG_WAIT_SECONDS = 600


async def database(settings: Settings, url: str) -> tuple[bool, list[Finding]]:
    """Examine the database; also return whether its tables are those of this version."""
    database = Database(url)
    try:
        async with database.transaction() as session:
            found = [finding async for finding in _server(session, settings)]
            tables = await _tables(session)
        if tables.level == "ok":
            async with database.transaction() as session:
                found += [finding async for finding in _content(session, settings)]
    except (SQLAlchemyError, OSError) as error:
        cause = str(getattr(error, "orig", None) or error).partition("\n")[0]
        advice = "Check that Postgres is running, WSB_DATABASE_URL and the network between them."
        return False, [problem("database", f"The database does not answer: {cause}", advice)]
    finally:
        await database.close()
    return tables.level == "ok", [tables, *found]


async def _server(session: AsyncSession, settings: Settings) -> AsyncIterator[Finding]:
    pool = settings.database_connections
    api, worker = pool + _API_CONNECTIONS, pool + _WORKER_CONNECTIONS
    number, most = (
        await session.execute(
            text("SELECT current_setting('server_version_num')::int, current_setting('max_connections')::int")
        )
    ).one()
    if number // 10_000 < _OLDEST_POSTGRES:
        yield problem("database", f"Postgres {number // 10_000} is too old.", f"Use {_OLDEST_POSTGRES} or newer.")
    if most < api + worker + _OTHER_CONNECTIONS:
        yield warning(
            "database",
            f"Postgres accepts {most} connections.",
            f"Raise max_connections, or lower WSB_DATABASE_CONNECTIONS: an API process holds up to {api}, a worker up"
            f" to {worker}.",
        )
    yield ok("database", f"Postgres {number // 10_000} answers, with up to {most} connections.")


async def _tables(session: AsyncSession) -> Finding:
    known = await session.scalar(text("SELECT to_regclass('alembic_version')"))
    revision = None if known is None else await session.scalar(text("SELECT version_num FROM alembic_version"))
    if revision == latest_revision():
        return ok("database", f"Its tables are at revision {revision}.")
    if revision is None:
        return problem("database", "It has no tables of the service.", "Start wsb serve or wsb worker once.")
    if is_newer(revision):
        advice = "Start the newer version, or restore a backup that is older than the upgrade."
        return problem("database", f"Its tables are of a newer version (revision {revision}).", advice)
    advice = "Start a process of this version, which migrates them."
    return problem("database", f"Its tables are of an older version (revision {revision}).", advice)


async def _content(session: AsyncSession, settings: Settings) -> AsyncIterator[Finding]:
    present = await workers.alive(session, within_seconds=settings.stalled_seconds)
    versions = sorted({worker.engine_version for worker in present})
    devices = sorted({worker.device for worker in present})
    if not present:
        yield warning("workers", "No worker is running.", "Start wsb serve, or wsb worker.")
    elif versions != [wsb_engine.__version__]:
        told = f"Workers run version {', '.join(versions)}, and this is {wsb_engine.__version__}."
        yield warning("workers", told, "Finish the upgrade: replace workers one at a time.")
    else:
        yield ok("workers", f"{len(present)} workers are running, on {', '.join(devices)}.")
    waiting = func.extract("epoch", func.now() - func.min(AnalysisRow.created_at))
    queued, seconds = (await session.execute(select(func.count(), waiting).where(AnalysisRow.state == "queued"))).one()
    if seconds is not None and seconds > _LONG_WAIT_SECONDS:
        told = f"{queued} analyses wait, the oldest for {seconds:.0f} seconds."
        yield warning("workers", told, "Start more workers, or look at the log of those that run.")
    if lost := await repository.without_job(session):
        told = f"{len(lost)} analyses that have not ended are missing from the queue."
        yield warning("workers", told, "A running worker ends them as worker_lost; send them again.")
    async for finding in _webhooks(session, settings):
        yield finding
    if leftovers := await session.scalar(select(func.count()).select_from(LeftoverRow)):
        told = f"Files of {leftovers} deleted models and batches are still to be removed."
        yield ok("storage", f"{told} A running service does that.")


async def _webhooks(session: AsyncSession, settings: Settings) -> AsyncIterator[Finding]:
    """Webhooks whose secret this installation can't open."""
    for row in await session.scalars(select(WebhookRow).where(WebhookRow.disabled_at.is_(None))):
        try:
            opened(row.secret, settings.webhooks_key, row.id)
        except SealedError:
            told = f"No key in WSB_WEBHOOKS_KEY opens the secret of webhook {row.id} ({row.tenant})."
            yield warning("keys", told, "Add that key after the present ones, or have the webhook registered again.")


async def storage(settings: Settings) -> list[Finding]:
    """Whether the storage can be written, and has room."""
    try:
        with open_blobs(settings) as store:
            with store.receive("models") as upload:
                upload.write(b"\0")
                require_room(upload.path.parent, 0, settings.min_free_bytes)
            await store.probe()
    except ServiceError as error:
        advice = "Free space, or lower WSB_MIN_FREE_BYTES."
        if settings.blob_bucket is not None:
            advice = "Check WSB_BLOB_URL, the AWS_* variables, and the network; or free space for uploads in transit."
        return [problem("storage", error.detail, advice)]
    except OSError as error:
        told = f"{error.filename or settings.blob_dir} can't be written: {error.strerror or error}."
        return [problem("storage", told, "Mount the disk, and let the user of the service write there.")]
    place = settings.blob_bucket or settings.blob_dir
    return [ok("storage", f"Models and batches can be written to {place}.")]


async def stored_files(settings: Settings, url: str) -> list[Finding]:
    """Read every model and batch, and compare it with its digest."""
    database, damaged, count = Database(url), [], 0
    try:
        async with database.transaction() as session:
            # Tenants share the files of equal models and batches.
            rows = {(row.kind, row.sha256): row for row in await session.scalars(select(BlobRow))}
    finally:
        await database.close()
    with open_blobs(settings) as store, ScratchFolder(settings.job_dir) as scratch:
        for row in rows.values():
            for file in row.files:
                count += 1
                if (wrong := await _wrong(store, row, file["sha256"], scratch.path / "file")) is not None:
                    damaged.append(wrong)
    if damaged:
        return [problem("storage", wrong, "Upload it again, or restore it from a backup.") for wrong in damaged]
    return [ok("storage", f"All {count} files of models and batches are as they were sent.")]


async def _wrong(store: BlobStore, row: BlobRow, sha256: str, place: Path) -> str | None:
    """Return what is wrong with a file; None if nothing is."""
    name = f"The file {sha256} of sha256:{row.sha256} ({row.kind}, {row.tenant})"
    try:
        await store.copy(cast(Kind, row.kind), sha256, place, model=row.shared_model)
    except BlobMissingError:
        return f"{name} is missing."
    except BlobCorruptError:
        return f"{name} has changed."
    return None
