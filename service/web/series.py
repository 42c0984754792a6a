"""λ_max over the checkpoints of a run: the analyses that share a label, ordered by epoch or step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from uuid import UUID

from fastapi import APIRouter, Request, Response
from markupsafe import Markup
from starlette.concurrency import run_in_threadpool

from service.analyses import repository
from service.analyses.listing import Listing, listed
from service.analyses.positions import position
from service.analyses.representations import parsed
from service.analyses.schemas import LABEL
from service.analyses.table import AnalysisRow
from service.context import Context, InContext
from service.http.security import InTenant
from service.rendering import plots, wording
from service.rendering.svg import Caption
from service.web.pages import page_on_thread
from wsb_engine.presentation.numbers import Ends, interval, middle, number

MAX_CHECKPOINTS = 200
"""Analyses in a series: the newest that have a report."""

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class Checkpoint:
    """One analysis of the series."""

    analysis: UUID
    position: str
    ends: Ends
    """Interval that holds λ_max."""
    how: str
    is_doubtful: bool
    """True if a check has failed, so that the numbers can't be relied on."""
    loss: float
    accuracy: float | None
    learning_rate: float | None


@router.get("/series")
async def show_series(request: Request, context: InContext, tenant: InTenant, label: str = "") -> Response:
    label, error, checkpoints = label.strip(), "", list[Checkpoint]()
    skipped, is_cut = 0, False
    if label and not LABEL.fullmatch(label):
        error = "A label is a name, or name:value."
    elif label:
        rows, is_cut = await _rows(context, tenant, label)
        checkpoints = await run_in_threadpool(_checkpoints, rows)
        skipped = len(rows) - len(checkpoints)
    return await page_on_thread(
        request,
        "series.html",
        HTTPStatus(422) if error else HTTPStatus.OK,
        label=label,
        error=error,
        checkpoints=checkpoints,
        plot=_plot(label, checkpoints),
        stable=_stable(checkpoints),
        doubtful=[each.position for each in checkpoints if each.is_doubtful],
        skipped=skipped,
        is_cut=is_cut,
        most=MAX_CHECKPOINTS,
    )


async def _rows(context: Context, tenant: str, label: str) -> tuple[Sequence[tuple[AnalysisRow, str]], bool]:
    """The newest analyses with this label and their reports, and whether there are older ones too."""
    listing = Listing(states=["succeeded"], labels=[label])
    found = await listed(context, tenant, listing, limit=MAX_CHECKPOINTS)
    async with context.database.transaction() as session:
        bodies = await repository.report_bodies(session, [row.id for row in found.rows])
    return [(row, bodies[row.id]) for row in found.rows if row.id in bodies], found.after is not None


def _checkpoints(rows: Sequence[tuple[AnalysisRow, str]]) -> list[Checkpoint]:
    """Order checkpoints by position; those without one come first, oldest first."""
    ordered = sorted(rows, key=lambda pair: (_position(pair[0])[0], pair[0].sequence))
    return [found for row, body in ordered if (found := _checkpoint(row, body)) is not None]


def _checkpoint(row: AnalysisRow, body: str) -> Checkpoint | None:
    """Return a checkpoint; None if its report has no bound on λ_max or can't be read."""
    report = parsed(body)
    if report is None or report.lambda_max is None:
        return None
    ends, how = report.lambda_max.interval, wording.source(report)
    if report.enclosure is not None:
        how = f"enclosure, {ends.kind}{', up to measured rounding' if report.enclosure.is_measured else ''}"
    rate, is_doubtful, loss = row.options.get("learning_rate"), bool(report.failed_checks), report.loss
    return Checkpoint(row.id, _position(row)[1], ends, how, is_doubtful, loss.value, loss.accuracy, rate)


def _position(row: AnalysisRow) -> tuple[float, str]:
    """Position in the run, as a number to sort by and as text to show."""
    if (found := position(row.labels)) is not None:
        try:
            value = float(found[1])
        except ValueError:
            value = math.inf
        return (value if math.isfinite(value) else math.inf), found[1]
    return -math.inf, str(row.id)[:8]


def _stable(checkpoints: Sequence[Checkpoint]) -> float | None:
    """2 / learning rate, if all checkpoints share one."""
    rates = {each.learning_rate for each in checkpoints}
    rate = rates.pop() if len(rates) == 1 else None
    return None if rate is None else 2 / rate


def _plot(label: str, checkpoints: Sequence[Checkpoint]) -> Markup | None:
    if not checkpoints:
        return None
    points = [plots.LabelledInterval(each.position, each.ends.lower, each.ends.upper) for each in checkpoints]
    stable, highest = _stable(checkpoints), max(each.ends.upper for each in checkpoints)
    # A limit far above the points would flatten them.
    limits = [plots.Limit("2 / learning rate", stable)] if stable is not None and stable <= 2 * highest else []
    largest = max(checkpoints, key=lambda each: middle(each.ends))
    description = (
        f"λ_max of {number(len(checkpoints))} checkpoints, from {interval(checkpoints[0].ends)} to "
        f"{interval(checkpoints[-1].ends)}; the largest, {interval(largest.ends)}, at {largest.position}."
    )
    caption = Caption("series", f"λ_max along {label}", description)
    return plots.series(points, limits, y_label="λ_max", caption=caption)
