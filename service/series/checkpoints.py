"""Series of checkpoints, read from the stored reports in bounded memory and work."""

from __future__ import annotations

import math
from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Row, func, select
from starlette.concurrency import run_in_threadpool

from service.analyses import repository
from service.analyses.listing import labelled
from service.analyses.positions import position
from service.analyses.representations import parsed
from service.analyses.table import AnalysisRow, ReportRow
from service.context import Context
from service.rendering import wording
from service.series.quantities import Map, Scalar, Value, eigenvalues_of, scalars_of
from wsb_engine.report import Report

RUN = "run"
"""Label whose values are the training runs."""

_BYTES_AT_ONCE = 4 << 20
"""Size of the reports that are held and parsed together, unless a single one is larger."""
_REPORTS_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class Density:
    """A spectral density: nodes in ascending order, and its values there."""

    grid: Sequence[float]
    values: Sequence[float]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One analysis of a series, and what its report says."""

    analysis: UUID
    name: str | None
    kind: str
    """Label that positions it, ``epoch`` or ``step``; empty without one."""
    position: str
    """Value of that label, or else the beginning of the analysis's identifier."""
    number: float | None
    """The position as a number; None if it is none."""
    learning_rate: float | None
    reliable: bool
    """False if a check has failed, so that the numbers can't be relied on."""
    how: str
    """Where the interval about λ_max comes from, in words; empty without one."""
    scalars: Mapping[Scalar, Value]
    eigenvalues: Sequence[Value]
    """The largest ones, in descending order."""
    spectrum: Sequence[float]
    """All eigenvalues of the report, in ascending order; empty unless they were asked for."""
    is_whole: bool
    """True if the spectrum holds every eigenvalue of the Hessian."""
    density: Density | None

    @property
    def stability_limit(self) -> float | None:
        """2/η, below which gradient descent is stable on the quadratic model; None without a learning rate η."""
        limit = 2 / self.learning_rate if self.learning_rate else math.inf
        return limit if math.isfinite(limit) else None


@dataclass(frozen=True, slots=True)
class Series:
    """The analyses of a tenant with one label, in the order of their positions."""

    label: str
    checkpoints: Sequence[Checkpoint]
    is_cut: bool
    """True if there are older analyses too."""
    unreadable: int
    """Number of reports of an older version, which this one can't read."""

    @property
    def title(self) -> str:
        """The name of the run, or the whole label if it is another one."""
        key, _, value = self.label.partition(":")
        return value if key == RUN and value else self.label

    @property
    def stability_limit(self) -> float | None:
        """2/η, if all checkpoints share one learning rate."""
        limits = {each.stability_limit for each in self.checkpoints}
        return limits.pop() if len(limits) == 1 else None


async def read_series(
    context: Context, tenant: str, labels: Sequence[str], *, top: int = 0, maps: Collection[Map] = ()
) -> list[Series]:
    """Read the newest checkpoints of series, within the limits of the settings.

    Args:
        context: Context of the request.
        tenant: Owner of the analyses.
        labels: Labels of the series, each ``key:value`` or ``key``.
        top: Number of the largest eigenvalues to keep of each report.
        maps: Whether to keep whole spectra and densities.
    """
    share = context.settings.max_series_report_bytes // max(1, len(labels))
    return [await _read(context, tenant, label, share, top, maps) for label in labels]


async def _read(context: Context, tenant: str, label: str, most_bytes: int, top: int, maps: Collection[Map]) -> Series:
    most = context.settings.max_series_points
    query = (
        select(
            AnalysisRow.id,
            AnalysisRow.sequence,
            AnalysisRow.name,
            AnalysisRow.labels,
            AnalysisRow.options,
            func.octet_length(ReportRow.body).label("size"),
        )
        .join(ReportRow, ReportRow.analysis == AnalysisRow.id)
        .where(AnalysisRow.tenant == tenant, AnalysisRow.state == "succeeded", labelled(label))
        .order_by(AnalysisRow.sequence.desc())
        .limit(most + 1)
    )
    async with context.database.transaction() as session:
        rows = (await session.execute(query)).all()
    kept = _affordable(rows[:most], most_bytes)
    found: list[tuple[tuple[float, int], Checkpoint]] = []
    for chunk in _chunks(kept):
        async with context.database.transaction() as session:
            bodies = await repository.report_bodies(session, [row.id for row in chunk])
        found += await run_in_threadpool(_checkpoints, chunk, bodies, top, maps)
    ordered = [checkpoint for _, checkpoint in sorted(found, key=lambda pair: pair[0])]
    return Series(label, ordered, is_cut=len(kept) < len(rows), unreadable=len(kept) - len(found))


def _affordable(rows: Sequence[Row[Any]], most_bytes: int) -> Sequence[Row[Any]]:
    """Return the first rows whose reports have that size together, at least one."""
    total = 0
    for i, row in enumerate(rows):
        total += row.size
        if total > most_bytes and i:
            return rows[:i]
    return rows


def _chunks(rows: Sequence[Row[Any]]) -> Iterator[Sequence[Row[Any]]]:
    chunk: list[Row[Any]] = []
    for row in rows:
        if chunk and (len(chunk) == _REPORTS_AT_ONCE or sum(each.size for each in chunk) + row.size > _BYTES_AT_ONCE):
            yield chunk
            chunk = []
        chunk.append(row)
    if chunk:
        yield chunk


def _checkpoints(
    rows: Sequence[Row[Any]], bodies: Mapping[UUID, str], top: int, maps: Collection[Map]
) -> list[tuple[tuple[float, int], Checkpoint]]:
    """Extract what is kept of reports, each with what to sort it by; unreadable ones are left out."""
    found = []
    for row in rows:
        report = parsed(bodies[row.id]) if row.id in bodies else None
        if report is not None:
            place, checkpoint = _checkpoint(row, report, top, maps)
            found.append(((place, row.sequence), checkpoint))
    return found


def _checkpoint(row: Row[Any], report: Report, top: int, maps: Collection[Map]) -> tuple[float, Checkpoint]:
    place, kind, text = _position(row)
    spectrum, how = report.spectrum, wording.source(report)
    if report.enclosure is not None:
        kind_of_end = report.enclosure.lambda_max.kind
        how = f"enclosure, {kind_of_end}{', up to measured rounding' if report.enclosure.is_measured else ''}"
    density = None if spectrum is None or "density" not in maps else spectrum.density
    if density is not None and not 0 < len(density.grid) == len(density.values):
        density = None
    return place, Checkpoint(
        analysis=row.id,
        name=row.name,
        kind=kind,
        position=text,
        number=place if math.isfinite(place) else None,
        learning_rate=row.options.get("learning_rate"),
        reliable=not report.failed_checks,
        how=how,
        scalars=scalars_of(report),
        eigenvalues=eigenvalues_of(report, top),
        spectrum=array("d", sorted(spectrum.eigenvalues)) if spectrum is not None and "spectrum" in maps else (),
        is_whole=spectrum is not None and spectrum.method == "dense",
        density=None if density is None else Density(array("d", density.grid), array("d", density.values)),
    )


def _position(row: Row[Any]) -> tuple[float, str, str]:
    """Return what to sort by, the label that positions the analysis, and the text to show.

    Analyses without a position come first, those whose position is no number last.
    """
    found = position(row.labels)
    if found is None:
        return -math.inf, "", str(row.id)[:8]
    kind, text = found
    try:
        value = float(text)
    except ValueError:
        value = math.inf
    return (value if math.isfinite(value) else math.inf), kind, text
