"""/v1/batches: labelled samples, stored by content."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter, Request, Response

from service.analyses.repository import uses_blob
from service.batches.formats import batch_format
from service.blobs import (
    UPLOAD_ERRORS,
    Blob,
    BlobId,
    BlobInUseError,
    BlobNotFoundError,
    delete_blob,
    get_blob,
    upload_blob,
)
from service.context import InContext
from service.errors import declare
from service.openapi import binary_body
from service.security import InTenant

router = APIRouter(prefix="/v1/batches", tags=["batches"])


@router.post(
    "",
    status_code=HTTPStatus.CREATED,
    summary="Upload a batch",
    description="The raw bytes of an .npz or .safetensors file with arrays x and y. The same bytes are stored once.",
    responses={200: {"model": Blob, "description": "The content was here already."}, **declare(*UPLOAD_ERRORS)},
    openapi_extra=binary_body("The batch file."),
)
async def upload_batch(request: Request, response: Response, context: InContext, tenant: InTenant) -> Blob:
    limit = context.settings.max_batch_bytes
    return await upload_blob(request, response, context, tenant, "batches", limit, batch_format)


@router.get("/{batch_id}", summary="Describe a batch", responses=declare(BlobNotFoundError))
@router.head("/{batch_id}", summary="Ask whether a batch is stored", responses=declare(BlobNotFoundError))
async def get_batch(batch_id: BlobId, context: InContext, tenant: InTenant) -> Blob:
    return await get_blob(context, tenant, "batches", batch_id)


@router.delete(
    "/{batch_id}",
    status_code=HTTPStatus.NO_CONTENT,
    summary="Delete a batch",
    description="Reports made from it stay.",
    responses=declare(BlobNotFoundError, BlobInUseError),
)
async def delete_batch(batch_id: BlobId, context: InContext, tenant: InTenant) -> None:
    await delete_blob(context, tenant, "batches", batch_id, uses_blob)
