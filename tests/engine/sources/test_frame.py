"""Dataframes, through the little that those of pandas and polars have in common."""

from __future__ import annotations

import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wsb_engine as wsb
from wsb_engine.sources.table import read_csv


class Frame:
    def __init__(self, **columns: Any) -> None:
        self._columns = columns
        self.columns = list(columns)

    def __getitem__(self, name: str) -> Any:
        return self._columns[name]


LABELS = np.array(["b", "a", "b"], dtype=object)


def test_columns_become_one_input() -> None:
    frame = Frame(n=np.array([1, 2, 3]), y=LABELS, t=[True, False, True], f=np.array([0.5, 1.5, 2.5]))
    batch = wsb.Batch.from_dataframe(frame, "y")
    assert batch.x["x"].tolist() == [[1, 1, 0.5], [2, 0, 1.5], [3, 1, 2.5]]
    assert batch.y.tolist() == [1, 0, 1]


def test_a_frame_and_its_csv_file_give_the_same_batch(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(30, 2))
    labels = np.arange(30) % 4
    content = "a,b,y\n" + "".join(f"{a!r},{b!r},{y}\n" for (a, b), y in zip(values.tolist(), labels, strict=True))
    (tmp_path / "f.csv").write_text(content)
    batch = wsb.Batch.from_dataframe(Frame(a=values[:, 0], b=values[:, 1], y=labels), "y", rows=9, seed=5)
    samples = read_csv(tmp_path / "f.csv", label="y", rows=9, seed=5, progress=lambda *_: None)
    np.testing.assert_array_equal(batch.x["x"].numpy(), samples.x["x"].astype(np.float32))
    np.testing.assert_array_equal(batch.y, samples.y)


@pytest.mark.parametrize(
    ("labels", "classes", "y"),
    [
        ([3, 1, 3], None, [3, 1, 3]),
        ([3.0, 1.0, 3.0], None, [3, 1, 3]),
        ([3, 1, 3], ["1", "3"], [1, 0, 1]),
        ([True, False, True], None, [1, 0, 1]),
        (["b", "a", "b"], ["b", "a"], [0, 1, 0]),
        ([b"b", b"a", b"b"], None, [1, 0, 1]),
    ],
)
def test_labels_become_numbers(labels: list[Any], classes: list[str] | None, y: list[int]) -> None:
    frame = Frame(x=[1, 2, 3], y=np.array(labels))
    assert wsb.Batch.from_dataframe(frame, "y", classes=classes).y.tolist() == y


@pytest.mark.parametrize(
    ("column", "code", "told"),
    [
        ([1.0, np.nan, 2.0], "missing_values", "row 1"),
        ([1.0, np.inf, 2.0], "batch_not_finite", "row 1"),
        (np.array([1, None, 2], dtype=object), "missing_values", "row 1"),
        (np.array(["u", "v", "w"]), "text_column", "'u'"),
        (np.array([1, "2", 3], dtype=object), "text_column", "'2'"),
        (np.array(["2026-01-01"] * 3, dtype="datetime64[ns]"), "text_column", "2026"),
        (np.array([datetime.date(2026, 1, 1)] * 3, dtype=object), "text_column", "2026"),
        (np.array([1j, 2, 3]), "text_column", "1j"),
    ],
)
def test_a_column_of_other_things_is_named(column: Any, code: str, told: str) -> None:
    with pytest.raises(wsb.BatchError) as caught:
        wsb.Batch.from_dataframe(Frame(other=[1, 2, 3], bad=column, y=LABELS), "y")
    assert caught.value.code == code
    assert "'bad'" in caught.value.message
    assert told in caught.value.message
    assert len(wsb.Batch.from_dataframe(Frame(other=[1, 2, 3], bad=column, y=LABELS), "y", drop=["bad"])) == 3


def test_objects_that_are_numbers_are_read() -> None:
    frame = Frame(x=np.array([Decimal("1.5"), 2, np.float32(3)], dtype=object), y=[0, 1, 0])
    assert wsb.Batch.from_dataframe(frame, "y").x["x"].tolist() == [[1.5], [2], [3]]


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (np.eye(3), "not_a_dataframe"),
        (Frame(x=[1, 2, 3]), "column_unknown"),
        (Frame(y=LABELS), "no_features"),
        (Frame(x=[1.0, 2.0, 3.0], y=np.array([0.5, 1.0, 0.0])), "labels_not_classes"),
        (Frame(x=[1.0, 2.0, 3.0], y=np.array([0.0, np.nan, 1.0])), "missing_values"),
        (Frame(x=[1.0, 2.0, 3.0], y=np.array(["a", None, "b"], dtype=object)), "missing_values"),
        (Frame(x=[1e300, 2.0, 3.0], y=LABELS), "batch_not_finite"),
    ],
)
def test_a_bad_frame_has_its_code(frame: Any, code: str) -> None:
    with pytest.raises(wsb.BatchError) as caught:
        wsb.Batch.from_dataframe(frame, "y")
    assert caught.value.code == code


def test_columns_of_one_name_are_refused() -> None:
    frame = Frame(x=[1, 2, 3], y=LABELS)
    frame.columns.append("x")
    with pytest.raises(wsb.BatchError, match="column_repeated"):
        wsb.Batch.from_dataframe(frame, "y")
