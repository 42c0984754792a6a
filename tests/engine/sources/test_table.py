"""CSV files and dataframes: what is read, what is refused, and with which advice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wsb_engine as wsb
from wsb_engine.sources import table
from wsb_engine.sources.samples import Samples
from wsb_engine.sources.table import read_csv


def ignore(_phase: str, _fraction: float) -> None: ...


def read(folder: Path, content: str | bytes, label: str = "y", **more: Any) -> Samples:
    path = folder / "data.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_csv(path, label=label, progress=ignore, **more)


def test_features_are_in_the_order_of_the_file_and_text_labels_are_numbered(tmp_path: Path) -> None:
    samples = read(tmp_path, "b,y,a\n1,yes,2.5\n-3e1,no,.5\n+4, yes ,0\n")
    np.testing.assert_array_equal(samples.x["x"], [[1, 2.5], [-30, 0.5], [4, 0]])
    assert samples.y.tolist() == [1, 0, 1]
    assert samples.classes == ("no", "yes")
    assert samples.notes == (("features", "b, a"),)


@pytest.mark.parametrize(
    ("labels", "more", "y"),
    [
        (("3", "1", "3"), {}, [3, 1, 3]),
        (("3.0", "1", "-1"), {}, [3, 1, -1]),
        (("10", "9", "x"), {}, [0, 1, 2]),
        (("3", "1", "3"), {"classes": ("1", "3")}, [1, 0, 1]),
        (("b", "a", "b"), {"classes": ("c", "b", "a")}, [1, 2, 1]),
        (("b", "a", "b"), {"keep_labels": True}, ["b", "a", "b"]),
        (("True", "False", "True"), {}, [1, 0, 1]),
        (("True", "TRUE", "false"), {}, [1, 1, 0]),
        (("true", "TRUE", "true"), {}, [1, 1, 1]),
        (("true", "false", "x"), {}, [1, 0, 2]),
        (("None", "None", "some"), {}, [0, 0, 1]),
    ],
)
def test_labels_become_numbers(tmp_path: Path, labels: tuple[str, ...], more: dict[str, Any], y: list[Any]) -> None:
    assert read(tmp_path, "x,y\n" + "".join(f"1,{each}\n" for each in labels), **more).y.tolist() == y


@pytest.mark.parametrize(
    "content",
    [
        "﻿x,y\n1,0\n2,1\n",
        "x,y\r\n1,0\r\n2,1\r\n",
        "x,y\r1,0\r2,1\r",
        'x, "y"\n"1", 0\n\n2,1',
        "x;y\n1;0\n2;1\n",
        "x\ty\n1\t0\n2\t1\n",
    ],
)
def test_dialects_are_read(tmp_path: Path, content: str) -> None:
    delimiter = next(each for each in ";\t," if each in content)
    samples = read(tmp_path, content, delimiter=delimiter)
    assert (samples.x["x"].tolist(), samples.y.tolist()) == ([[1.0], [2.0]], [0, 1])


def test_truth_values_are_numbers(tmp_path: Path) -> None:
    assert read(tmp_path, "a,y\nTrue,0\nfalse,1\n").x["x"].tolist() == [[1.0], [0.0]]


def test_numbers_are_those_of_python_to_the_last_bit(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(40, 3)) * 10.0 ** np.arange(-150, 150, 100)
    content = "a,b,c,y\n" + "".join(",".join(map(repr, row.tolist())) + ",0\n" for row in values)
    np.testing.assert_array_equal(read(tmp_path, content).x["x"], values)


def test_only_the_chosen_rows_must_be_complete(tmp_path: Path) -> None:
    content = "a,y\n" + "".join(f"{'' if row == 17 else row},{row % 2}\n" for row in range(40))
    with pytest.raises(wsb.BatchError, match="on line 19"):
        read(tmp_path, content)
    samples = read(tmp_path, content, rows=10, seed=3)
    assert 17 not in samples.x["x"]
    np.testing.assert_array_equal(samples.x["x"][:, 0] % 2, samples.y)


@pytest.mark.parametrize(
    ("content", "more", "code", "told"),
    [
        ("", {}, "csv_invalid", "no header"),
        ("x,y\n", {}, "empty_batch", ""),
        ("x,y\n1\n", {}, "csv_invalid", "line 2 has 1 fields"),
        ("x,y\n1,0\n1,2,3\n", {}, "csv_invalid", "line 3 has 3 fields"),
        ("1,2\n3,4\n", {}, "csv_no_header", "first line"),
        ("x;y\n1;0\n", {}, "csv_invalid", "--delimiter ';'"),
        ("x\ty\n1\t0\n", {}, "csv_invalid", "--delimiter '\\t'"),
        ("x,z\n1,0\n", {}, "column_unknown", "'x', 'z'"),
        ("x,y,y\n1,0,0\n", {}, "column_unknown", "2 columns 'y'"),
        ("x,y\n1,0\n", {"drop": ("q",)}, "column_unknown", "'q'"),
        ("x,y\n1,0\n", {"drop": ("x",)}, "no_features", ""),
        (",x,y\n0,1,0\n", {}, "column_unnamed", "--drop ''"),
        ("a,b,c,y\n1,red,big,0\n", {}, "text_column", "--drop 'b' --drop 'c'"),
        ("a,y\n1_000,0\n", {}, "text_column", "'1_000'"),
        ('a,y\n"1,5",0\n', {}, "text_column", "'1,5'"),
        ("a,b,y\n1,2,0\n3,NA,1\n", {}, "missing_values", "'b' has no value on line 3"),
        ("a,y\n1,0\n2,\n", {}, "missing_values", "'y' has no value on line 3"),
        ("a,y\n1,0\n2,NaN\n", {}, "missing_values", "'y' has no value on line 3"),
        ("a,y\ninf,0\n", {}, "batch_not_finite", "'inf' on line 2"),
        ("a,y\n1e999,0\n", {}, "batch_not_finite", "'1e999' on line 2"),
        ("a,y\n1,0.5\n2,1\n", {}, "labels_not_classes", "0.5"),
        ("a,y\n1,u\n", {"classes": ("v",)}, "labels_unknown", "u"),
        ("a,y\n1,u\n", {"classes": ("u", "u")}, "classes_invalid", "'u'"),
        ("a,y\n1,u\n", {"rows": 2}, "too_few_rows", "1 rows"),
        (b"a,y\n\xff\xfe,0\n", {}, "csv_invalid", "UTF-8"),
        (b"PK\x03\x04" + bytes(range(256)), {}, "csv_invalid", ""),
        ("a,y\n" + "9" * 200_000 + ",0\n", {}, "csv_invalid", "line 2"),
        ('a,y\n"' + "0\n" * 200_000, {}, "csv_invalid", "field limit"),
        ("a,y\n\0,0\n", {}, "text_column", ""),
    ],
)
def test_a_bad_table_has_its_code(
    tmp_path: Path, content: str | bytes, more: dict[str, Any], code: str, told: str
) -> None:
    with pytest.raises(wsb.BatchError) as caught:
        read(tmp_path, content, **more)
    assert caught.value.code == code
    assert told in str(caught.value)


@pytest.mark.parametrize("path", ["/dev/zero", "/nonexistent.csv", "/tmp"])  # noqa: S108
def test_what_is_no_file_is_refused(path: str) -> None:
    with pytest.raises(wsb.BatchError, match="source_not_found"):
        read_csv(Path(path), label="y", progress=ignore)


def test_a_dropped_index_is_no_feature(tmp_path: Path) -> None:
    assert read(tmp_path, ",x,y\n7,1,0\n", drop=("",)).x["x"].tolist() == [[1.0]]


def test_a_row_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "MAX_ROW_CHARACTERS", 1000)
    for content in ("a,y\n" + "1," * 600 + "\n", "a,y\n" + '"\n",' * 600):
        with pytest.raises(wsb.BatchError, match="more than 1,000 characters"):
            read(tmp_path, content)


def test_identifiers_as_labels_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsb_engine.sources.labels.MAX_CLASSES", 10)
    with pytest.raises(wsb.BatchError, match="too_many_classes"):
        read(tmp_path, "a,y\n" + "".join(f"1,id{row}\n" for row in range(11)))


def test_a_table_that_is_too_large_says_how_many_rows_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsb_engine.sources.samples.MAX_BYTES", 160)
    content = "a,b,y\n" + "1,2,0\n" * 11
    with pytest.raises(wsb.BatchError, match=r"batch_too_large.*--rows 10\."):
        read(tmp_path, content)
    assert len(read(tmp_path, content, rows=10).y) == 10


@pytest.mark.slow
def test_memory_is_bounded_by_the_subset(tmp_path: Path) -> None:
    path = tmp_path / "large.csv"
    with path.open("w") as file:
        file.write(",".join(f"c{column}" for column in range(300)) + ",y\n")
        line = ",".join(["0.123456789"] * 300)
        file.writelines(f"{line},{row % 7}\n" for row in range(12_000))
    program = (
        "import resource, sys\nfrom pathlib import Path\nfrom wsb_engine.sources.table import read_csv\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\nbefore = peak()\n"
        "read_csv(Path(sys.argv[1]), label='y', rows=100, progress=lambda *_: None)\nprint(peak() - before)"
    )
    run = [sys.executable, "-c", program, str(path)]
    grown = int(subprocess.run(run, capture_output=True, text=True, check=True).stdout) * 1024
    assert path.stat().st_size > 40e6
    assert grown < 20e6
