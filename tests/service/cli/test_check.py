"""`wsb check`: the policy decides the exit code."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import httpx
import psycopg
import pytest
from support.command import wsb_here as wsb
from support.forms import full
from support.service import StartService, npz_batch, onnx_mlp, running_service, submit

from service.policies import Verdict
from service.settings import Settings
from wsb_engine.report import Report

# The server of these tests answers every analysis with a loss of 0.5 and without any bounds.
PASSING = '[[rule]]\nmetric = "loss.value"\nop = "<="\nlimit = 0.6\n'
FAILING = PASSING.replace("0.6", "0.4")
MISSING = '[[rule]]\nmetric = "enclosure.lambda_max"\nop = "<="\nlimit = 1\n'


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    (tmp_path / "model.onnx").write_bytes(onnx_mlp())
    (tmp_path / "batch.npz").write_bytes(npz_batch())
    return str(tmp_path / "model.onnx"), str(tmp_path / "batch.npz")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the files above after one product, when the enclosure is wide."""
    folder = tmp_path_factory.mktemp("wide")
    (folder / "model.onnx").write_bytes(onnx_mlp())
    (folder / "batch.npz").write_bytes(npz_batch())
    report = folder / "report.json"
    result = wsb("analyze", f"{folder}/model.onnx", f"{folder}/batch.npz", "--max-products=1", f"--json={report}")
    assert result.returncode == 0, result.stderr
    return report


@pytest.fixture(scope="module")
def server(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of one service for all tests here: what they send does not stay."""
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("CREATE DATABASE checks TEMPLATE template")
    head, _, query = postgres.partition("?")
    database = f"{head.rsplit('/', 1)[0]}/checks?{query}"
    values = {"data_dir": tmp_path_factory.mktemp("data"), "poll_seconds": 0.5, "shutdown_seconds": 0.5}
    settings = Settings(_env_file=None, database_url=database, **values)
    with running_service(settings, worker=True) as service:
        yield service.url


def policy(folder: Path, text: str) -> str:
    path = folder / "policy.toml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("text", "code", "told"),
    [
        (PASSING, 0, "verdict   pass: 1 rule: 1 passed."),
        (FAILING, 1, "FAIL      loss.value is 0.5: it is not <= 0.4."),
        full(FAILING + 'severity = "warn"\n', 0, "WARN      loss.value is 0.5: it is not <= 0.4."),
        full(FAILING + MISSING, 1, "verdict   fail: 2 rules: 1 failed, 1 not decided."),
        (MISSING, 3, "verdict   error [missing]: 1 rule: 1 not decided."),
        full(MISSING + 'on_missing = "pass"\n', 0, "pass      The report has no enclosure.lambda_max."),
        full(MISSING + 'on_missing = "fail"\n', 1, "FAIL      The report has no enclosure.lambda_max."),
        full(
            MISSING + 'on_missing = "fail"\nseverity = "warn"\n', 0, "WARN      The report has no enclosure.lambda_max."
        ),
    ],
)
def test_the_policy_decides_the_exit_code(
    server: str, files: tuple[str, str], tmp_path: Path, text: str, code: int, told: str
) -> None:
    result = wsb("check", *files, "--policy", policy(tmp_path, text), "--url", server)
    assert (result.returncode, told in result.stdout) == (code, True), (result.stdout, result.stderr)


@pytest.mark.parametrize(("more", "code"), [("", 3), full("allow_failed_checks = true\n", 0)])
def test_a_failed_check_is_told_before_any_number_whatever_the_policy(
    server: str, files: tuple[str, str], tmp_path: Path, more: str, code: int
) -> None:
    flags = ("--url", server, "--output", "doubtful", "--policy", policy(tmp_path, more + PASSING))
    result = wsb("check", *files, *flags)
    assert result.returncode == code, result.stderr
    assert result.stdout.startswith("IN DOUBT  The numbers of this report can't be relied on.\n")


@pytest.mark.parametrize(("output", "code"), [full("fail", 2), ("crash", 3), full("sleep:60", 3)])
def test_an_analysis_without_a_report_ends_as_analyze_does(
    server: str, files: tuple[str, str], tmp_path: Path, output: str, code: int
) -> None:
    flags = ("--url", server, "--output", output, "--timeout", "1")
    result = wsb("check", *files, "--policy", policy(tmp_path, PASSING), *flags)
    assert (result.returncode, result.stdout) == (code, "")


@pytest.mark.slow
def test_a_server_that_stays_busy_ends_with_3_and_says_what_to_do(
    start_service: StartService, files: tuple[str, str], tmp_path: Path
) -> None:
    service = start_service(worker=False, max_queue=1)
    content = {name: Path(path).read_bytes() for name, path in zip(("model", "batch"), files, strict=True)}
    submit(service, content)
    flags = ("--policy", policy(tmp_path, PASSING), "--url", service.url, "--timeout", "6")
    result = wsb("check", *files, *flags, "--seed", "1")
    assert result.returncode == 3, result.stderr
    assert "busy, The limit on queued analyses, 1, is reached." in result.stderr
    for told in ("[queue_full]", "no longer than 6 seconds", "again in 5 seconds", "longer --timeout", "WSB_MAX_QUEUE"):
        assert told in result.stderr


@pytest.mark.slow
def test_a_broken_model_ends_with_2(files: tuple[str, str], tmp_path: Path) -> None:
    result = wsb("check", files[1], files[1], "--policy", policy(tmp_path, PASSING))
    assert (result.returncode, "[arguments_swapped]" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (PASSING.replace("loss.value", "loss.valu"), "rule 1 (line 1), metric: loss has no 'valu'"),
        (PASSING + "sevrity = 1\n", "did you mean 'severity'?"),
        ("[[rule]\n", "is no TOML"),
        ('[[rule]]\nmetric = "loss.value"\nmax_increase = 1\n', "give one with --baseline"),
    ],
)
def test_a_broken_policy_ends_with_2_before_anything_is_analysed(
    files: tuple[str, str], tmp_path: Path, text: str, told: str
) -> None:
    result = wsb("check", *files, "--policy", policy(tmp_path, text))
    assert (result.returncode, result.stdout) == (2, "")
    assert told in result.stderr
    assert "start" not in result.stderr  # no progress


def test_a_missing_policy_is_a_usage_error(files: tuple[str, str]) -> None:
    assert wsb("check", *files).returncode == 2
    assert wsb("check", *files, "--policy", "/nonexistent.toml").returncode == 2


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{}", "is not a report"),
        ("[" * 100_000, "is not a report"),
        full("{", "is not a report"),
        full("", "is not a report"),
    ],
)
def test_a_broken_baseline_ends_with_2_before_anything_is_analysed(
    files: tuple[str, str], tmp_path: Path, content: str, told: str
) -> None:
    (tmp_path / "base.json").write_text(content)
    result = wsb("check", *files, "--policy", policy(tmp_path, PASSING), "--baseline", f"{tmp_path}/base.json")
    assert (result.returncode, told in result.stderr, "start" in result.stderr) == (2, True, False)


@pytest.mark.slow
def test_a_baseline_of_another_major_version_ends_with_2(files: tuple[str, str], tmp_path: Path, wide: Path) -> None:
    document = {**json.loads(wide.read_text()), "schema_version": "2.0"}
    (tmp_path / "base.json").write_text(json.dumps(document))
    result = wsb("check", *files, "--policy", policy(tmp_path, PASSING), "--baseline", f"{tmp_path}/base.json")
    assert (result.returncode, "has report schema 2.0" in result.stderr) == (2, True)


@pytest.mark.slow
def test_a_limit_inside_the_enclosure_is_undecided_and_ends_with_3(
    files: tuple[str, str], tmp_path: Path, wide: Path
) -> None:
    enclosure = Report.model_validate_json(wide.read_text()).enclosure
    assert enclosure is not None
    middle = (enclosure.lambda_max.lower + enclosure.lambda_max.upper) / 2
    text = f'[[rule]]\nmetric = "enclosure.lambda_max.upper"\nop = "<="\nlimit = {middle!r}\n'
    result = wsb("check", *files, "--policy", policy(tmp_path, text), "--max-products", "1")
    assert (result.returncode, "[undecided]" in result.stdout) == (3, True), (result.stdout, result.stderr)
    tighter = wsb("check", *files, "--policy", policy(tmp_path, text))
    assert tighter.returncode in (0, 1), tighter.stdout


def test_a_gate_stops_as_soon_as_it_is_decided_with_the_same_verdict(
    files: tuple[str, str], tmp_path: Path, wide: Path
) -> None:
    enclosure = Report.model_validate_json(wide.read_text()).enclosure
    assert enclosure is not None
    flags = ("--moments", "none", "--json", f"{tmp_path}/r.json")
    for limit, code in ((10 * enclosure.lambda_max.upper, 0), (0.1 * enclosure.lambda_max.lower, 1)):
        text = f'[[rule]]\nmetric = "enclosure.lambda_max"\nop = "<="\nlimit = {limit!r}\n'
        spent = {}
        for stop in ("decided", "gap") if code else ("decided",):
            result = wsb("check", *files, "--policy", policy(tmp_path, text), *flags, "--stop", stop)
            assert result.returncode == code, result.stdout + result.stderr
            found = Report.model_validate_json((tmp_path / "r.json").read_text()).enclosure
            assert found is not None
            spent[found.stopped_by] = found.hessian_vector_products
    assert spent["decided"] < spent["gap"]


def test_a_gate_on_a_server_stops_as_soon_as_it_is_decided(
    server: str, files: tuple[str, str], tmp_path: Path, wide: Path
) -> None:
    """The server's worker answers with what it was told of the policy."""
    text = '[[rule]]\nmetric = "enclosure.lambda_max"\nmax_increase = 1.0\non_missing = "pass"\n'
    flags = ("--policy", policy(tmp_path, text), "--baseline", str(wide), "--json", f"{tmp_path}/r.json")
    result = wsb("check", *files, *flags, "--url", server, "--stop", "decided", "--output", "terms")
    assert result.returncode == 2, result.stdout + result.stderr  # its report is of another model than the baseline
    [warning] = Report.model_validate_json((tmp_path / "r.json").read_text()).warnings
    [condition] = json.loads(warning.message)["gate"]["conditions"]
    assert condition["baseline"]["upper"] > condition["baseline"]["lower"]


def test_a_passing_check_becomes_the_baseline_of_the_next(server: str, files: tuple[str, str], tmp_path: Path) -> None:
    text = '[[rule]]\nmetric = "loss.value"\nmax_increase = 0.1\non_missing = "pass"\n'
    flags = ("--policy", policy(tmp_path, text), "--url", server, "--baseline-name", "main", "--promote-on", "pass")
    first = wsb("check", *files, *flags)
    assert (first.returncode, "Baseline main is now" in first.stderr) == (0, True), first.stdout + first.stderr
    second = wsb("check", *files, *flags)
    assert (second.returncode, "in place of" in second.stderr) == (0, True), second.stderr
    assert "it has not risen by more than 0.1" in second.stdout


@pytest.mark.slow
def test_a_failing_check_promotes_nothing(server: str, files: tuple[str, str], tmp_path: Path) -> None:
    flags = ("--policy", policy(tmp_path, FAILING), "--url", server, "--baseline-name", "n", "--promote-on", "warn")
    result = wsb("check", *files, *flags)
    assert (result.returncode, "Baseline" in result.stderr) == (1, False)
    assert httpx.get(f"{server}/v1/baselines/n").status_code == 404


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--baseline-name", "main"), "give its --url"),
        full(("--url", "http://127.0.0.1:9", "--promote-on", "pass"), "needs a --baseline-name"),
        full(
            ("--url", "http://127.0.0.1:9", "--baseline-name=a", "--promote-on=pass", "--stop=decided"),
            "[baseline_decided]",
        ),
    ],
)
def test_flags_about_the_baseline_that_do_not_go_together_end_with_2(
    files: tuple[str, str], tmp_path: Path, flags: tuple[str, ...], told: str
) -> None:
    result = wsb("check", *files, "--policy", policy(tmp_path, PASSING), *flags)
    assert (result.returncode, told in result.stderr) == (2, True), result.stderr


def test_without_a_policy_there_is_nothing_to_decide(files: tuple[str, str]) -> None:
    result = wsb("analyze", *files, "--stop", "decided")
    assert (result.returncode, "[policy_missing]" in result.stderr) == (2, True)


def test_a_report_that_stopped_when_it_was_decided_is_refused_as_a_baseline(
    files: tuple[str, str], tmp_path: Path, wide: Path
) -> None:
    document = json.loads(wide.read_text())
    document["enclosure"]["stopped_by"] = "decided"
    (tmp_path / "base.json").write_text(json.dumps(document))
    text = PASSING.replace('op = "<="\nlimit = 0.6', "max_increase = 1.0")
    result = wsb("check", *files, "--policy", policy(tmp_path, text), "--baseline", f"{tmp_path}/base.json")
    assert (result.returncode, "[baseline_decided]" in result.stderr, "start" in result.stderr) == (2, True, False)
    assert "stop at gap" in result.stderr


def test_a_model_against_its_own_baseline_passes_and_against_another_ends_with_2(
    files: tuple[str, str], tmp_path: Path, wide: Path
) -> None:
    text = '[[rule]]\nmetric = "bounds.wolkowicz_styan.lambda_max.upper"\nmax_relative_increase = 1e-9\n'
    flags = ("--policy", policy(tmp_path, text), "--baseline", str(wide))
    result = wsb("check", *files, *flags)
    assert (result.returncode, "it has not risen by more than 1e-07 %" in result.stdout) == (0, True), result.stdout
    (tmp_path / "batch.npz").write_bytes(npz_batch(seed=1))
    other = wsb("check", *files, *flags)
    assert (other.returncode, "error [baseline_mismatch]" in other.stdout) == (2, True), other.stdout
    assert "batch.sha256" in other.stdout


@pytest.mark.slow
def test_the_learning_rate_is_an_option(files: tuple[str, str], tmp_path: Path) -> None:
    text = '[[rule]]\nmetric = "stability_ratio"\nop = "<"\nlimit = 1\n'
    result = wsb("check", *files, "--policy", policy(tmp_path, text), "--learning-rate", "1e-6")
    assert (result.returncode, "stability_ratio is in" in result.stdout) == (0, True), result.stdout


def test_everything_that_is_asked_for_is_written(server: str, files: tuple[str, str], tmp_path: Path) -> None:
    names = {"json": "r.json", "verdict": "v.json", "junit": "j.xml", "markdown": "m.md", "html": "h.html"}
    names["comment"] = "c.md"
    flags = [f"--{flag}={tmp_path / name}" for flag, name in names.items()]
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    run = ("check", *files, "--policy", policy(tmp_path, FAILING), "--url", server, *flags)
    assert wsb(*run, GITHUB_STEP_SUMMARY=str(summary)).returncode == 1
    Report.model_validate_json((tmp_path / "r.json").read_text())
    assert Verdict.model_validate_json((tmp_path / "v.json").read_text()).outcome == "fail"
    assert ElementTree.parse(tmp_path / "j.xml").getroot().find(".//failure") is not None  # noqa: S314 - our own file
    assert "loss.value" in (tmp_path / "m.md").read_text()
    assert "Sharpness: failed" in (tmp_path / "c.md").read_text()
    assert (tmp_path / "h.html").read_text().lower().startswith("<!doctype html>")
    assert summary.read_text() == "before\n" + (tmp_path / "m.md").read_text() + "\n"


def test_what_goes_to_stdout_is_alone_there(server: str, files: tuple[str, str], tmp_path: Path) -> None:
    result = wsb("check", *files, "--policy", policy(tmp_path, PASSING), "--url", server, "--verdict", "-")
    assert Verdict.model_validate_json(result.stdout).outcome == "pass"
    assert "verdict   pass" in result.stderr


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--json", "-", "--junit", "-"), "Only one output can go to stdout"),
        (("--html", "/nonexistent/folder/page.html"), "can't be written"),
    ],
)
def test_outputs_that_can_not_be_are_refused_before_anything_is_analysed(
    files: tuple[str, str], tmp_path: Path, flags: tuple[str, ...], told: str
) -> None:
    result = wsb("check", *files, "--policy", policy(tmp_path, PASSING), *flags)
    assert (result.returncode, told in result.stderr, "start" in result.stderr) == (2, True, False)
