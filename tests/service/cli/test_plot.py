"""`wsb plot` as an author of a paper runs it: figures of one report and of several, and what it says when it can't."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from support.command import wsb, wsb_here
from support.forms import full, thinned
from support.stored import require_matplotlib, stored_report
from typer.testing import CliRunner

from service.cli.commands import app
from service.cli.outputs import MAX_REPORT_BYTES
from wsb_engine.report import Report

require_matplotlib()


def with_largest(upper: float) -> Report:
    report = stored_report("perceptron")
    assert report.enclosure is not None
    interval = report.enclosure.lambda_max.model_copy(update={"lower": 0.9 * upper, "upper": upper})
    return report.model_copy(update={"enclosure": report.enclosure.model_copy(update={"lambda_max": interval})})


@pytest.fixture(scope="module")
def reports() -> dict[str, str]:
    """Their texts by their names; one process runs all tests here, and so imports matplotlib only once."""
    found = {f"{name}-{step}": with_largest(step + 1.0) for name in ("adam", "sgd") for step in (0, 100, 20)}
    found |= {
        "full": stored_report("perceptron"),
        "bare": stored_report("general"),
        "empty": stored_report("nothing"),
        "doubtful": stored_report("doubtful"),
    }
    return {name: report.model_dump_json() for name, report in found.items()}


@pytest.fixture
def folder(reports: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, text in reports.items():
        (tmp_path / f"{name}.json").write_text(text, encoding="utf-8")
    return tmp_path


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["plot", *arguments])


def text_of(figure: Path) -> list[str]:
    """The texts of a vector image: matplotlib writes each as a comment."""
    return re.findall(r"<!-- (.*?) -->", figure.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("suffix", "first"), [full("pdf", b"%PDF-"), ("svg", b"<?xml"), full("png", b"\x89PNG"), full("PDF", b"%PDF-")]
)
def test_the_suffix_chooses_the_format(folder: Path, suffix: str, first: bytes) -> None:
    result = run("full.json", "--out", f"figure.{suffix}")
    assert (result.exit_code, result.output) == (0, "")
    assert (folder / f"figure.{suffix}").read_bytes().startswith(first)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["svg", full("pdf")])
def test_two_processes_write_the_same_bytes(folder: Path, suffix: str) -> None:
    for command, name in ((wsb, f"one.{suffix}"), (wsb_here, f"two.{suffix}")):
        done = command("plot", "adam-0.json", "adam-20.json", "--out", name, cwd=folder, SOURCE_DATE_EPOCH="")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (folder / f"one.{suffix}").read_bytes() == (folder / f"two.{suffix}").read_bytes()


@pytest.mark.slow
def test_one_report_is_drawn_by_what_it_has(folder: Path) -> None:
    run("full.json", "--out", "full.svg")
    run("bare.json", "--out", "bare.svg")
    assert "density" in text_of(folder / "full.svg")
    assert "eigenvalue" in text_of(folder / "bare.svg")


@pytest.mark.slow
@pytest.mark.parametrize(
    "quantity", thinned(["density", "spectrum", "bounds", "convergence", "loss.value", "lambda_max"], 3)
)
def test_any_quantity_of_one_report_can_be_drawn(folder: Path, quantity: str) -> None:
    result = run("full.json", "--out", "figure.svg", "--quantity", quantity)
    assert (result.exit_code, result.output) == (0, "")


def test_reports_are_placed_by_the_step_in_their_names_with_a_curve_for_each_rest(folder: Path) -> None:
    paths = sorted(path.name for path in folder.glob("[as][dg]*.json"))
    assert len(paths) == 6
    assert run(*paths, "--out", "figure.svg").exit_code == 0
    texts = text_of(folder / "figure.svg")
    assert {"adam", "sgd", "step"} <= set(texts)
    assert not {"adam-0", "empty"} & set(texts)


def test_reports_without_steps_stand_side_by_side_under_their_names(folder: Path) -> None:
    assert run("full.json", "bare.json", "--out", "figure.svg").exit_code == 0
    assert {"full", "bare"} <= set(text_of(folder / "figure.svg"))


def test_reports_of_one_name_are_named_by_their_folders(folder: Path) -> None:
    for name in ("left", "right"):
        (folder / name).mkdir()
        (folder / name / "report.json").write_bytes((folder / "full.json").read_bytes())
    assert run("left/report.json", "right/report.json", "--out", "figure.svg").exit_code == 0
    assert {"left", "right"} <= set(text_of(folder / "figure.svg"))


@pytest.mark.slow
def test_densities_are_laid_over_each_other(folder: Path) -> None:
    result = run("adam-0.json", "full.json", "bare.json", "--out", "figure.svg", "--quantity", "density")
    assert result.exit_code == 0
    assert result.stderr == "bare.json is left out: This report has no density to plot.\n"
    assert {"adam-0", "full"} <= set(text_of(folder / "figure.svg"))


def test_a_learning_rate_draws_the_limit_of_stability(folder: Path) -> None:
    steps = ("adam-0.json", "adam-20.json", "--out", "figure.svg", "--learning-rate", "0.5")
    assert run(*steps).exit_code == 0
    assert r"$2/\eta$" in text_of(folder / "figure.svg")
    assert run(*steps, "--quantity", "stability_ratio").exit_code == 0
    assert "stability_ratio" in text_of(folder / "figure.svg")


def test_what_has_no_place_is_said(folder: Path) -> None:
    result = run("full.json", "empty.json", "--out", "figure.svg")
    assert (result.exit_code, result.stderr) == (0, "empty.json is left out: it has no lambda_max.\n")
    result = run("full.json", "--out", "figure.svg", "--quantity", "enclosure.lambda_min", "--log")
    assert result.stderr == "1 of 1 reports are left out: their enclosure.lambda_min is not positive.\n"


def test_a_report_with_a_failed_check_is_drawn_and_named(folder: Path) -> None:
    result = run("doubtful.json", "--out", "figure.svg")
    assert result.exit_code == 0
    assert result.stderr == "doubtful.json: The numbers of this report can't be relied on. [check_failed]\n"
    assert "The numbers of this report can't be relied on." in text_of(folder / "figure.svg")
    assert "[check_failed]" in run("doubtful.json", "full.json", "--out", "figure.svg").stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("full.json", "--out", "figure.jpg"), "[figure_format]"),
        (("full.json", "--out", "figure"), "[figure_format]"),
        (("full.json", "--out", "nowhere/figure.pdf"), "can't be written"),
        (("nothing.json", "--out", "figure.pdf"), "does not exist"),
        (("full.json", "--out", "f.pdf", "--quantity", "enclosure.lambda_mx"), "did you mean 'enclosure.lambda_max"),
        (("full.json", "--out", "f.pdf", "--quantity", "model.sha256"), "[quantity_invalid]"),
        (("full.json", "bare.json", "--out", "f.pdf", "--quantity", "bounds"), "[quantity_invalid]"),
        (("full.json", "--out", "f.pdf", "--quantity", "stability_ratio"), "--learning-rate"),
        (("full.json", "--out", "f.pdf", "--quantity", "loss.value", "--learning-rate", "1"), "--learning-rate goes"),
        (("full.json", "--out", "f.pdf", "--learning-rate", "0"), "--learning-rate"),
        (("bare.json", "--out", "f.pdf", "--quantity", "density"), "[plot_unavailable]\nAnalyse with density=True"),
        (("empty.json", "--out", "f.pdf"), "[plot_unavailable]"),
        (("empty.json", "empty.json", "--out", "f.pdf"), "[quantity_missing]"),
        (("full.json", "--out", "f.pdf", "--width", "0"), "--width"),
        (("full.json", "--out", "f.pdf", "--quantity", "bounds", "--width", "1"), "[figure_too_small]"),
        (("full.json", "--out", "f.pdf", "--height", "1e9"), "--height"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_written(folder: Path, arguments: tuple[str, ...], told: str) -> None:
    before = sorted(folder.iterdir())
    result = run(*arguments)
    assert (result.exit_code, told in result.stderr) == (2, True), result.stderr
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"{}", "report_invalid"), (b"\x00", "report_invalid"), (None, "report_version"), (b"", "report_invalid")],
)
def test_a_file_that_is_no_report_is_refused(folder: Path, content: bytes | None, code: str) -> None:
    newer = re.sub(rb'"schema_version":"1[.]\d"', b'"schema_version":"2.0"', (folder / "full.json").read_bytes())
    (folder / "wrong.json").write_bytes(newer if content is None else content)
    result = run("full.json", "wrong.json", "--out", "figure.pdf")
    assert (result.exit_code, f"[{code}]" in result.stderr) == (2, True), result.stderr
    assert "wrong.json" in result.stderr


def test_a_file_larger_than_any_report_is_refused_unparsed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_REPORT_BYTES == 1 << 30
    monkeypatch.setattr("service.cli.outputs.MAX_REPORT_BYTES", 10)
    result = run("full.json", "--out", "figure.pdf")
    assert (result.exit_code, "[report_too_large]" in result.stderr) == (2, True)


def test_reports_of_the_first_schema_are_drawn(folder: Path) -> None:
    stored = Path(__file__).parents[2] / "engine" / "reports" / "schema_1_0_dense.json"
    result = run(str(stored), "--out", "figure.svg")
    assert (result.exit_code, result.output) == (0, "")


def test_names_are_shown_as_they_are(folder: Path) -> None:
    for name in (r"$\frac{1$", "_hidden"):
        (folder / f"{name}.json").write_bytes((folder / "full.json").read_bytes())
    result = run(r"$\frac{1$.json", "_hidden.json", "--out", "figure.svg", "--quantity", "density")
    assert (result.exit_code, result.output) == (0, "")


def test_neither_a_long_name_nor_a_long_path_is_cut(folder: Path) -> None:
    names = [f"resnet50-imagenet-adam-learning-rate-{rate}" for rate in ("small", "large")]
    for name in names:
        (folder / f"{name}.json").write_bytes((folder / "full.json").read_bytes())
    quantity = "bounds_list.wolkowicz_styan.lambda_max.upper"
    run(*(f"{name}.json" for name in names), "--out", "figure.svg", "--quantity", quantity)
    assert {*names, quantity} <= set(text_of(folder / "figure.svg"))


def test_without_matplotlib_it_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run("full.json", "--out", "figure.pdf")
    assert result.exit_code == 2
    assert result.stderr == (
        "Plots are drawn by matplotlib, which is not installed [matplotlib_missing]\n"
        "pip install 'wsb-sharpness[plot]'\n"
    )
