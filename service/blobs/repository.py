"""What is known of stored models and batches: the table, its queries, and the resource that both share."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from datetime import datetime
from http import HTTPStatus
from pathlib import Path

import anyio.to_thread
from fastapi import Request, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import BigInteger, DateTime, Select, Text, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from service.context import Context
from service.database.engine import Base, lock
from service.errors import (
    BodyTooLargeError,
    EmptyBodyError,
    MalformedRequestError,
    NotFoundError,
    ServiceError,
    UnsupportedMediaTypeError,
)
from service.http.bodies import TooManyUploadsError, UploadTooSlowError, receive
from service.storage.store import InsufficientStorageError, Kind, StorageUnavailableError, Upload

NOUNS: dict[Kind, str] = {"models": "model", "batches": "batch"}
_IDENTIFIER = re.compile(r"sha256:([0-9a-f]{64})")


class UnknownFormatError(ServiceError):
    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    code = "unknown_format"
    title = "The format of the content is not accepted"


class TruncatedFileError(ServiceError):
    status = HTTPStatus(422)
    code = "truncated_file"
    title = "The file ends before its content does"


class BlobNotFoundError(NotFoundError):
    code = "blob_not_found"
    title = "No such model or batch"


class BlobInUseError(ServiceError):
    status = HTTPStatus.CONFLICT
    code = "blob_in_use"
    title = "An analysis that has not ended needs this file"


UPLOAD_ERRORS = (
    MalformedRequestError,
    BodyTooLargeError,
    UnsupportedMediaTypeError,
    UnknownFormatError,
    EmptyBodyError,
    TruncatedFileError,
    UploadTooSlowError,
    TooManyUploadsError,
    InsufficientStorageError,
    StorageUnavailableError,
)


class BlobRow(Base):
    __tablename__ = "blobs"

    kind: Mapped[str] = mapped_column(Text, primary_key=True)
    sha256: Mapped[str] = mapped_column(Text, primary_key=True)
    tenant: Mapped[str] = mapped_column(Text, primary_key=True)
    """One row for each tenant that has sent the content; the file is shared, and goes with the last row."""
    size: Mapped[int] = mapped_column(BigInteger)
    format: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    uploaded_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    """When the tenant last sent the content."""


class Blob(BaseModel):
    """A stored file, named by its content."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
                    "size": 407812,
                    "format": "onnx",
                    "created_at": "2026-01-05T09:30:00Z",
                }
            ]
        }
    )

    id: str = Field(description="`sha256:` and the hex digest of the content.", pattern=_IDENTIFIER.pattern)
    size: int = Field(description="Bytes.")
    format: str = Field(description="What the content was recognised as.")
    created_at: datetime = Field(description="When the content was first stored.")

    @classmethod
    def of(cls, row: BlobRow) -> Blob:
        return cls(id=identifier(row.sha256), size=row.size, format=row.format, created_at=row.created_at)


def identifier(sha256: str) -> str:
    return f"sha256:{sha256}"


def digest(blob_id: str, kind: Kind) -> str:
    """The hex digest in an identifier.

    Raises:
        BlobNotFoundError: for text that no identifier looks like.
    """
    match = _IDENTIFIER.fullmatch(blob_id)
    if match is None:
        raise not_found(blob_id, kind)
    return match[1]


def not_found(blob_id: str, kind: Kind) -> BlobNotFoundError:
    return BlobNotFoundError(
        f"There is no {NOUNS[kind]} {blob_id[:80]}.",
        advice=f"Upload it with POST /v1/{kind}; identifiers are sha256: and 64 hex digits.",
    )


async def sniff(upload: Upload, read_format: Callable[[Path], str]) -> str:
    """The format of a complete upload, whose content is on the disk itself then: no lock is held for that.

    Raises:
        EmptyBodyError: when nothing was written.
        UnknownFormatError, TruncatedFileError: as ``read_format`` finds.
    """
    if upload.size == 0:
        raise EmptyBodyError(f"The {NOUNS[upload.kind]} has no bytes.")

    def read_and_sync() -> str:
        found = read_format(upload.path)
        upload.sync()
        return found

    return await anyio.to_thread.run_sync(read_and_sync)


async def register(
    session: AsyncSession,
    context: Context,
    tenant: str,
    upload: Upload,
    format: str,  # noqa: A002
) -> tuple[BlobRow, bool]:
    """Keeps an upload, after ``sniff``, and the tenant's row of it; says whether the content is new to the tenant.

    The name stays locked until the transaction ends, so that a deletion can't fall between file and row.
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
    """Keeps a blob of the tenant's from being deleted until the transaction ends.

    Raises:
        BlobNotFoundError: when the tenant has none of this name.
    """
    query = _query(tenant, kind, digest(blob_id, kind)).with_for_update(read=True)
    if await session.scalar(query) is None:
        raise not_found(blob_id, kind)


async def upload_blob(
    request: Request,
    response: Response,
    context: Context,
    tenant: str,
    kind: Kind,
    limit: int,
    read_format: Callable[[Path], str],
) -> Blob:
    """POST: stores the raw body; 201 for content that is new to the tenant, 200 for what it has sent before."""
    with context.blobs.receive(kind) as upload:
        await receive(request, upload, limit, NOUNS[kind])
        format_name = await sniff(upload, read_format)
        async with context.database.transaction() as session:
            row, is_new = await register(session, context, tenant, upload, format_name)
    response.status_code = HTTPStatus.CREATED if is_new else HTTPStatus.OK
    response.headers["Location"] = f"/v1/{kind}/{identifier(row.sha256)}"
    return Blob.of(row)


async def get_blob(context: Context, tenant: str, kind: Kind, blob_id: str) -> Blob:
    """GET and HEAD: what is known of a stored file of the tenant's."""
    sha256 = digest(blob_id, kind)
    async with context.database.transaction() as session:
        row = await session.scalar(_query(tenant, kind, sha256))
    if row is None:
        raise not_found(blob_id, kind)
    return Blob.of(row)


async def delete_blob(
    context: Context,
    tenant: str,
    kind: Kind,
    blob_id: str,
    is_needed: Callable[[AsyncSession, BlobRow], Awaitable[bool]],
) -> None:
    """Forgets that the tenant has sent a file, and the file itself if no other tenant has.

    Raises:
        BlobNotFoundError: when the tenant has none of this name.
        BlobInUseError: when ``is_needed``, asked while nobody else can take hold of the row, says so.
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
    # The file goes after the row is gone for certain: a file without a row is only waste, a row without a file is
    # a lie. An upload that has come in between keeps it.
    async with context.database.transaction() as session:
        await lock(session, _lock_name(kind, sha256))
        anyones = select(BlobRow.tenant).where(BlobRow.kind == kind, BlobRow.sha256 == sha256).limit(1)
        if await session.scalar(anyones) is None:
            await context.blobs.remove(kind, sha256)


def _query(tenant: str, kind: Kind, sha256: str) -> Select[BlobRow]:
    return select(BlobRow).where(BlobRow.tenant == tenant, BlobRow.kind == kind, BlobRow.sha256 == sha256)


def _lock_name(kind: Kind, sha256: str) -> str:
    return f"blob {kind}/{sha256}"
