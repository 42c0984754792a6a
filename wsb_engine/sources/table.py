"""Tables: CSV files, in two passes and bounded memory, and columns in memory."""

from __future__ import annotations

import csv
import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsb_engine.errors import BatchError
from wsb_engine.sources.labels import numbering, require_few
from wsb_engine.sources.samples import ProgressSink, Samples, require_room
from wsb_engine.sources.subset import stratified

MAX_ROW_CHARACTERS = 16 << 20
"""Largest row of a CSV file."""
MISSING = frozenset({"", "#n/a", "#na", "-nan", "<na>", "?", "n/a", "na", "nan", "none", "null"})
"""How files write that a number is missing, in lower case."""

_TRUTH = {"false": 0.0, "true": 1.0}
_SHOWN = 20
_STEP = 2_000
"""Rows between two reports of progress."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns of a table are what."""

    names: tuple[str, ...]
    label: int
    features: tuple[int, ...]

    @property
    def feature_names(self) -> tuple[str, ...]:
        return tuple(self.names[index] for index in self.features)


def read_csv(
    path: Path,
    *,
    label: str,
    drop: Sequence[str] = (),
    classes: Sequence[str] | None = None,
    keep_labels: bool = False,
    delimiter: str = ",",
    rows: int | None = None,
    seed: int = 0,
    progress: ProgressSink,
) -> Samples:
    """Read a CSV file with a header line: one input x with the numeric columns, in the order of the file.

    The first pass reads the labels and chooses rows, the second reads these; only they must be complete.

    Args:
        path: A regular file in UTF-8.
        label: Name of the column with the classes.
        drop: Names of columns to leave out.
        classes: Names of all classes in logit order; None keeps integers and numbers text in sorted order.
        keep_labels: True to keep labels as text, for a model file that declares its classes.
        delimiter: Character between fields.
        rows: Rows of a random stratified subset; None for all.
        seed: Seed of the subset.
        progress: Called with the fraction that is done.

    Raises:
        BatchError: ``source_not_found``, ``csv_invalid``, ``csv_no_header``, ``column_unknown``, ``column_unnamed``,
            ``no_features``, ``text_column``, ``missing_values``, ``batch_not_finite``, ``batch_too_large``,
            ``source_changed``, and those of ``numbering`` and ``stratified``.
    """
    table = _rows(path, delimiter, lambda fraction: progress("labels", fraction))
    columns = columns_of(_header(table, label, delimiter), label=label, drop=drop)
    codes, which = array("q"), dict[str, int]()
    for line, fields in table:
        text = fields[columns.label].strip()
        if text.lower() in ("", "nan"):
            raise _missing(label, f"line {line}", "Remove the rows without a label.")
        codes.append(which.setdefault(text, len(which)))
        require_few(len(which))
    labels = np.frombuffer(codes, dtype=np.int64) if codes else np.zeros(0, dtype=np.int64)
    names = list(which)
    numbers, order = ({}, None) if keep_labels else numbering(names, classes)
    # Strata by the sorted labels, so that the subset does not depend on which class comes first.
    ranks = np.argsort(np.argsort(names)) if names else labels
    chosen = stratified(ranks[labels], rows, seed)
    require_room(len(chosen), 8 * len(columns.features))
    x = _features(_rows(path, delimiter, lambda fraction: progress("rows", fraction)), columns, chosen)
    y = np.array(names)[labels[chosen]] if keep_labels else np.array([numbers[n] for n in names])[labels[chosen]]
    return Samples({"x": x}, y, order, (("features", _listing(columns.feature_names, str)),))


def columns_of(names: Sequence[str], *, label: str, drop: Sequence[str]) -> Columns:
    """Tell the columns of a table apart.

    Raises:
        BatchError: ``column_unknown``, ``column_unnamed``, ``no_features``.
    """
    for wanted in (label, *drop):
        if (count := names.count(wanted)) != 1:
            raise BatchError(
                f"the table has no column {wanted!r}" if not count else f"the table has {count} columns {wanted!r}",
                code="column_unknown",
                advice=f"Its columns are {_listing(names)}.",
                columns=list(names)[:_SHOWN],
            )
    features = tuple(index for index, name in enumerate(names) if name != label and name not in drop)
    if unnamed := [index for index in features if not names[index]]:
        raise BatchError(
            f"column {unnamed[0] + 1} has no name: pandas writes an index so, which is no feature",
            code="column_unnamed",
            advice="Leave it out (--drop '', or drop=['']), or give it a name.",
        )
    if not features:
        raise BatchError(
            "no column is left for the features", code="no_features", advice=f"The columns are {_listing(names)}."
        )
    return Columns(names=tuple(names), label=names.index(label), features=features)


def number(text: str) -> float | None:
    """Return the number or truth value that a field holds; NaN if it is missing, None if it is text."""
    try:
        return float(text) if "_" not in text else None
    except ValueError:
        text = text.strip().lower()
        return math.nan if text in MISSING else _TRUTH.get(text)


def require_numbers(
    columns: Sequence[str], values: Iterable[float | None], texts: Sequence[Any], place: str, drop: str = "--drop {!r}"
) -> None:
    """Raise the error of a row in which not every value is a finite number; the advice says how to drop a column.

    Raises:
        BatchError: ``text_column``, ``missing_values``, ``batch_not_finite``.
    """
    found = dict(zip(columns, zip(values, texts, strict=True), strict=True))
    if words := {name: text for name, (value, text) in found.items() if value is None}:
        shown = ", ".join(f"{name!r} ({str(text)!r})" for name, text in list(words.items())[:_SHOWN])
        drops = " ".join(drop.format(name) for name in list(words)[:_SHOWN])
        raise BatchError(
            f"features hold text on {place}: {shown}",
            code="text_column",
            advice=f"Encode them as numbers, as in training, or leave them out: {drops}.",
            columns=list(words)[:_SHOWN],
        )
    for name, (value, text) in found.items():
        if value is not None and math.isnan(value):
            raise _missing(name, place, "Fill or remove the missing values, as in training.")
        if value is not None and math.isinf(value):
            raise BatchError(
                f"column {name!r} holds {str(text)!r} on {place}",
                code="batch_not_finite",
                advice="Remove or replace the values that are not finite.",
            )


def _features(table: Iterator[tuple[int, list[str]]], columns: Columns, chosen: NDArray[np.int64]) -> NDArray[Any]:
    x = np.empty((len(chosen), len(columns.features)))
    next(table)
    wanted = iter(chosen.tolist())
    row, filled = next(wanted), 0
    for index, (line, fields) in enumerate(table):
        if index != row:
            continue
        texts = [fields[column] for column in columns.features]
        values = [number(text) for text in texts]
        if None in values or not all(map(math.isfinite, values)):  # type: ignore[arg-type]
            require_numbers(columns.feature_names, values, texts, f"line {line}")
        x[filled] = values
        filled += 1
        row = next(wanted, -1)
    if filled != len(chosen):
        raise BatchError(
            "the file changed while it was being read", code="source_changed", advice="Run the command again."
        )
    return x


def _header(table: Iterator[tuple[int, list[str]]], label: str, delimiter: str) -> list[str]:
    _, names = next(table, (0, []))
    if not names:
        raise _unreadable("the file has no header line")
    names = [name.strip() for name in names]
    if label not in names and all(number(name) is not None for name in names):
        raise BatchError(
            f"the first line holds values ({_listing(names)}), not names of columns",
            code="csv_no_header",
            advice="Put a line with the names of the columns first.",
        )
    if len(names) == 1 and (other := next((each for each in ";\t|," if each in names[0]), delimiter)) != delimiter:
        shown = "'\\t'" if other == "\t" else repr(other)
        raise _unreadable(f"its lines are divided by {shown}", f"Name the delimiter: --delimiter {shown}.")
    return names


def _rows(path: Path, delimiter: str, progress: Any) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and the fields of each row, the header first; blank lines are skipped."""
    if not path.is_file():
        raise BatchError(f"{path} is not a file", code="source_not_found", advice="Give the path of a CSV file.")
    size, width = max(path.stat().st_size, 1), 0
    try:
        with path.open("rb") as binary, TextIOWrapper(binary, encoding="utf-8-sig", newline="") as file:
            budget = [MAX_ROW_CHARACTERS]
            reader = csv.reader(_lines(file, budget), delimiter=delimiter, skipinitialspace=True)
            for count, fields in enumerate(reader):
                budget[0] = MAX_ROW_CHARACTERS
                if not fields:
                    continue
                width = width or len(fields)
                if len(fields) != width:
                    raise _unreadable(f"line {reader.line_num} has {len(fields)} fields, the header has {width}")
                yield reader.line_num, fields
                if count % _STEP == 0:
                    progress(min(binary.tell() / size, 1.0))
    except OSError as error:
        raise _unreadable(error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise _unreadable("it is not text in UTF-8", "Save it as CSV in UTF-8.") from error
    except csv.Error as error:
        raise _unreadable(f"line {reader.line_num}: {error}") from error


def _lines(file: Any, budget: list[int]) -> Iterator[str]:
    """Yield the lines of a file; a row of several lines has one budget of characters."""
    while line := file.readline(budget[0] + 1):
        budget[0] -= len(line)
        if budget[0] < 0:
            raise csv.Error(f"a row has more than {MAX_ROW_CHARACTERS:,} characters")
        yield line


def _listing(names: Sequence[str], shown: Callable[[str], str] = repr) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(map(shown, names[:_SHOWN])) + more


def _missing(column: str, place: str, advice: str) -> BatchError:
    return BatchError(f"column {column!r} has no value on {place}", code="missing_values", advice=advice, column=column)


def _unreadable(reason: str, advice: str = "Write the file again as CSV, with a header line.") -> BatchError:
    return BatchError(f"the CSV file can't be read: {reason}", code="csv_invalid", advice=advice)
