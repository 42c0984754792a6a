"""Stored models and batches: every read and change of their table."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, cast

import anyio.to_thread
from sqlalchemy import Select, func, literal, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from service.blobs import leftovers
from service.blobs.errors import BlobInUseError, BlobNotFoundError, TenantStorageFullError
from service.blobs.formats import read_format
from service.blobs.table import NOUNS, BlobRow, StoredFile, blob_lock, files_of
from service.context import Context
from service.database.engine import lock
from service.errors import EmptyBodyError
from service.kit import audit
from service.settings import Settings
from service.storage.store import Kind, Upload
from wsb_engine.formats.digest import model_digest

IDENTIFIER = re.compile(r"sha256:([0-9a-f]{64})")


@dataclass(frozen=True)
class Received:
    """A model or batch that has arrived completely.

    Args:
        file: The file itself.
        data: Data files of a model, by the names by which it refers to them.
        name: Name of the file as the client gave it, to show; None without one.
    """

    file: Upload
    data: Mapping[str, Upload] = field(default_factory=dict)
    name: str | None = None

    @property
    def uploads(self) -> list[Upload]:
        return [self.file, *self.data.values()]

    @property
    def sha256(self) -> str:
        """The digest that identifies it: of the file, or of the manifest of all files."""
        parts = {name: (upload.size, upload.sha256) for name, upload in self.data.items()}
        return model_digest((self.file.size, self.file.sha256), parts)

    @property
    def model_files(self) -> list[StoredFile] | None:
        """As the column of this name."""
        named = [("model", self.file), *sorted(self.data.items())]
        files = [StoredFile(name=name, size=upload.size, sha256=upload.sha256) for name, upload in named]
        return files if self.data else None


def spoken(kind: Kind) -> str:
    """Return what to call a file of this kind."""
    return NOUNS[kind].replace("_", " ")


def identifier(sha256: str) -> str:
    return f"sha256:{sha256}"


def digest(blob_id: str, kind: Kind) -> str:
    """Return the hex digest in an identifier.

    Raises:
        BlobNotFoundError: if the text is not an identifier.
    """
    match = IDENTIFIER.fullmatch(blob_id)
    if match is None:
        raise not_found(blob_id, kind)
    return match[1]


def hex_digest(blob_id: str | None) -> str:
    """Return the hex digest in a well-formed identifier; empty for anything else."""
    match = IDENTIFIER.fullmatch(blob_id or "")
    return "" if match is None else match[1]


def not_found(blob_id: str, kind: Kind) -> BlobNotFoundError:
    return BlobNotFoundError(
        f"There is no {spoken(kind)} {blob_id[:80]}.",
        advice=f"Upload it with POST /v1/{kind}; identifiers are sha256: and 64 hex digits.",
    )


def max_bytes(settings: Settings, kind: Kind) -> int:
    """Size of the largest file of this kind that is accepted."""
    limits = {
        "models": settings.max_model_bytes,
        "batches": settings.max_batch_bytes,
        "optimizer_states": settings.max_optimizer_state_bytes,
    }
    return limits[kind]


async def sniff(received: Received) -> str:
    """Return the format of a model or batch, and flush its files to disk, so that no lock is held meanwhile.

    Raises:
        EmptyBodyError: if it is empty.
        UnknownFormatError, TruncatedFileError: as ``read_format``.
    """
    file = received.file
    if file.size == 0:
        raise EmptyBodyError(f"The {spoken(file.kind)} is empty.")

    def read_and_sync() -> str:
        found = read_format(file.kind, file.path)
        for upload in received.uploads:
            upload.sync()
        return found

    return await anyio.to_thread.run_sync(read_and_sync)


async def store(context: Context, tenant: str, received: Received) -> tuple[BlobRow, bool]:
    """Check and keep a model or batch, in a separate transaction; returns as ``register``.

    Raises:
        EmptyBodyError, UnknownFormatError, TruncatedFileError: as ``sniff``.
    """
    format_name = await sniff(received)
    async with context.database.transaction() as session:
        stored = await register(session, context, tenant, received, format_name)
    audit.note(resource=f"/v1/{received.file.kind}/{identifier(received.sha256)}")
    return stored


async def register(
    session: AsyncSession,
    context: Context,
    tenant: str,
    received: Received,
    format: str,  # noqa: A002
) -> tuple[BlobRow, bool]:
    """Keep what has passed ``sniff``; return the tenant's row and whether the content is new to the tenant.

    The digest stays locked until the transaction ends, so that no file can be deleted before the row exists.

    Raises:
        TenantStorageFullError: if the tenant would keep more than it may.
    """
    kind, sha256 = received.file.kind, received.sha256
    limit = context.settings.max_stored_bytes_per_tenant
    if limit is not None:
        # Before the digest's, which another upload of the tenant may hold while it waits for this one.
        await lock(session, f"stored {tenant}")
    await lock(session, blob_lock(kind, sha256))
    row = await session.scalar(_query(tenant, kind, sha256))
    kept = row or BlobRow(
        kind=kind,
        sha256=sha256,
        tenant=tenant,
        size=sum(upload.size for upload in received.uploads),
        format=format,
        model_files=received.model_files,
    )
    if row is None and limit is not None:
        await _check_share(session, tenant, kept.size, limit)
    for upload in received.uploads:
        await context.blobs.keep(upload, model=kept.shared_model)
    if row is not None:
        row.uploaded_at = func.now()
        return row, False
    session.add(kept)
    await session.flush()
    return kept, True


async def _check_share(session: AsyncSession, tenant: str, size: int, limit: int) -> None:
    known = sum(part.size for part in (await stored(session, tenant)).values())
    if known + size > limit:
        raise TenantStorageFullError(
            f"Of the {limit} bytes that a tenant may keep, {known} are taken, and {size} more are needed.",
            advice="Delete models and batches that are no longer needed.",
            details={"limit": limit},
        )


async def hold(session: AsyncSession, tenant: str, kind: Kind, blob_id: str) -> None:
    """Prevent a blob of the tenant from being deleted until the transaction ends.

    Raises:
        BlobNotFoundError: if the tenant has no such blob.
    """
    query = _query(tenant, kind, digest(blob_id, kind)).with_for_update(read=True)
    if await session.scalar(query) is None:
        raise not_found(blob_id, kind)


async def stored_files(session: AsyncSession, tenant: str, kind: Kind, sha256: str) -> Sequence[StoredFile]:
    """Return the files of a blob, its own first; if the tenant has no such blob, those of a blob of one file."""
    row = await session.scalar(_query(tenant, kind, sha256))
    return files_of(kind, sha256, None) if row is None else row.files


class Stored(NamedTuple):
    """Number and bytes of the models or batches of a tenant."""

    number: int = 0
    size: int = 0


async def stored(session: AsyncSession, tenant: str) -> dict[Kind, Stored]:
    """Sum up what a tenant has stored, by kind."""
    query = select(BlobRow.kind, func.count(), func.sum(BlobRow.size)).where(BlobRow.tenant == tenant)
    rows = (await session.execute(query.group_by(BlobRow.kind))).all()
    return dict.fromkeys(NOUNS, Stored()) | {cast(Kind, kind): Stored(count, int(size)) for kind, count, size in rows}


CURSOR = r"[0-9]{1,17}-[0-9a-f]{64}"
"""Cursor of a list: when the last blob of a page was first stored, in microseconds, and its digest."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


async def newest(
    context: Context, tenant: str, kind: Kind, *, limit: int, after: str | None = None
) -> tuple[Sequence[BlobRow], str | None]:
    """List the tenant's blobs, those that were stored last first; return a page and the cursor of the next one.

    Args:
        context: Context of the request.
        tenant: Owner of the blobs.
        kind: Kind of the blobs.
        limit: Largest number of blobs.
        after: Cursor of an earlier page, which matches ``CURSOR``.
    """
    place = tuple_(BlobRow.created_at, BlobRow.sha256)
    query = select(BlobRow).where(BlobRow.tenant == tenant, BlobRow.kind == kind)
    if after is not None:
        microseconds, _, sha256 = after.partition("-")
        query = query.where(place < tuple_(literal(_EPOCH + int(microseconds) * _MICROSECOND), literal(sha256)))
    query = query.order_by(BlobRow.created_at.desc(), BlobRow.sha256.desc()).limit(limit + 1)
    async with context.database.transaction() as session:
        rows = (await session.scalars(query)).all()
    last = rows[limit - 1] if len(rows) > limit else None
    cursor = None if last is None else f"{(last.created_at - _EPOCH) // _MICROSECOND}-{last.sha256}"
    return rows[:limit], cursor


async def find(context: Context, tenant: str, kind: Kind, blob_id: str) -> BlobRow:
    """Find a blob of the tenant.

    Raises:
        BlobNotFoundError: if the tenant has no such blob.
    """
    sha256 = digest(blob_id, kind)
    async with context.database.transaction() as session:
        row = await session.scalar(_query(tenant, kind, sha256))
    if row is None:
        raise not_found(blob_id, kind)
    return row


async def delete(
    context: Context,
    tenant: str,
    kind: Kind,
    blob_id: str,
    is_needed: Callable[[AsyncSession, BlobRow], Awaitable[bool]],
) -> None:
    """Delete the tenant's row of a blob, and its files too if no other tenant has sent them.

    Raises:
        BlobNotFoundError: if the tenant has no such blob.
        BlobInUseError: if ``is_needed`` returns True; it is called while the row is locked.
    """
    sha256 = digest(blob_id, kind)
    async with context.database.transaction() as session:
        await lock(session, blob_lock(kind, sha256))
        row = await session.scalar(_query(tenant, kind, sha256).with_for_update())
        if row is None:
            raise not_found(blob_id, kind)
        if await is_needed(session, row):
            raise BlobInUseError(
                f"A queued or running analysis needs {blob_id}.", advice="Cancel it, or wait until it has ended."
            )
        await session.delete(row)
        await leftovers.add(session, [row])
    await leftovers.remove(context.database, context.blobs, kind, sha256)


def _query(tenant: str, kind: Kind, sha256: str) -> Select[BlobRow]:
    return select(BlobRow).where(BlobRow.tenant == tenant, BlobRow.kind == kind, BlobRow.sha256 == sha256)
