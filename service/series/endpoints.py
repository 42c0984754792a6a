"""/v1/series: what the reports of training runs say along their checkpoints, as JSON, CSV and SVG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Response
from starlette.concurrency import run_in_threadpool

from service.analyses.schemas import LABEL_KEY, LABEL_VALUE
from service.context import Context, InContext
from service.errors import InvalidRequestError, NotFoundError, declare
from service.fields import FieldError
from service.http.security import InTenant
from service.rendering import standalone
from service.series import checkpoints, schemas, table
from service.series.checkpoints import read_series
from service.series.drawing import Across, Axis, Drawing
from service.series.plots import file_of
from service.series.quantities import MAPS, QUANTITIES, Map, Quantity, Shown
from service.series.runs import list_runs

MAX_TOP = 20
"""Largest number of eigenvalues to follow."""
DEFAULT_TOP = 5

router = APIRouter(prefix="/v1/series", tags=["series"])

_LABEL = f"^{LABEL_KEY}(:{LABEL_VALUE})?$"
_FRESH = {"Cache-Control": "private, no-cache"}


class SeriesNotFoundError(NotFoundError, code="series_not_found", title="No such series"): ...


Label = Annotated[
    str, Path(pattern=_LABEL, description="Label of the series: `key:value`, such as `run:digits`, or `key`.")
]
MoreLabels = Annotated[
    list[Annotated[str, Query(pattern=_LABEL)]],
    Query(alias="also", description="Label of a further series. Repeatable.", max_length=100),
]
Top = Annotated[int, Query(ge=1, le=MAX_TOP, description="Number of the largest eigenvalues to follow.")]
Quantities = Annotated[
    list[Quantity], Query(alias="quantity", description="Quantities to include. Repeatable.", max_length=8)
]
OneQuantity = Annotated[
    Shown,
    Query(alias="quantity", description="What to draw; `spectrum` and `density` are heat maps of one series."),
]
LogAxes = Annotated[list[Axis], Query(alias="log", description="Axes to make logarithmic. Repeatable.", max_length=2)]
AcrossAxis = Annotated[
    Across, Query(alias="x", description="Horizontal axis: the epoch or step, or the rank in the order.")
]


@router.get("", summary="List the training runs", responses=declare())
async def list_series(context: InContext, tenant: InTenant) -> schemas.TrainingRunList:
    runs, has_more = await list_runs(context, tenant)
    items = [schemas.TrainingRun(label=run.label, checkpoints=run.checkpoints) for run in runs]
    return schemas.TrainingRunList(items=items, complete=not has_more)


def _labels(context: InContext, label: Label, more: MoreLabels = ()) -> list[str]:  # type: ignore[assignment]
    """Return all labels of a request, each once."""
    labels = list(dict.fromkeys([label, *more]))
    if len(labels) > context.settings.max_series_runs:
        limit = context.settings.max_series_runs
        error = FieldError(pointer="/query/also", detail=f"At most {limit} series go together, not {len(labels)}.")
        raise InvalidRequestError("The request has invalid values.", errors=[error])
    return labels


Labels = Annotated[list[str], Depends(_labels)]


@router.get(
    "/{label:path}.csv",
    response_class=Response,
    summary="Read series as a table",
    description="A row for each checkpoint and quantity, in RFC 4180's form. Text that a spreadsheet would run as a"
    " formula begins with an apostrophe.",
    responses={
        200: {"content": {"text/csv": {"schema": {"type": "string"}}}},
        **declare(SeriesNotFoundError, InvalidRequestError),
    },
)
async def get_series_table(
    labels: Labels,
    context: InContext,
    tenant: InTenant,
    quantities: Quantities = list(QUANTITIES),  # noqa: B006 - FastAPI copies it
    top: Top = DEFAULT_TOP,
) -> Response:
    series = await _existing(context, tenant, labels, top=top if "eigenvalues" in quantities else 0)
    content = await run_in_threadpool(table.csv_of, series, quantities)
    return Response(content, media_type=table.MEDIA_TYPE, headers=_FRESH)


@router.get(
    "/{label:path}.svg",
    response_class=Response,
    summary="Draw series",
    description="One quantity of all series over common axes, or a heat map of one series.",
    responses={
        200: {"content": {standalone.MEDIA_TYPE: {"schema": {"type": "string"}}}},
        **declare(SeriesNotFoundError, InvalidRequestError),
    },
)
async def get_series_plot(
    labels: Labels,
    context: InContext,
    tenant: InTenant,
    quantity: OneQuantity = "lambda_max",
    log: LogAxes = [],  # noqa: B006 - FastAPI copies it
    across: AcrossAxis = "position",
    top: Top = DEFAULT_TOP,
) -> Response:
    maps: list[Map] = [each for each in MAPS if each == quantity]
    if maps and len(labels) > 1:
        error = FieldError(pointer="/query/also", detail=f"{quantity} is drawn of one series only.")
        raise InvalidRequestError("The request has invalid values.", errors=[error])
    series = await _existing(context, tenant, labels, top=top if quantity == "eigenvalues" else 0, maps=maps)
    drawn = await run_in_threadpool(file_of, series, quantity, Drawing(across, frozenset(log)))
    return Response(drawn, media_type=standalone.MEDIA_TYPE, headers={**_FRESH, **standalone.HEADERS})


@router.get(
    "/{label:path}",
    summary="Read a series",
    description="The analyses with this label that have a report, ordered by their label `epoch` or `step`.",
    responses=declare(SeriesNotFoundError, InvalidRequestError),
)
async def get_series(label: Label, context: InContext, tenant: InTenant, top: Top = DEFAULT_TOP) -> schemas.Series:
    [series] = await _existing(context, tenant, [label], top=top)
    return await run_in_threadpool(schemas.Series.of, series)


async def _existing(
    context: Context, tenant: str, labels: Sequence[str], *, top: int, maps: Sequence[Map] = ()
) -> list[checkpoints.Series]:
    """Read series, each of which must have a checkpoint.

    Raises:
        SeriesNotFoundError: if one has none.
    """
    found = await read_series(context, tenant, labels, top=top, maps=maps)
    for series in found:
        if not series.checkpoints and not series.unreadable:
            raise SeriesNotFoundError(
                f"No analysis with the label {series.label[:80]!r} has a report.",
                advice="GET /v1/series lists the runs that have one.",
            )
    return found
