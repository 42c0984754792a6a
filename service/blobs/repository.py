"""Stored models and batches: the table, and every read and change of it."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from datetime import datetime

import anyio.to_thread
from sqlalchemy import BigInteger, DateTime, Select, Text, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from service.blobs.errors import BlobInUseError, BlobNotFoundError
from service.blobs.formats import read_format
from service.context import Context
from service.database.engine import Base, lock
from service.errors import EmptyBodyError
from service.settings import Settings
from service.storage.store import Kind, Upload

NOUNS: dict[Kind, str] = {"models": "model", "batches": "batch"}
IDENTIFIER = re.compile(r"sha256:([0-9a-f]{64})")


class BlobRow(Base):
    __tablename__ = "blobs"

    kind: Mapped[str] = mapped_column(Text, primary_key=True)
    sha256: Mapped[str] = mapped_column(Text, primary_key=True)
    tenant: Mapped[str] = mapped_column(Text, primary_key=True)
    """One row per tenant that has sent the content; they share the file, which is deleted with the last row."""
    size: Mapped[int] = mapped_column(BigInteger)
    format: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    uploaded_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    """When the tenant last sent the content."""


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


def not_found(blob_id: str, kind: Kind) -> BlobNotFoundError:
    return BlobNotFoundError(
        f"There is no {NOUNS[kind]} {blob_id[:80]}.",
        advice=f"Upload it with POST /v1/{kind}; identifiers are sha256: and 64 hex digits.",
    )


def max_bytes(settings: Settings, kind: Kind) -> int:
    """Size of the largest file of this kind that is accepted."""
    return settings.max_model_bytes if kind == "models" else settings.max_batch_bytes


async def sniff(upload: Upload) -> str:
    """Return the format of a complete upload, and flush its content to disk, so that no lock is held meanwhile.

    Raises:
        EmptyBodyError: if the upload is empty.
        UnknownFormatError, TruncatedFileError: as ``read_format``.
    """
    if upload.size == 0:
        raise EmptyBodyError(f"The {NOUNS[upload.kind]} is empty.")

    def read_and_sync() -> str:
        found = read_format(upload.kind, upload.path)
        upload.sync()
        return found

    return await anyio.to_thread.run_sync(read_and_sync)


async def store(context: Context, tenant: str, upload: Upload) -> tuple[BlobRow, bool]:
    """Check and keep an upload, in a separate transaction; returns as ``register``.

    Raises:
        EmptyBodyError, UnknownFormatError, TruncatedFileError: as ``sniff``.
    """
    format_name = await sniff(upload)
    async with context.database.transaction() as session:
        return await register(session, context, tenant, upload, format_name)


async def register(
    session: AsyncSession,
    context: Context,
    tenant: str,
    upload: Upload,
    format: str,  # noqa: A002
) -> tuple[BlobRow, bool]:
    """Keep an upload that has passed ``sniff``; return the tenant's row and whether the content is new to the tenant.

    The digest stays locked until the transaction ends, so that the file can't be deleted before its row exists.
    """
    kind, sha256 = upload.kind, upload.sha256
    await lock(session, _lock_name(kind, sha256))
    row = await session.scalar(_query(tenant, kind, sha256))
    await context.blobs.keep(upload)
    if row is not None:
        row.uploaded_at = func.now()
        return row, False
    row = BlobRow(kind=kind, sha256=sha256, tenant=tenant, size=upload.size, format=format)
    session.add(row)
    await session.flush()
    return row, True


async def hold(session: AsyncSession, tenant: str, kind: Kind, blob_id: str) -> None:
    """Prevent a blob of the tenant from being deleted until the transaction ends.

    Raises:
        BlobNotFoundError: if the tenant has no such blob.
    """
    query = _query(tenant, kind, digest(blob_id, kind)).with_for_update(read=True)
    if await session.scalar(query) is None:
        raise not_found(blob_id, kind)


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
    """Delete the tenant's row of a blob, and the file too if no other tenant has sent it.

    Raises:
        BlobNotFoundError: if the tenant has no such blob.
        BlobInUseError: if ``is_needed`` returns True; it is called while the row is locked.
    """
    sha256 = digest(blob_id, kind)
    async with context.database.transaction() as session:
        await lock(session, _lock_name(kind, sha256))
        row = await session.scalar(_query(tenant, kind, sha256).with_for_update())
        if row is None:
            raise not_found(blob_id, kind)
        if await is_needed(session, row):
            raise BlobInUseError(
                f"A queued or running analysis needs {blob_id}.", advice="Cancel it, or wait until it has ended."
            )
        await session.delete(row)
    # The file is deleted only once the row's deletion is committed: a file without a row is only waste, a row without
    # a file is a lie. An upload that arrived in between keeps the file.
    async with context.database.transaction() as session:
        await lock(session, _lock_name(kind, sha256))
        anyones = select(BlobRow.tenant).where(BlobRow.kind == kind, BlobRow.sha256 == sha256).limit(1)
        if await session.scalar(anyones) is None:
            await context.blobs.remove(kind, sha256)


def _query(tenant: str, kind: Kind, sha256: str) -> Select[BlobRow]:
    return select(BlobRow).where(BlobRow.tenant == tenant, BlobRow.kind == kind, BlobRow.sha256 == sha256)


def _lock_name(kind: Kind, sha256: str) -> str:
    return f"blob {kind}/{sha256}"
