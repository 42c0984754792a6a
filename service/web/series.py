"""Training runs along their checkpoints: the runs to choose from, plots, heat maps and tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Annotated
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Depends, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from service.analyses.schemas import LABEL
from service.context import InContext
from service.http.security import InTenant
from service.series.checkpoints import Series, read_series
from service.series.drawing import AXES, Drawing, Plot
from service.series.endpoints import DEFAULT_TOP, MAX_TOP
from service.series.heat import map_of
from service.series.plots import plot_of
from service.series.quantities import MAPS, QUANTITIES, TITLES, Map, Quantity, Shown
from service.series.runs import Run, list_runs
from service.web.pages import page_on_thread

router = APIRouter(include_in_schema=False)

_MANY = Query(max_length=100)


@dataclass
class View:
    """What the page's address asks for; what makes no sense is named with an error and shown without."""

    label: Annotated[Sequence[str], _MANY] = ()
    quantity: Annotated[Sequence[str], _MANY] = ()
    log: Annotated[Sequence[str], _MANY] = ()
    x: str = ""
    top: str = ""
    errors: dict[str, str] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.label = list(dict.fromkeys(text.strip() for text in self.label if text.strip()))
        if not all(map(LABEL.fullmatch, self.label)):
            self.errors["label"] = "A label is a name, or name:value."
        if unknown := [each for each in self.quantity if each not in TITLES]:
            self.errors["quantity"] = f"There is no quantity {unknown[0][:40]!r}."
        if self.top and not (self.top.isascii() and self.top.isdigit() and 1 <= int(self.top[:9]) <= MAX_TOP):
            self.errors["top"] = f"The number of eigenvalues is from 1 to {MAX_TOP}."

    @property
    def shown(self) -> list[Shown]:
        """Quantities to show, in the order in which they are listed."""
        return [name for name in TITLES if name in self.quantity] or ["lambda_max"]

    @property
    def lines(self) -> list[Quantity]:
        return [name for name in QUANTITIES if name in self.shown]

    @property
    def maps(self) -> list[Map]:
        return [name for name in MAPS if name in self.shown]

    @property
    def eigenvalues(self) -> int:
        """Number of the largest eigenvalues to follow."""
        return DEFAULT_TOP if not self.top or "top" in self.errors else int(self.top)

    @property
    def drawing(self) -> Drawing:
        axes = frozenset(axis for axis in AXES if axis in self.log)
        return Drawing("order" if self.x == "order" else "position", axes)

    def file(self, root: str, form: str, labels: Sequence[str], quantities: Sequence[str]) -> str:
        """Return the address of series as a file."""
        query = [("also", label) for label in labels[1:]] + [("quantity", each) for each in quantities]
        if form == "svg":
            query += [("log", axis) for axis in sorted(self.drawing.log)]
            query += [("x", "order")] if self.drawing.across == "order" else []
        if "eigenvalues" in quantities:
            query.append(("top", str(self.eigenvalues)))
        return f"{root}/v1/series/{quote(labels[0], safe=':')}.{form}?{urlencode(query)}"


@dataclass(frozen=True)
class Figure:
    """A plot on the page."""

    title: str
    plot: Plot
    svg: str
    """Address of the plot as a file."""
    name: str
    """Name of that file, without its suffix."""


@router.get("/series")
async def show_series(
    request: Request, context: InContext, tenant: InTenant, view: Annotated[View, Depends()]
) -> Response:
    limit = context.settings.max_series_runs
    if len(view.label) > limit:
        view.errors["label"] = f"At most {limit} runs can be shown together; {len(view.label)} are ticked."
    series = list[Series]()
    if view.label and "label" not in view.errors:
        top = view.eigenvalues if "eigenvalues" in view.shown else 0
        series = await read_series(context, tenant, view.label, top=top, maps=view.maps)
    runs, has_more = await list_runs(context, tenant)
    figures = await run_in_threadpool(_figures, series, view, request.scope["root_path"])
    having = [one for one in series if one.checkpoints]
    return await page_on_thread(
        request,
        "series.html",
        HTTPStatus(422) if view.errors else HTTPStatus.OK,
        view=view,
        runs=_offered(runs, series),
        listed=len(runs) if has_more else None,
        series=series,
        figures=[figure for figure in figures if figure.plot.svg is not None],
        without=[figure for figure in figures if figure.plot.svg is None],
        table=view.file(request.scope["root_path"], "csv", [one.label for one in having], QUANTITIES) if having else "",
        limits=[(one.title, one.stability_limit) for one in having if one.stability_limit is not None],
        doubtful=[(one.title, each.position) for one in series for each in one.checkpoints if not each.reliable],
        count=sum(len(one.checkpoints) for one in series),
        titles=TITLES,
        limit=limit,
        max_top=MAX_TOP,
    )


def _offered(runs: Sequence[Run], series: Sequence[Series]) -> list[tuple[str, str, int]]:
    """Return label, name and number of checkpoints of the runs to choose from, and of those chosen that are no runs."""
    listed = [(run.label, run.name, run.checkpoints) for run in runs]
    known = {run.label for run in runs}
    return [(one.label, one.title, len(one.checkpoints)) for one in series if one.label not in known] + listed


def _figures(series: Sequence[Series], view: View, root: str) -> list[Figure]:
    having = [one for one in series if one.checkpoints]
    if not having:
        return []
    labels, figures = [one.label for one in having], list[Figure]()
    for quantity in view.lines:
        address = view.file(root, "svg", labels, [quantity])
        figures.append(Figure(TITLES[quantity], plot_of(having, quantity, view.drawing), address, f"series-{quantity}"))
    for kind in view.maps:
        for rank, one in enumerate(having, start=1):
            plot = map_of(one, kind, view.drawing, key=f"map-{rank}")
            address = view.file(root, "svg", [one.label], [kind])
            figures.append(Figure(f"{TITLES[kind]}, {one.title}", plot, address, f"series-{kind}-{rank}"))
    return figures
