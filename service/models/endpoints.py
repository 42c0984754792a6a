"""/v1/models: trained classifiers, stored by content."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter, Request, Response

from service.analyses.repository import uses_blob
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
from service.models.formats import model_format
from service.openapi import binary_body
from service.security import InTenant

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.post(
    "",
    status_code=HTTPStatus.CREATED,
    summary="Upload a model",
    description="The raw bytes of an ONNX file or a TorchScript archive. The same bytes are stored once.",
    responses={200: {"model": Blob, "description": "The content was here already."}, **declare(*UPLOAD_ERRORS)},
    openapi_extra=binary_body("The model file."),
)
async def upload_model(request: Request, response: Response, context: InContext, tenant: InTenant) -> Blob:
    limit = context.settings.max_model_bytes
    return await upload_blob(request, response, context, tenant, "models", limit, model_format)


@router.get("/{model_id}", summary="Describe a model", responses=declare(BlobNotFoundError))
@router.head("/{model_id}", summary="Ask whether a model is stored", responses=declare(BlobNotFoundError))
async def get_model(model_id: BlobId, context: InContext, tenant: InTenant) -> Blob:
    return await get_blob(context, tenant, "models", model_id)


@router.delete(
    "/{model_id}",
    status_code=HTTPStatus.NO_CONTENT,
    summary="Delete a model",
    description="Reports made from it stay.",
    responses=declare(BlobNotFoundError, BlobInUseError),
)
async def delete_model(model_id: BlobId, context: InContext, tenant: InTenant) -> None:
    await delete_blob(context, tenant, "models", model_id, uses_blob)
