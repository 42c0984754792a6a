"""Lists of analyses: filters, orders and cursors; the API and the pages share these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sqlalchemy import ColumnElement, Select, or_, select
from sqlalchemy.orm import InstrumentedAttribute

from service.analyses.table import AnalysisRow, State
from service.context import Context
from service.errors import InvalidRequestError
from service.fields import FieldError

Sort = Literal[
    "-created",
    "created",
    "-lambda_max",
    "lambda_max",
    "-loss",
    "loss",
    "-accuracy",
    "accuracy",
    "-parameters",
    "parameters",
    "-seconds",
    "seconds",
]
"""An order; a minus sign puts the largest first. Analyses without the number come last, of equals the newest first."""
NEWEST: Sort = "-created"
SORTS: tuple[Sort, ...] = get_args(Sort)

CURSOR = r"[1-9][0-9]{0,17}(:(null|-?[0-9]{1,19}(\.[0-9]{1,20})?(e[-+][0-9]{1,3})?))?"
"""A cursor: the sequence number of the last analysis of a page and, if the order is by a number, that number."""

_AT_ONCE = 30
"""Rows that are read at once: with verdicts on hundreds of rules, reading two hundred would stop the event loop."""
_COLUMNS: dict[str, InstrumentedAttribute[Any]] = {
    "lambda_max": AnalysisRow.lambda_max_upper,
    "loss": AnalysisRow.loss,
    "accuracy": AnalysisRow.accuracy,
    "parameters": AnalysisRow.parameters,
    "seconds": AnalysisRow.seconds,
}


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Which analyses of a tenant, in which order."""

    states: Sequence[State] = ()
    """States to include; none includes all."""
    labels: Sequence[str] = ()
    """``key:value``, or ``key`` with any value; an analysis must have all of them."""
    name: str = ""
    """Text that its name, or the name of one of its files, contains in any case; empty for any."""
    model: str = ""
    """Hex digest; empty for any."""
    batch: str = ""
    """As ``model``."""
    sort: Sort = NEWEST


@dataclass(frozen=True)
class Page:
    """One page of analyses."""

    rows: Sequence[AnalysisRow]
    after: str | None
    """Cursor of the next page; None on the last one."""


async def listed(context: Context, tenant: str, listing: Listing, *, limit: int, after: str | None = None) -> Page:
    """List the tenant's analyses; an analysis that does not change is on one page exactly.

    Args:
        context: Context of the request.
        tenant: Owner of the analyses.
        listing: Which ones, in which order.
        limit: Largest number of analyses.
        after: Cursor of an earlier page of the same order.

    Raises:
        InvalidRequestError: if the cursor is of another order.
    """
    rows: list[AnalysisRow] = []
    async with context.database.transaction() as session:
        for part in queries(tenant, listing, after):
            wanted = part.limit(limit + 1 - len(rows)).execution_options(yield_per=_AT_ONCE)
            rows += await (await session.stream_scalars(wanted)).all()
            if len(rows) > limit:
                break
    return Page(rows[:limit], _cursor(listing, rows[limit - 1]) if len(rows) > limit else None)


def queries(tenant: str, listing: Listing, after: str | None) -> list[Select[AnalysisRow]]:
    """Return the queries whose rows, one query after the other, are what comes after a cursor.

    Raises:
        InvalidRequestError: if the cursor is of another order.
    """
    query = _filtered(listing).where(AnalysisRow.tenant == tenant)
    column, falls = _column(listing), listing.sort.startswith("-")
    return _by_age(query, after, falls=falls) if column is None else _by_number(query, column, after, falls=falls)


def _column(listing: Listing) -> InstrumentedAttribute[Any] | None:
    """Return the column of the number that the list is ordered by; None if it is ordered by age."""
    return _COLUMNS.get(listing.sort.removeprefix("-"))


def _filtered(listing: Listing) -> Select[AnalysisRow]:
    query = select(AnalysisRow)
    if listing.states:
        query = query.where(AnalysisRow.state.in_(listing.states))
    query = query.where(*map(labelled, listing.labels))
    if listing.name:
        names = (AnalysisRow.name, AnalysisRow.model_name, AnalysisRow.batch_name)
        query = query.where(or_(*(column.icontains(listing.name, autoescape=True) for column in names)))
    for column, digest in ((AnalysisRow.model, listing.model), (AnalysisRow.batch, listing.batch)):
        if digest:
            query = query.where(column == digest)
    return query


def labelled(label: str) -> ColumnElement[bool]:
    """Return the condition of having a label: ``key:value``, or ``key`` with any value."""
    key, colon, value = label.partition(":")
    return AnalysisRow.labels.contains({key: value}) if colon else AnalysisRow.labels.has_key(key)


def _cursor(listing: Listing, row: AnalysisRow) -> str:
    column = _column(listing)
    if column is None:
        return str(row.sequence)
    value = getattr(row, column.key)
    return f"{row.sequence}:{'null' if value is None else repr(value)}"


def _by_age(query: Select[AnalysisRow], after: str | None, *, falls: bool) -> list[Select[AnalysisRow]]:
    """Return the query of what comes after a cursor, in order of creation."""
    if after is not None:
        sequence, _ = _place(after, numbers=False)
        query = query.where(AnalysisRow.sequence < sequence if falls else AnalysisRow.sequence > sequence)
    return [query.order_by(AnalysisRow.sequence.desc() if falls else AnalysisRow.sequence.asc())]


def _by_number(
    query: Select[AnalysisRow], column: InstrumentedAttribute[Any], after: str | None, *, falls: bool
) -> list[Select[AnalysisRow]]:
    """Return the queries of what comes after a cursor: of the analyses with the number, then of those without.

    Two queries, because each of them is a range of an index, and both together are not: without a range, a page would
    take as long as reading all analyses.
    """
    known, unknown = query.where(column.is_not(None)), query.where(column.is_(None))
    known = known.order_by(column.desc() if falls else column.asc(), AnalysisRow.sequence.desc())
    unknown = unknown.order_by(AnalysisRow.sequence.desc())
    if after is None:
        return [known, unknown]
    sequence, value = _place(after, numbers=True)
    older = AnalysisRow.sequence < sequence
    if value is None:
        return [unknown.where(older)]
    # The first of the two conditions is what an index finds the range by.
    later, equal_or_later = (column < value, column <= value) if falls else (column > value, column >= value)
    return [known.where(equal_or_later, or_(later, older)), unknown]


def _place(after: str, *, numbers: bool) -> tuple[int, float | None]:
    """Return the sequence number and the number in a cursor.

    Raises:
        InvalidRequestError: if the cursor is of a list that is, or is not, ordered by numbers.
    """
    place, colon, text = after.partition(":")
    if bool(colon) != numbers:
        error = FieldError(pointer="/query/after", detail="The cursor is of a list in another order.")
        raise InvalidRequestError("The request has invalid values.", errors=[error])
    if text in ("", "null"):
        return int(place), None
    return int(place), int(text) if text.lstrip("-").isdigit() else float(text)
