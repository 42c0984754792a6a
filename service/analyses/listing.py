"""Lists of analyses: filters, orders and cursors; the API and the pages share these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sqlalchemy import ColumnElement, Select, and_, or_, select
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
    query = _filtered(listing).where(AnalysisRow.tenant == tenant)
    column = _COLUMNS.get(listing.sort.removeprefix("-"))
    falls = listing.sort.startswith("-")
    if after is not None:
        query = query.where(_beyond(column, after, falls=falls))
    if column is not None:
        query = query.order_by((column.desc() if falls else column.asc()).nulls_last())
    newest_first = column is not None or falls
    query = query.order_by(AnalysisRow.sequence.desc() if newest_first else AnalysisRow.sequence.asc())
    async with context.database.transaction() as session:
        found = await session.stream_scalars(query.limit(limit + 1).execution_options(yield_per=_AT_ONCE))
        rows = await found.all()
    return Page(rows[:limit], _cursor(column, rows[limit - 1]) if len(rows) > limit else None)


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


def _cursor(column: InstrumentedAttribute[Any] | None, row: AnalysisRow) -> str:
    if column is None:
        return str(row.sequence)
    value = getattr(row, column.key)
    return f"{row.sequence}:{'null' if value is None else repr(value)}"


def _beyond(column: InstrumentedAttribute[Any] | None, after: str, *, falls: bool) -> ColumnElement[bool]:
    """Return the condition of being on a later page."""
    place, colon, text = after.partition(":")
    if bool(colon) != (column is not None):
        error = FieldError(pointer="/query/after", detail="The cursor is of a list in another order.")
        raise InvalidRequestError("The request has invalid values.", errors=[error])
    sequence = int(place)
    if column is None:
        return AnalysisRow.sequence < sequence if falls else AnalysisRow.sequence > sequence
    older = AnalysisRow.sequence < sequence
    if text == "null":
        return and_(column.is_(None), older)
    value = int(text) if text.lstrip("-").isdigit() else float(text)
    return or_(column < value if falls else column > value, and_(column == value, older), column.is_(None))
