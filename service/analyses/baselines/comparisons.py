"""/v1/comparisons: apply a policy to existing reports."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool

from service import errors
from service.analyses.baselines.comparison_schemas import Comparison, ComparisonRequest
from service.analyses.baselines.references import resolve
from service.analyses.errors import AnalysisNotFoundError, BaselineNotFoundError, NoReportError, ReportNotReadyError
from service.context import InContext
from service.http.bodies import UploadTooSlowError, read
from service.http.documents import parse
from service.http.security import InTenant
from service.policies import evaluate

router = APIRouter(prefix="/v1/comparisons", tags=["comparisons"])

_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{ComparisonRequest.__name__}"}}},
    }
}


@router.post(
    "",
    response_model=Comparison,
    summary="Judge a report, alone or against a baseline",
    description="Nothing is analysed or stored. A failed rule is part of the verdict, not an error.",
    responses=errors.declare(
        *(errors.MalformedRequestError, errors.BodyTooLargeError, errors.UnsupportedMediaTypeError, UploadTooSlowError),
        *(errors.InvalidRequestError, AnalysisNotFoundError, BaselineNotFoundError, ReportNotReadyError, NoReportError),
        errors.InternalError,
    ),
    openapi_extra=_BODY,
)
async def create_comparison(request: Request, context: InContext, tenant: InTenant) -> Comparison:
    wanted = parse(ComparisonRequest, await read(request, context.settings.max_request_bytes))
    baseline = None
    async with context.database.transaction() as session:
        candidate, row = await resolve(session, tenant, wanted.candidate)
        if wanted.baseline is not None:
            baseline, _ = await resolve(session, tenant, wanted.baseline)
    rate = wanted.learning_rate
    if rate is None and row is not None:
        rate = row.options.get("learning_rate")
    return Comparison(verdict=await run_in_threadpool(evaluate, wanted.policy, candidate, baseline, rate))
