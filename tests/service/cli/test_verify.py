"""`wsb verify`: exit codes, what is printed, and verdicts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.command import wsb_here as wsb
from support.service import npz_batch, onnx_mlp
from typer.testing import CliRunner

from service.cli.commands import app
from wsb_engine.verification.findings import Verification

POLICY = """
[[rule]]
metric = "enclosure.lambda_max.upper"
op = "<="
limit = 1000.0

[[rule]]
metric = "loss.value"
max_relative_increase = 0.1

[[rule]]
metric = "stability_ratio"
op = "<"
limit = 1.0
severity = "warn"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a batch, their report, and a verdict against that report as baseline."""
    folder = tmp_path_factory.mktemp("verify")
    (folder / "model.onnx").write_bytes(onnx_mlp())
    (folder / "batch.npz").write_bytes(npz_batch())
    (folder / "policy.toml").write_text(POLICY)
    files = (f"{folder}/model.onnx", f"{folder}/batch.npz")
    base = wsb("analyze", *files, f"--json={folder}/baseline.json")
    assert base.returncode == 0, base.stderr
    outputs = (f"--json={folder}/report.json", f"--verdict={folder}/verdict.json", f"--baseline={folder}/baseline.json")
    checked = wsb("check", *files, f"--policy={folder}/policy.toml", "--learning-rate=0.01", *outputs)
    assert checked.returncode == 0, checked.stderr
    return folder


def run(folder: Path, *arguments: str) -> Any:
    """Run the command in this process, as far as it needs no sandbox."""
    return CliRunner().invoke(app, ["verify", *(f"{folder}/{each}" if "." in each else each for each in arguments)])


def forged(folder: Path, name: str, *place: Any, value: Any) -> str:
    """Write a copy of a file with one value changed; return its name."""
    document = json.loads((folder / name).read_text())
    part = document
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    (folder / "forged.json").write_text(json.dumps(document))
    return "forged.json"


def test_a_report_alone_holds_and_what_needs_the_files_is_listed(folder: Path) -> None:
    result = run(folder, "report.json")
    assert result.exit_code == 0, result.output
    assert "not checked without model and batch: " in result.output
    assert "loss.value" in result.output
    assert " 0 are wrong" in result.output


def test_a_changed_report_ends_with_1_and_names_the_number(folder: Path) -> None:
    name = forged(folder, "report.json", "bounds_list", 0, "lambda_max", "upper", value=1e3)
    result = run(folder, name)
    assert result.exit_code == 1
    assert "WRONG       bounds_list.0.lambda_max.upper: 1000.0 claimed, " in result.output


def test_with_model_and_batch_the_analysis_is_repeated_in_the_sandbox(folder: Path) -> None:
    files = [f"{folder}/{name}" for name in ("report.json", "model.onnx", "batch.npz")]
    result = wsb("verify", *files, "--json=-")
    assert result.returncode == 0, result.stderr + result.stdout
    found = Verification.model_validate_json(result.stdout)
    assert (found.passed, found.repeated, found.exact, found.not_checked) == (True, True, True, [])
    name = forged(folder, "report.json", "loss", "value", value=0.123)
    result = wsb("verify", f"{folder}/{name}", *files[1:])
    assert result.returncode == 1, result.stderr
    assert "WRONG       loss.value: 0.123 claimed, " in result.stdout


def test_a_verdict_holds_as_it_is(folder: Path) -> None:
    verdict = json.loads((folder / "verdict.json").read_text())
    assert verdict["outcome"] == "pass"
    for baseline in (["--baseline", "baseline.json"], []):
        result = run(folder, "report.json", "--verdict", "verdict.json", *baseline)
        assert result.exit_code == 0, result.output
    (folder / "analysis.json").write_text(json.dumps({"id": "some", "verdict": verdict}))
    assert run(folder, "report.json", "--verdict", "analysis.json").exit_code == 0


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("outcome",), "fail"),
        (("message",), "3 rules: 2 passed, 1 warned."),
        (("code",), "undecided"),
        (("rules", 0, "outcome"), "fail"),
        (("rules", 0, "value"), 1.0),
        (("rules", 0, "limit"), 1e-3),
        (("rules", 0, "op"), ">"),
        (("rules", 0, "interval", "upper"), 2e3),
        (("rules", 0, "interval"), None),
        (("rules", 1, "baseline"), 5.0),
        (("rules", 1, "max_relative_increase"), -0.5),
        (("rules", 1, "outcome"), "error"),
        (("rules", 2, "value"), 3.0),
        (("rules", 2, "outcome"), "warn"),
        (("rules", 2, "code"), "missing"),
    ],
)
def test_a_changed_verdict_is_found(folder: Path, place: tuple[Any, ...], value: Any) -> None:
    name = forged(folder, "verdict.json", *place, value=value)
    result = run(folder, "report.json", "--verdict", name, "--baseline", "baseline.json")
    assert result.exit_code == 1, result.output
    assert "WRONG       verdict." in result.output


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["report.json", "model.onnx"], "batch_missing"),
        (["policy.toml"], "report_invalid"),
        (["missing.json"], "report_unreadable"),
        (["report.json", "--baseline", "baseline.json"], "verdict_missing"),
        (["report.json", "--verdict", "policy.toml"], "verdict_invalid"),
        (["report.json", "--verdict", "report.json"], "verdict_invalid"),
        (["report.json", "--verdict", "missing.json"], "verdict_unreadable"),
    ],
)
def test_what_can_not_be_verified_ends_with_2_and_a_code(folder: Path, arguments: list[str], code: str) -> None:
    result = run(folder, *arguments)
    assert result.exit_code == 2
    assert f"[{code}]" in result.stderr


def test_json_alone_goes_to_stdout(folder: Path) -> None:
    result = run(folder, "report.json", "--json", "-")
    assert result.exit_code == 0
    assert Verification.model_validate_json(result.stdout).passed
