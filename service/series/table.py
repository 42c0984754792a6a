"""Series as a CSV file (RFC 4180) in long form, which spreadsheets and data frames read as it is."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Iterator, Sequence

from service.series.checkpoints import Checkpoint, Series
from service.series.quantities import EIGENVALUE, SCALARS, Quantity, Value

MEDIA_TYPE = "text/csv; charset=utf-8; header=present"
COLUMNS = (
    *("run", "step", "quantity", "lower", "upper", "value", "by", "failure_probability"),
    *("learning_rate", "reliable", "analysis"),
)

_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
"""Beginnings of what spreadsheets take for a formula."""


def csv_of(series: Sequence[Series], quantities: Sequence[Quantity]) -> str:
    """Write a row for each checkpoint and quantity; what a report lacks is empty.

    The eigenvalues have as many rows a checkpoint as the longest list of them.
    """
    written = io.StringIO()
    writer = csv.writer(written)
    writer.writerow(COLUMNS)
    ranks = max((len(each.eigenvalues) for one in series for each in one.checkpoints), default=0)
    for one in series:
        for checkpoint in one.checkpoints:
            for name, value in _rows(checkpoint, quantities, ranks):
                writer.writerow(_cells(one, checkpoint, name, value))
    return written.getvalue()


def _rows(checkpoint: Checkpoint, quantities: Sequence[Quantity], ranks: int) -> Iterator[tuple[str, Value | None]]:
    for name in SCALARS:
        if name in quantities:
            yield name, checkpoint.scalars.get(name)
    if "eigenvalues" in quantities:
        found = checkpoint.eigenvalues
        for i in range(ranks):
            yield f"{EIGENVALUE}{i + 1}", found[i] if i < len(found) else None


def _cells(series: Series, checkpoint: Checkpoint, name: str, value: Value | None) -> list[object]:
    # The writer turns None into an empty cell.
    numbers: list[object] = [None] * 5
    if value is not None:
        numbers = [value.lower, value.upper, value.value, inert(value.by), value.failure_probability]
    head: list[object] = [inert(series.title), inert(checkpoint.position), name]
    reliable = "true" if checkpoint.reliable else "false"
    return [*head, *numbers, checkpoint.learning_rate, reliable, checkpoint.analysis]


def inert(text: str) -> str:
    """Put an apostrophe before what a spreadsheet would run as a formula; a number stays one."""
    # Spreadsheets may drop spaces and invisible characters such as a byte order mark.
    seen = "".join(character for character in text if unicodedata.category(character) not in ("Cf", "Cc"))
    if not seen.lstrip().startswith(_FORMULA):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text
