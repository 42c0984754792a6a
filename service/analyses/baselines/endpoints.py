"""/v1/baselines: names for analyses that others are compared with."""

from __future__ import annotations

import re
from datetime import datetime
from http import HTTPStatus
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from service.analyses import errors
from service.analyses.baselines import promotion
from service.analyses.baselines.references import NAME
from service.analyses.service import parse_id
from service.analyses.table import BaselineRow
from service.context import InContext
from service.errors import (
    BodyTooLargeError,
    InternalError,
    InvalidRequestError,
    MalformedRequestError,
    UnsupportedMediaTypeError,
    declare,
)
from service.fields import FieldError
from service.http.bodies import UploadTooSlowError, read
from service.http.documents import parse
from service.http.security import InTenant
from service.kit import audit

router = APIRouter(prefix="/v1/baselines", tags=["baselines"])

Name = Annotated[str, Path(pattern=f"^{NAME}$", max_length=64, description="Name of the baseline.", examples=["main"])]


class BaselinePromotion(BaseModel):
    """Which analysis to make a baseline."""

    model_config = ConfigDict(extra="forbid")

    analysis: UUID = Field(description="Identifier of an analysis that has succeeded.")
    allow_older: bool = Field(False, description="Replace a baseline even if it was requested later.")


class BaselineLinks(BaseModel):
    analysis: str
    report: str


class Baseline(BaseModel):
    """An analysis that others are compared with, under a name."""

    name: str
    analysis: UUID
    promoted_at: datetime
    replaced: UUID | None = Field(
        None, description="In the response to a promotion, the analysis that was the baseline before."
    )
    links: BaselineLinks

    @classmethod
    def of(cls, row: BaselineRow, replaced: UUID | None = None) -> Baseline:
        url = f"/v1/analyses/{row.analysis}"
        links = BaselineLinks(analysis=url, report=f"{url}/report")
        return cls(name=row.name, analysis=row.analysis, promoted_at=row.promoted_at, replaced=replaced, links=links)


class BaselineList(BaseModel):
    """All baselines of a tenant, by name."""

    items: list[Baseline]


@router.get("", summary="List the baselines")
async def list_baselines(context: InContext, tenant: InTenant) -> BaselineList:
    async with context.database.transaction() as session:
        return BaselineList(items=[Baseline.of(row) for row in await promotion.listed(session, tenant)])


@router.get(
    "/{name}",
    summary="Get a baseline",
    responses=declare(errors.BaselineNotFoundError, InvalidRequestError),
)
async def get_baseline(name: Name, context: InContext, tenant: InTenant) -> Baseline:
    async with context.database.transaction() as session:
        return Baseline.of(await promotion.find(session, tenant, name))


@router.put(
    "/{name}",
    response_model=Baseline,
    summary="Make an analysis the baseline",
    description="Creates the baseline (201) or replaces it (200). Its report is kept as long as it is a baseline. An"
    " analysis that was requested before the present baseline replaces it only with `allow_older`.",
    responses={
        201: {"model": Baseline, "description": "The baseline is new."},
        **declare(
            *(MalformedRequestError, BodyTooLargeError, UnsupportedMediaTypeError, UploadTooSlowError, InternalError),
            *(InvalidRequestError, errors.AnalysisNotFoundError, errors.ReportNotReadyError, errors.NoReportError),
            *(errors.BaselineDecidedError, errors.BaselineNewerError, errors.BaselinesFullError),
        ),
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{BaselinePromotion.__name__}"}}},
        }
    },
)
async def put_baseline(
    name: Name, request: Request, response: Response, context: InContext, tenant: InTenant
) -> Baseline:
    wanted = parse(BaselinePromotion, await read(request, context.settings.max_request_bytes))
    check_name(name)
    made = await promotion.promote(context, tenant, name, wanted.analysis, allow_older=wanted.allow_older)
    response.status_code = HTTPStatus.CREATED if made.is_new else HTTPStatus.OK
    response.headers["Location"] = f"/v1/baselines/{name}"
    return Baseline.of(made.row, made.replaced)


@router.delete(
    "/{name}",
    status_code=HTTPStatus.NO_CONTENT,
    summary="Delete a baseline",
    description="Its analysis and its report stay, but can then be deleted.",
    responses=declare(errors.BaselineNotFoundError, InvalidRequestError),
)
async def delete_baseline(name: Name, context: InContext, tenant: InTenant) -> None:
    async with context.database.transaction() as session:
        await session.delete(await promotion.find(session, tenant, name))
    audit.note()


def check_name(name: str) -> None:
    """Raise InvalidRequestError for what is no name, or looks like an analysis's identifier: references take both."""
    if not re.fullmatch(NAME, name) or parse_id(name.lower()) is not None:
        text = "A name has up to 64 letters, digits, '_', '.' and '-', and not the form of an analysis's identifier."
        error = FieldError(pointer="/path/name", detail=text)
        raise InvalidRequestError("The name of the baseline can't be used.", errors=[error])
