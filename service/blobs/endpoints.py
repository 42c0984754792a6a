"""/v1/models and /v1/batches: files stored by content, with the same operations on both."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi import Path as PathParameter
from sqlalchemy.ext.asyncio import AsyncSession

from service.blobs.formats import batch_format, model_format
from service.blobs.repository import (
    NOUNS,
    UPLOAD_ERRORS,
    Blob,
    BlobInUseError,
    BlobNotFoundError,
    BlobRow,
    delete_blob,
    get_blob,
    upload_blob,
)
from service.context import Context, InContext
from service.errors import declare
from service.http.openapi import binary_body
from service.http.security import InTenant
from service.storage.store import Kind

IsNeeded = Callable[[AsyncSession, BlobRow], Awaitable[bool]]
"""Whether an analysis that has not ended needs the file."""


def model_router(is_needed: IsNeeded) -> APIRouter:
    return _router(
        "models",
        "The raw bytes of an ONNX file or a TorchScript archive.",
        lambda context: context.settings.max_model_bytes,
        model_format,
        is_needed,
    )


def batch_router(is_needed: IsNeeded) -> APIRouter:
    return _router(
        "batches",
        "The raw bytes of an .npz or .safetensors file with arrays x and y.",
        lambda context: context.settings.max_batch_bytes,
        batch_format,
        is_needed,
    )


def _router(
    kind: Kind,
    content: str,
    limit: Callable[[Context], int],
    read_format: Callable[[Path], str],
    is_needed: IsNeeded,
) -> APIRouter:
    """The resource of one kind of file.

    Args:
        kind: Also the last part of its path.
        content: Describes the body of an upload.
        limit: Largest body in bytes.
        read_format: Tells a file's format; raises what it is not.
        is_needed: Asked before a file is deleted.
    """
    router, noun = APIRouter(prefix=f"/v1/{kind}", tags=[kind]), NOUNS[kind]
    identifier = PathParameter(
        alias=f"{noun}_id",
        description="`sha256:` and the hex digest of the content, as the upload returned it.",
        examples=["sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"],
    )
    one = f"/{{{noun}_id}}"

    @router.post(
        "",
        name=f"upload_{noun}",
        status_code=HTTPStatus.CREATED,
        summary=f"Upload a {noun}",
        description=f"{content} The same bytes are stored once.",
        responses={200: {"model": Blob, "description": "The content is already stored."}, **declare(*UPLOAD_ERRORS)},
        openapi_extra=binary_body(f"The {noun} file."),
    )
    async def upload(request: Request, response: Response, context: InContext, tenant: InTenant) -> Blob:
        return await upload_blob(request, response, context, tenant, kind, limit(context), read_format)

    @router.get(one, name=f"get_{noun}", summary=f"Describe a {noun}", responses=declare(BlobNotFoundError))
    @router.head(
        one, name=f"get_{noun}", summary=f"Check whether a {noun} is stored", responses=declare(BlobNotFoundError)
    )
    async def get(context: InContext, tenant: InTenant, blob_id: str = identifier) -> Blob:
        return await get_blob(context, tenant, kind, blob_id)

    @router.delete(
        one,
        name=f"delete_{noun}",
        status_code=HTTPStatus.NO_CONTENT,
        summary=f"Delete a {noun}",
        description="Reports produced from it stay.",
        responses=declare(BlobNotFoundError, BlobInUseError),
    )
    async def delete(context: InContext, tenant: InTenant, blob_id: str = identifier) -> None:
        await delete_blob(context, tenant, kind, blob_id, is_needed)

    return router
