"""Pages about analyses: request, list, follow, read and delete them."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any, get_args

from fastapi import APIRouter, Depends, Request, Response
from starlette.concurrency import run_in_threadpool

from service import rendering
from service.analyses import representations, service
from service.analyses.baselines import promotion
from service.analyses.baselines.endpoints import check_name
from service.analyses.endpoints import AnalysisId
from service.analyses.listing import listed
from service.analyses.schemas import Analysis
from service.analyses.table import FINAL_STATES, AnalysisRow, ReportRow, State
from service.analyses.yardsticks import yardstick_of
from service.blobs.repository import stored_files
from service.context import Context, InContext
from service.errors import NotFoundError
from service.http.security import InTenant
from service.rendering.headline import Yardstick
from service.rendering.registry import RENDERINGS
from service.web.filters import Filters
from service.web.forms import OPTION_FIELDS, Filled, empty_form, kept, submit_form
from service.web.pages import STATIC_TYPES, page_on_thread, see, static
from service.web.urlencoded import read_post

PAGE_SIZE = 20
REFRESH_SECONDS = 5
"""Shortest interval at which the list of analyses refreshes itself, in a page that is visible."""
RELOAD_SECONDS = 2
"""Interval at which browsers without scripts reload the page of a running analysis."""

router = APIRouter(include_in_schema=False)

_FORMS = {"json": representations.JSON, **{each.suffix: each.media_type for each in RENDERINGS}}


@router.get("/")
async def show_home(
    request: Request,
    context: InContext,
    tenant: InTenant,
    filters: Annotated[Filters, Depends()],
    model: str = "",
    batch: str = "",
) -> Response:
    form = empty_form()
    form.values |= {"model_id": model, "batch_id": batch}
    return await _home(request, context, tenant, form, filters)


@router.post("/analyses")
async def submit_analysis(request: Request, context: InContext, tenant: InTenant) -> Response:
    outcome = await submit_form(request, context, tenant, request.state.session)
    if isinstance(outcome, Filled):
        return await _home(request, context, tenant, outcome, Filters())
    return see(request, "show_analysis", analysis_id=outcome)


async def _home(request: Request, context: Context, tenant: str, form: Filled, filters: Filters) -> Response:
    found = await listed(context, tenant, filters.listing, limit=PAGE_SIZE, after=filters.after)
    analyses = await run_in_threadpool(lambda: [Analysis.of(row) for row in found.rows])
    return await page_on_thread(
        request,
        "home.html",
        form.status if form.errors else HTTPStatus.OK,
        form=form,
        kept=kept(form.values),
        analyses=analyses,
        following=None if found.after is None else filters.query(after=found.after),
        states=get_args(State),
        filters=filters,
        refresh=REFRESH_SECONDS,
        options=OPTION_FIELDS,
    )


@router.get("/analyses/{analysis_id}")
async def show_analysis(request: Request, analysis: AnalysisId, context: InContext, tenant: InTenant) -> Response:
    row, stored = await service.fetch(context, tenant, analysis)
    async with context.database.transaction() as session:
        _, *data_files = await stored_files(session, tenant, "models", row.model)
        names = await promotion.names_of(session, analysis)
        yardstick = None if stored is None else await yardstick_of(session, row)
    live = row.state not in FINAL_STATES
    report = None if stored is None else await run_in_threadpool(_sections, row, stored, yardstick)
    return await page_on_thread(
        request,
        "analysis.html",
        analysis=Analysis.of(row),
        data_files=data_files,
        baselines=names,
        live=live,
        report=report,
        events=f"{request.scope['root_path']}/v1/analyses/{analysis}/events",
        reload_after=RELOAD_SECONDS if live else None,
    )


def _sections(row: AnalysisRow, stored: ReportRow, yardstick: Yardstick | None) -> Any:
    """Render the sections of a report; empty if its version can no longer be read."""
    report = representations.parsed(stored.body)
    return "" if report is None else rendering.render_sections(report, representations.verdict_of(row), yardstick)


@router.get("/analyses/{analysis_id}/report.{form}")
async def download_report(analysis: AnalysisId, context: InContext, tenant: InTenant, form: str) -> Response:
    row, stored = await service.fetch(context, tenant, analysis)
    if stored is None or form not in _FORMS:
        raise NotFoundError(f"There is no report.{form[:80]} of this analysis.")
    async with context.database.transaction() as session:
        yardstick = await yardstick_of(session, row)
    response = await representations.represent(row, stored, _FORMS[form], yardstick)
    shown = "inline" if form == "html" else "attachment"
    response.headers["Content-Disposition"] = f'{shown}; filename="wsb-{str(row.id)[:8]}.{form}"'
    return response


@router.post("/analyses/{analysis_id}/cancel")
async def cancel(request: Request, analysis: AnalysisId, context: InContext, tenant: InTenant) -> Response:
    await read_post(request)
    await service.cancel(context, tenant, analysis)
    return see(request, "show_analysis", analysis_id=analysis)


@router.post("/analyses/{analysis_id}/promote")
async def promote(request: Request, analysis: AnalysisId, context: InContext, tenant: InTenant) -> Response:
    fields = await read_post(request)
    name = fields.get("name", "").strip()
    check_name(name)
    await promotion.promote(context, tenant, name, analysis, allow_older="allow_older" in fields)
    return see(request, "show_analysis", analysis_id=analysis)


@router.post("/analyses/{analysis_id}/delete")
async def delete(request: Request, analysis: AnalysisId, context: InContext, tenant: InTenant) -> Response:
    await read_post(request)
    await service.delete(context, tenant, analysis)
    return see(request, "show_home")


@router.get("/static/{file}")
async def get_static(file: str) -> Response:
    if file not in STATIC_TYPES:
        raise NotFoundError(f"There is no file {file[:80]}.")
    # Pages link to these files with a version in the query.
    headers = {"Cache-Control": "public, max-age=31536000, immutable"}
    return Response(static(file), headers=headers, media_type=STATIC_TYPES[file])
