"""Dataframes of pandas, polars and others, by their columns alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsb_engine.errors import BatchError
from wsb_engine.sources.labels import numbering, text_of
from wsb_engine.sources.samples import Samples, require_room
from wsb_engine.sources.subset import strata_of, stratified
from wsb_engine.sources.table import Columns, columns_of, number, require_numbers


def read_frame(
    frame: Any,
    *,
    label: str,
    drop: Sequence[str] = (),
    classes: Sequence[str] | None = None,
    rows: int | None = None,
    seed: int = 0,
) -> Samples:
    """Read a dataframe as ``read_csv`` reads a file: one input x with all columns but the label.

    Args:
        frame: Anything with ``columns`` (names) and ``frame[name]`` (a column that numpy can convert).
        label: Name of the column with the classes.
        drop: Names of columns to leave out.
        classes: Names of all classes in logit order; None keeps integers and numbers text in sorted order.
        rows: Rows of a random stratified subset; None for all.
        seed: Seed of the subset.

    Raises:
        BatchError: as ``read_csv``, and ``not_a_dataframe``.
    """
    if not hasattr(frame, "columns") or not hasattr(frame, "__getitem__"):
        raise BatchError(
            f"a {type(frame).__name__} is not a dataframe",
            code="not_a_dataframe",
            advice="Give a dataframe of pandas or polars; for arrays use Batch.from_arrays.",
        )
    columns = columns_of([str(name) for name in frame.columns], label=label, drop=drop)
    keys = dict(zip(columns.names, frame.columns, strict=True))
    if len(keys) != len(columns.names):
        raise BatchError(
            "two columns have the same name", code="column_repeated", advice="Give each column a different name."
        )
    y, names = _labels(np.asarray(frame[keys[label]]), classes)
    chosen = stratified(strata_of(y), rows, seed)
    require_room(len(chosen), 8 * len(columns.features))
    x = np.empty((len(chosen), len(columns.features)), dtype=np.float64)
    for index, name in enumerate(columns.feature_names):
        x[:, index] = _numbers(np.asarray(frame[keys[name]])[chosen])
    _require_complete(frame, keys, columns, chosen, x)
    return Samples({"x": x}, y[chosen], names)


def _labels(y: NDArray[Any], classes: Sequence[str] | None) -> tuple[NDArray[Any], tuple[str, ...] | None]:
    if y.dtype.kind == "f" and np.isnan(y).any():
        raise BatchError(
            f"the label in row {int(np.argmax(np.isnan(y)))} is missing",
            code="missing_values",
            advice="Remove the rows without a label.",
        )
    if y.dtype.kind in "iub" or (y.dtype.kind == "f" and bool((y == np.floor(y)).all())):
        y = y.astype(np.int64)
        if classes is None:
            return y, None
    texts = text_of(y)
    distinct, which = np.unique(y.astype(np.str_) if texts is None else texts, return_inverse=True)
    numbers, names = numbering(distinct.tolist(), classes)
    return np.array([numbers[each] for each in distinct.tolist()], dtype=np.int64)[which], names


def _numbers(column: NDArray[Any]) -> NDArray[np.float64]:
    """Return numbers, with NaN for whatever is none."""
    if column.dtype.kind in "fiub":
        return column.astype(np.float64)
    if not column.dtype.hasobject:
        return np.full(len(column), math.nan)
    return np.array([_real(value) for value in column])


def _real(value: Any) -> float:
    try:
        return math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        return math.nan


def _require_complete(
    frame: Any, keys: dict[str, Any], columns: Columns, chosen: NDArray[np.int64], x: NDArray[np.float64]
) -> None:
    finite = np.isfinite(x).all(axis=1)
    if finite.all():
        return
    row = int(chosen[np.argmin(finite)])
    values = [np.asarray(frame[keys[name]])[row] for name in columns.feature_names]
    numbers = [number(str(value)) if not isinstance(value, str) else _word(value) for value in values]
    require_numbers(columns.feature_names, numbers, values, f"row {row}", "drop=[{!r}]")


def _word(text: str) -> float | None:
    """Return NaN for text that stands for a missing number, otherwise None, digits included."""
    found = number(text)
    return found if found is not None and math.isnan(found) else None
