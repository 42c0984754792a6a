"""/v1/models and /v1/batches: files stored by content, with the same operations on both."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi import Path as PathParameter
from sqlalchemy.ext.asyncio import AsyncSession

from service.blobs import repository
from service.blobs.errors import UPLOAD_ERRORS, BlobInUseError, BlobNotFoundError
from service.blobs.parts import MODEL_DATA, PART_SCHEMAS, Parts, missing_part
from service.blobs.repository import Received, identifier, max_bytes, spoken
from service.blobs.schemas import Blob, BlobPage
from service.blobs.table import NOUNS, BlobRow
from service.context import Context, InContext
from service.errors import InvalidRequestError, declare
from service.http.bodies import receive
from service.http.headers import media_type
from service.http.multipart import InvalidFormError
from service.http.openapi import binary_body
from service.http.security import InTenant
from service.kit import audit
from service.storage.store import Kind

_CONTENT: dict[Kind, str] = {
    "models": "The raw bytes of an ONNX file, or of a PyTorch 2 or TorchScript archive. A model that keeps its weights"
    " in further files is sent as multipart/form-data: the part `model`, and a part `model_data` for each of these"
    " files.",
    "batches": "The raw bytes of an .npz or .safetensors file with arrays x and y.",
    "optimizer_states": "The raw bytes of a .safetensors file with the second moments of an optimizer.",
}
PageSize = Annotated[int, Query(ge=1, le=200, description="Largest number of items on a page.")]
Cursor = Annotated[
    str | None, Query(pattern=f"^{repository.CURSOR}$", description="Cursor from `next` of the previous page.")
]
_FORM = {
    "type": "object",
    "properties": {name: PART_SCHEMAS[name] for name in ("model", MODEL_DATA)},
    "required": ["model"],
}


def blob_router(kind: Kind, is_needed: Callable[[AsyncSession, BlobRow], Awaitable[bool]]) -> APIRouter:
    """Make the router of one kind of file.

    Args:
        kind: Kind of the files, and the last segment of the path.
        is_needed: Whether an analysis that has not ended needs the file; called before a file is deleted.
    """
    router, noun, is_model = APIRouter(prefix=f"/v1/{kind}", tags=[kind]), NOUNS[kind], kind == "models"
    shown, one_of = spoken(kind), article(spoken(kind))
    path_id = PathParameter(
        alias=f"{noun}_id",
        description="`sha256:` and the hex digest of the content, as the upload returned it.",
        examples=["sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"],
    )
    one = f"/{{{noun}_id}}"

    @router.post(
        "",
        name=f"upload_{noun}",
        status_code=HTTPStatus.CREATED,
        summary=f"Upload {one_of}",
        description=f"{_CONTENT[kind]} The same bytes are stored once.",
        responses={
            200: {"model": Blob, "description": "The content is already stored."},
            **declare(*UPLOAD_ERRORS, *([InvalidFormError] if is_model else [])),
        },
        openapi_extra=binary_body(f"The {shown} file.", form=_FORM if is_model else None),
    )
    async def upload(request: Request, response: Response, context: InContext, tenant: InTenant) -> Blob:
        if is_model and media_type(request.headers) == "multipart/form-data":
            row, is_new = await _store_form(request, context, tenant)
        else:
            row, is_new = await _store_body(request, context, tenant, kind)
        response.status_code = HTTPStatus.CREATED if is_new else HTTPStatus.OK
        response.headers["Location"] = f"/v1/{kind}/{identifier(row.sha256)}"
        return Blob.of(row)

    @router.get(
        "",
        name=f"list_{kind}",
        summary=f"List {kind.replace('_', ' ')}, the newest first",
        description=f"`created_at`, when {one_of} was first stored, is what counts.",
        responses=declare(InvalidRequestError),
    )
    async def newest(context: InContext, tenant: InTenant, limit: PageSize = 50, after: Cursor = None) -> BlobPage:
        rows, cursor = await repository.newest(context, tenant, kind, limit=limit, after=after)
        following = None if cursor is None else f"/v1/{kind}?limit={limit}&after={cursor}"
        return BlobPage(items=[Blob.of(row) for row in rows], next=following)

    @router.get(one, name=f"get_{noun}", summary=f"Describe {one_of}", responses=declare(BlobNotFoundError))
    @router.head(
        one,
        name=f"get_{noun}",
        summary=f"Check whether {one_of} is stored",
        responses=declare(BlobNotFoundError),
    )
    async def get(context: InContext, tenant: InTenant, blob_id: str = path_id) -> Blob:
        return Blob.of(await repository.find(context, tenant, kind, blob_id))

    @router.delete(
        one,
        name=f"delete_{noun}",
        status_code=HTTPStatus.NO_CONTENT,
        summary=f"Delete {one_of}",
        description="Reports produced from it are kept.",
        responses=declare(BlobNotFoundError, BlobInUseError),
    )
    async def delete(context: InContext, tenant: InTenant, blob_id: str = path_id) -> None:
        await repository.delete(context, tenant, kind, blob_id, is_needed)
        audit.note()

    return router


def article(noun: str) -> str:
    """Return a noun with its indefinite article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


async def _store_form(request: Request, context: Context, tenant: str) -> tuple[BlobRow, bool]:
    """Store the model in a form, with its data files; return its row, and whether it is new."""
    with Parts(context, {}, files=("model",), advice="Send parts model and model_data.") as parts:
        await parts.receive(request)
        files = parts.received()
        if "model" not in files:
            raise missing_part("model")
        return await repository.store(context, tenant, files["model"])


async def _store_body(request: Request, context: Context, tenant: str, kind: Kind) -> tuple[BlobRow, bool]:
    """Store the file that is the whole body; return its row, and whether it is new."""
    with context.blobs.receive(kind) as file:
        await receive(request, file, max_bytes(context.settings, kind), spoken(kind))
        return await repository.store(context, tenant, Received(file))
