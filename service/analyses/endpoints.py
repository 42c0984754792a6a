"""/v1/analyses: request an analysis, follow it, fetch its report."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from http import HTTPStatus
from typing import Annotated, Any
from urllib.parse import urlencode
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from service.analyses import errors, representations, service
from service.analyses.listing import CURSOR, NEWEST, Listing, Sort, listed
from service.analyses.representations import NotAcceptableError, negotiated, represent
from service.analyses.schemas import (
    LABEL_KEY,
    LABEL_VALUE,
    PLAIN,
    Analysis,
    AnalysisPage,
    AnalysisRequest,
    FormRequest,
)
from service.analyses.submission import Caller, submit
from service.analyses.table import FINAL_STATES, AnalysisRow, State
from service.analyses.waiting import wait_until_ended
from service.analyses.yardsticks import yardstick_of
from service.blobs.errors import UPLOAD_ERRORS, BlobNotFoundError
from service.blobs.parts import PART_SCHEMAS
from service.blobs.repository import IDENTIFIER, hex_digest
from service.context import InContext
from service.errors import InternalError, InvalidRequestError, declare
from service.http.headers import described, matches, preferred_wait
from service.http.multipart import InvalidFormError
from service.http.security import InTenant
from wsb_engine.report import Report

_CREATE = """\
Send either JSON that names an uploaded model and batch, or one multipart request with both files. A model that keeps
its weights in further files (ONNX external data) needs one part `model_data` for each of them, under its file name.

With `Prefer: wait=N` the response is the report itself (201) if it is ready in time. Otherwise it is the analysis
(202); follow it at `Location`. If the analysis fails while the request waits, the response is a problem that says why.
If too many requests of the tenant wait already, this one does not (`Preference-Applied: wait=0`).

If this version of the engine has already produced a report on the same model, batch and options, the new analysis
reuses it at once (`reused_from` names the analysis that produced it); `fresh: true` runs the analysis again.
"""

router = APIRouter(prefix="/v1/analyses", tags=["analyses"])


def _analysis_id(analysis_id: Annotated[str, Path(description="Identifier of the analysis.")]) -> UUID:
    found = service.parse_id(analysis_id)
    if found is None:
        raise errors.not_found(analysis_id)
    return found


AnalysisId = Annotated[UUID, Depends(_analysis_id)]
IfNoneMatch = Annotated[str | None, Header(description="Entity tag of the client's copy.")]
# Not in the specification, where the content of the response lists what can be accepted.
Accept = Annotated[str | None, Header(include_in_schema=False)]
Prefer = Annotated[
    str | None,
    Header(
        description="`wait=N`: respond with the report if the analysis ends within N seconds, at most 60.",
        examples=["wait=30"],
    ),
]
IdempotencyKey = Annotated[
    str | None,
    Header(
        description="A unique name that you choose for this request. Repeating the request with the same key returns"
        " the same analysis, as long as that is kept.",
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        examples=["3b1f9a52-epoch-12"],
    ),
]
States = Annotated[
    list[State] | None, Query(alias="state", description="Return only analyses in one of these states.", max_length=7)
]
Labels = Annotated[
    list[Annotated[str, Query(pattern=f"^{LABEL_KEY}(:{LABEL_VALUE})?$")]] | None,
    Query(
        alias="label",
        description="Return only analyses with this label: `key:value`, or `key` with any value. Repeatable.",
        max_length=32,
    ),
]
NameFilter = Annotated[
    str | None,
    Query(
        alias="name",
        description="Return only analyses whose name, or a file name of which, contains this text in any case.",
        pattern=f"^{PLAIN}$",
    ),
]
ModelFilter = Annotated[
    str | None, Query(alias="model", description="Return only analyses of this model.", pattern=IDENTIFIER.pattern)
]
BatchFilter = Annotated[
    str | None, Query(alias="batch", description="Return only analyses on this batch.", pattern=IDENTIFIER.pattern)
]
Order = Annotated[
    Sort,
    Query(
        alias="sort",
        description="Order: by creation, or by a number of the report (of `lambda_max`, its upper end); `-` puts the"
        " largest first. Analyses without the number come last, and of equals the newest first.",
    ),
]
PageSize = Annotated[int, Query(ge=1, le=200, description="Largest number of analyses on a page.")]
Cursor = Annotated[
    str | None, Query(pattern=f"^{CURSOR}$", description="Cursor from `next` of the previous page, in the same order.")
]


def _request_body() -> dict[str, Any]:
    def reference(model: type) -> dict[str, str]:
        return {"$ref": f"#/components/schemas/{model.__name__}"}

    form = {"type": "object", "properties": {**PART_SCHEMAS, "request": reference(FormRequest)}}
    encoding = {"request": {"contentType": "application/json"}}
    return {
        "required": True,
        "content": {
            "application/json": {"schema": reference(AnalysisRequest)},
            "multipart/form-data": {"schema": form, "encoding": encoding},
        },
    }


@router.post(
    "",
    status_code=HTTPStatus.CREATED,
    response_model=Report,
    summary="Analyse a model on a batch",
    description=_CREATE,
    responses={
        201: {
            "description": "The report.",
            "headers": described(
                {
                    "Location": "Address of the analysis.",
                    "Content-Location": "Address of the report.",
                    "ETag": "Entity tag of the report.",
                    "Preference-Applied": "The wait that was granted.",
                    "Idempotency-Replayed": "`true` if the analysis is that of an earlier request.",
                }
            ),
        },
        202: {
            "model": Analysis,
            "description": "Accepted; follow the analysis at Location.",
            "headers": described(
                {
                    "Location": "Address of the analysis.",
                    "Retry-After": "Seconds to wait before polling again; absent once the analysis has ended.",
                    "Preference-Applied": "The wait that was granted, if one was requested.",
                    "Idempotency-Replayed": "`true` if the analysis is that of an earlier request.",
                }
            ),
        },
        **declare(
            *UPLOAD_ERRORS,
            *(
                BlobNotFoundError,
                errors.AnalysisNotFoundError,
                errors.ReportNotReadyError,
                errors.NoReportError,
                InvalidRequestError,
                InvalidFormError,
                errors.AnalysisNotFoundError,
                errors.BaselineNotFoundError,
                errors.ReportNotReadyError,
                errors.NoReportError,
                errors.PolicyMissingError,
                errors.BaselineDecidedError,
                errors.DeviceUnavailableError,
                errors.IdempotencyMismatchError,
                errors.QueueFullError,
                errors.TenantQueueFullError,
                InternalError,
            ),
            *(
                errors.AnalysisRejectedError,
                errors.AnalysisCrashedError,
                errors.AnalysisTimedOutError,
                errors.AnalysisCancelledError,
            ),
        ),
    },
    openapi_extra={"requestBody": _request_body()},
)
async def create_analysis(
    request: Request,
    context: InContext,
    tenant: InTenant,
    prefer: Prefer = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    submission = await submit(request, context, Caller(tenant, idempotency_key))
    wait = preferred_wait(prefer, context.settings.max_wait_seconds)
    with context.waits.requested(tenant) if wait else nullcontext(True) as granted:
        if not granted:
            wait = 0.0  # to refuse the request would throw away what was uploaded
        row, report = await wait_until_ended(context, tenant, submission.analysis, wait or 0)
    url = f"/v1/analyses/{row.id}"
    headers = {"Location": url}
    if submission.replayed:
        headers["Idempotency-Replayed"] = "true"
    if wait is not None:
        headers["Preference-Applied"] = f"wait={wait:g}"
        if row.state == "succeeded":
            report = service.existing(report)
            headers |= {"Content-Location": f"{url}/report", "ETag": f'"{report.sha256}"'}
            return Response(report.body, HTTPStatus.CREATED, headers, media_type="application/json")
        if row.state in FINAL_STATES:
            problem = errors.ended(row)
            problem.headers |= headers
            raise problem
    if row.state not in FINAL_STATES:
        headers["Retry-After"] = "1"
    return JSONResponse(Analysis.of(row).model_dump(mode="json"), HTTPStatus.ACCEPTED, headers)


@router.get("", response_model=AnalysisPage, summary="List analyses", responses=declare(InvalidRequestError))
async def list_analyses(
    context: InContext,
    tenant: InTenant,
    state: States = None,
    label: Labels = None,
    name: NameFilter = None,
    model: ModelFilter = None,
    batch: BatchFilter = None,
    sort: Order = NEWEST,
    limit: PageSize = 50,
    after: Cursor = None,
) -> Response:
    listing = Listing(
        states=state or (),
        labels=label or (),
        name=name or "",
        model=hex_digest(model),
        batch=hex_digest(batch),
        sort=sort,
    )
    page = await listed(context, tenant, listing, limit=limit, after=after)
    following = None
    if page.after is not None:
        query = [*(("state", item) for item in listing.states), *(("label", item) for item in listing.labels)]
        query += [(key, value) for key, value in (("name", name), ("model", model), ("batch", batch)) if value]
        query += [("sort", sort)] if sort != NEWEST else []
        following = f"/v1/analyses?{urlencode([*query, ('limit', str(limit)), ('after', page.after)])}"
    # On a thread: two hundred verdicts on two hundred rules are many megabytes.
    return Response(await run_in_threadpool(_page, page.rows, following), media_type="application/json")


def _page(rows: Sequence[AnalysisRow], following: str | None) -> str:
    return AnalysisPage(items=[Analysis.of(row) for row in rows], next=following).model_dump_json()


@router.get(
    "/{analysis_id}",
    response_model=Analysis,
    summary="Get the state of an analysis",
    description="Returns 200 in every state; the body of a failed analysis has its error.",
    responses={
        200: {"headers": described({"ETag": "Changes with the analysis."})},
        304: {"description": "The analysis has not changed since the copy named by If-None-Match."},
        **declare(errors.AnalysisNotFoundError),
    },
)
async def get_analysis(
    analysis: AnalysisId, context: InContext, tenant: InTenant, if_none_match: IfNoneMatch = None
) -> Response:
    async with context.database.transaction() as session:
        row = await service.find(session, tenant, analysis)
    headers = {"ETag": f'"{row.revision}-{row.id.hex}"', "Cache-Control": "private, no-cache"}
    if matches(if_none_match, headers["ETag"]):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return JSONResponse(Analysis.of(row).model_dump(mode="json"), headers=headers)


@router.get(
    "/{analysis_id}/report",
    response_model=Report,
    summary="Fetch the report",
    description="The JSON never changes. Markdown, HTML and JUnit XML include the verdict, if there is one.",
    responses={
        200: {
            "content": representations.described(),
            "headers": described(
                {
                    "ETag": "Strong; different for each media type.",
                    "Cache-Control": "Allows the JSON to be cached forever.",
                    "Vary": "Accept.",
                }
            ),
        },
        304: {"description": "The copy named by If-None-Match is current."},
        **declare(errors.AnalysisNotFoundError, NotAcceptableError, errors.ReportNotReadyError, errors.NoReportError),
    },
)
async def get_report(
    analysis: AnalysisId,
    context: InContext,
    tenant: InTenant,
    if_none_match: IfNoneMatch = None,
    accept: Accept = None,
) -> Response:
    kind = negotiated(accept)
    async with context.database.transaction() as session:
        row, report = await service.find_report(session, tenant, analysis)
        yardstick = None if kind == representations.JSON else await yardstick_of(session, row)
    return await represent(row, report, kind, yardstick, if_none_match=if_none_match)


@router.post(
    "/{analysis_id}/cancel",
    status_code=HTTPStatus.ACCEPTED,
    summary="Cancel an analysis",
    description="A queued analysis is cancelled at once; a running one is stopped. Cancelling again has no effect.",
    responses=declare(errors.AnalysisNotFoundError, errors.AnalysisFinalError),
)
async def cancel_analysis(analysis: AnalysisId, context: InContext, tenant: InTenant) -> Analysis:
    return Analysis.of(await service.cancel(context, tenant, analysis))


@router.delete(
    "/{analysis_id}",
    status_code=HTTPStatus.NO_CONTENT,
    summary="Delete an analysis and its report",
    description="Allowed once the analysis has ended, unless it is a baseline. Its model and batch are kept.",
    responses=declare(errors.AnalysisNotFoundError, errors.AnalysisLiveError, errors.AnalysisIsBaselineError),
)
async def delete_analysis(analysis: AnalysisId, context: InContext, tenant: InTenant) -> None:
    await service.delete(context, tenant, analysis)
