from __future__ import annotations

import csv
import io
from uuid import UUID

import pytest

from service.series import table
from service.series.checkpoints import Checkpoint, Series
from service.series.quantities import QUANTITIES, Quantity, Value

ANALYSIS = UUID(int=7)


def series(label: str = "run:a", position: str = "1", ranks: tuple[int, ...] = (2, 1)) -> Series:
    scalars = {
        "lambda_max": Value(2.5, "enclosure", 2.0, 3.0, 1e-6),
        "lambda_min": Value(None, "wolkowicz_styan", -3.0, 1.0),
        "loss": Value(0.1, "cross_entropy"),
    }
    checkpoints = [
        Checkpoint(
            analysis=ANALYSIS,
            name=None,
            kind="epoch",
            position=position,
            number=1.0,
            learning_rate=0.5,
            reliable=rank == 2,
            how="",
            scalars=scalars,  # type: ignore[arg-type]
            eigenvalues=[Value(2.5, "dense"), Value(0.5, "dense")][:rank],
            spectrum=(),
            is_whole=True,
            density=None,
        )
        for rank in ranks
    ]
    return Series(label, checkpoints, is_cut=False, unreadable=0)


def rows(*of: Series, quantities: tuple[Quantity, ...] = QUANTITIES) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(table.csv_of(of, quantities), newline="")))


def test_there_is_a_row_for_each_checkpoint_and_quantity_with_what_is_known() -> None:
    found = {row["quantity"]: row for row in rows(series())[:7]}
    ends = {name: (row["lower"], row["upper"], row["value"], row["by"]) for name, row in found.items()}
    assert ends == {
        "lambda_max": ("2.0", "3.0", "2.5", "enclosure"),
        "lambda_min": ("-3.0", "1.0", "", "wolkowicz_styan"),
        "trace": ("", "", "", ""),
        "loss": ("", "", "0.1", "cross_entropy"),
        "accuracy": ("", "", "", ""),
        "eigenvalue_1": ("", "", "2.5", "dense"),
        "eigenvalue_2": ("", "", "0.5", "dense"),
    }
    assert found["lambda_max"]["failure_probability"] == "1e-06"
    assert (found["loss"]["run"], found["loss"]["step"], found["loss"]["learning_rate"]) == ("a", "1", "0.5")
    assert [row["reliable"] for row in rows(series()) if row["quantity"] == "loss"] == ["true", "false"]
    assert {row["analysis"] for row in rows(series())} == {str(ANALYSIS)}


def test_every_checkpoint_has_as_many_rows_and_only_those_asked_for() -> None:
    assert len(rows(series(), series("branch:b"))) == 4 * 7
    assert [row["quantity"] for row in rows(series(ranks=(1,)), quantities=("loss",))] == ["loss"]
    assert {row["run"] for row in rows(series("branch:b"))} == {"branch:b"}


def test_lines_end_as_the_standard_says_and_text_with_separators_is_quoted() -> None:
    written = table.csv_of([series('run:a,"b"')], ["loss"])
    assert written.splitlines(keepends=True)[0].endswith("analysis\r\n")
    assert written.count("\n") == written.count("\r\n") == 3
    assert '"a,""b""",1,loss' in written


@pytest.mark.parametrize("text", ["=1+1", "+1+1", "-1+1", "@SUM(A1)", " =1", "＝1", "-x", "+"])
def test_what_a_spreadsheet_would_run_is_text(text: str) -> None:
    found = rows(series(f"run:{text}", text), quantities=("loss",))
    assert {row["run"] for row in found} == {row["step"] for row in found} == {f"'{text}"}


@pytest.mark.parametrize("text", ["-5", "+3", "-1e-3", "3", "a=b", "last"])
def test_numbers_and_plain_text_stay_as_they_are(text: str) -> None:
    assert {row["step"] for row in rows(series(position=text), quantities=("loss",))} == {text}
