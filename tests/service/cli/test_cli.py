"""The command, with the real engine in the real sandbox."""

from __future__ import annotations

import html
import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.command import wsb, wsb_here
from support.forms import full
from support.service import DEADLINE, Service, npz_batch, onnx_mlp, until

import wsb_engine
from wsb_engine.options import Options
from wsb_engine.report import Report


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    (tmp_path / "model.onnx").write_bytes(onnx_mlp())
    (tmp_path / "batch.npz").write_bytes(npz_batch())
    return str(tmp_path / "model.onnx"), str(tmp_path / "batch.npz")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "service.cli.commands", *arguments]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "200", "NO_COLOR": "1", **more}


@pytest.mark.slow
def test_the_version_is_printed() -> None:
    assert wsb("--version").stdout.strip() == wsb_engine.__version__


def test_every_option_of_the_engine_is_a_flag() -> None:
    text = wsb_here("analyze", "--help").stdout
    assert [name for name in Options.model_fields if f"--{name.replace('_', '-')}" not in text] == []


def test_analyze_prints_a_summary_and_writes_the_report(files: tuple[str, str], tmp_path: Path) -> None:
    flags = ("--spectrum", "dense", "--json", str(tmp_path / "report.json"), "--seed", "3", "--no-enclosure")
    result = wsb_here("analyze", *files, *flags)
    assert result.returncode == 0, result.stderr
    report = Report.model_validate_json((tmp_path / "report.json").read_text())
    assert report.spectrum is not None
    assert report.engine.seed == 3
    assert report.engine.sandbox
    assert f"{report.spectrum.eigenvalues[0]:.6g} by the dense spectrum" in result.stdout
    assert ": moments\n" in result.stderr


def test_a_failed_check_ends_with_3_and_everything_is_written(files: tuple[str, str], tmp_path: Path) -> None:
    # The file's own runtime computes in float32, in which this shift erases the inputs.
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in (("x", 4), ("y", 3)))
    random = np.random.default_rng(0)
    weights = {"shift": np.float32(1e9), "w": random.normal(size=(4, 3)).astype(np.float32)}
    nodes = [
        helper.make_node("Add", ["x", "shift"], ["far"]),
        helper.make_node("Sub", ["far", "shift"], ["near"]),
        helper.make_node("MatMul", ["near", "w"], ["y"]),
    ]
    arrays = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "shifted", [x], [y], arrays)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    Path(files[0]).write_bytes(model.SerializeToString())
    paths = {name: tmp_path / f"report.{name}" for name in ("json", "markdown", "html")}
    result = wsb_here("analyze", *files, *(f"--{name}={path}" for name, path in paths.items()))
    assert result.returncode == 3, result.stderr
    report = Report.model_validate_json(paths["json"].read_text())
    assert [check.name for check in report.checks if not check.passed] == ["parity"]
    assert "check_failed" in [warning.code for warning in report.warnings]
    told = "The numbers of this report can't be relied on."
    assert result.stdout.startswith(f"IN DOUBT  {told}\n")
    assert f"{told} [check_failed]\n" in result.stderr
    assert "the file's own runtime gives other logits" in result.stderr
    assert paths["markdown"].read_text().startswith(f"## ✗ {told}")
    assert told in html.unescape(paths["html"].read_text())


@pytest.mark.slow
def test_json_to_stdout_is_nothing_but_json(files: tuple[str, str]) -> None:
    result = wsb_here("analyze", *files, "--json", "-")
    assert Report.model_validate_json(result.stdout).model.architecture == "mlp"


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--head", "nonsense"), "nonsense"),
        (("--relative-gap", "2"), "--relative-gap"),
        (("--device", "tpu"), "--device"),
        (("--no-such-flag",), "--no-such-flag"),
    ],
)
def test_a_bad_flag_is_a_usage_error(files: tuple[str, str], flags: tuple[str, ...], told: str) -> None:
    result = wsb_here("analyze", *files, *flags)
    assert result.returncode == 2
    assert told in result.stderr


def test_a_missing_file_is_a_usage_error(files: tuple[str, str]) -> None:
    assert wsb_here("analyze", "/nonexistent.onnx", files[1]).returncode == 2


def test_a_bad_model_ends_with_2_and_the_engines_code(files: tuple[str, str]) -> None:
    result = wsb_here("analyze", files[1], files[1])
    assert result.returncode == 2
    assert "[arguments_swapped]" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_analysis_that_takes_too_long_ends_with_3(files: tuple[str, str]) -> None:
    result = wsb_here("analyze", *files, "--timeout", "0.001")
    assert result.returncode == 3
    assert "[time_limit_exceeded]" in result.stderr


def test_a_bad_setting_is_named_as_its_variable(files: tuple[str, str]) -> None:
    result = wsb_here("analyze", *files, WSB_JOB_SECONDS="-1")
    assert result.returncode == 2
    assert "WSB_JOB_SECONDS" in result.stderr


def test_a_worker_without_a_database_says_what_to_set() -> None:
    result = wsb_here("worker", WSB_DATABASE_URL="")
    assert result.returncode == 2
    assert "set WSB_DATABASE_URL" in result.stderr


@pytest.mark.parametrize(
    ("run", "subcommand"),
    [
        (wsb_here, ("serve", "--port", "0", "--workers", "0")),
        full(wsb, ("serve", "--port", "0")),
        full(wsb, ("worker", "--device", "cpu")),
    ],
)
def test_a_database_out_of_reach_ends_with_3(run: Any, subcommand: tuple[str, ...], tmp_path: Path) -> None:
    url = "postgresql://127.0.0.1:9/nothing"
    result = run(*subcommand, WSB_DATABASE_URL=url, WSB_DATA_DIR=str(tmp_path))
    assert result.returncode == 3, result.stderr
    assert "The database can't be used" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), full(signal.SIGTERM, 130)])
def test_an_interrupt_leaves_no_process(tmp_path: Path, number: signal.Signals, code: int) -> None:
    (tmp_path / "model.onnx").write_bytes(onnx_mlp((64, 100, 10)))
    (tmp_path / "batch.npz").write_bytes(npz_batch(features=64, classes=10, samples=200))
    run = command("analyze", str(tmp_path / "model.onnx"), str(tmp_path / "batch.npz"), "--spectrum", "dense")
    # What a shell starts in the background, and its children, ignore an interrupt.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipe = subprocess.PIPE
    with subprocess.Popen(
        run,
        env=environment(),
        stdout=pipe,
        stderr=pipe,
        text=True,
        preexec_fn=heed,
    ) as process:
        assert process.stderr is not None
        until(lambda: "spectrum" in process.stderr.readline())  # type: ignore[union-attr]
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) >= 2
        process.send_signal(number)
        assert process.wait(DEADLINE) == code
        process.stderr.close()
    until(lambda: not any(member.is_running() for member in family))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("begun", "number"),
    [
        full("service.cli.commands worker", signal.SIGTERM),
        full("service.sandbox.zygote", signal.SIGTERM),
        full("postgres", signal.SIGTERM),
        ("service.sandbox.zygote", signal.SIGKILL),
    ],
)
def test_a_server_that_is_ended_while_it_starts_leaves_no_process(
    tmp_path: Path, begun: str, number: signal.Signals
) -> None:
    with subprocess.Popen(
        command("serve", "--port", "0"), env=environment(WSB_DATA_DIR=str(tmp_path)), stdout=subprocess.PIPE, text=True
    ) as server:
        family: set[psutil.Process] = set()

        def has_begun() -> bool:
            family.update(psutil.Process(server.pid).children(recursive=True))
            return any(begun in command_line(member) for member in family)

        until(has_begun)
        server.send_signal(number)
        assert server.wait(DEADLINE) == (0 if number == signal.SIGTERM else -number)
    # A Postgres whose owner was killed is ended by the next one.
    mine = [member for member in family if number == signal.SIGTERM or "service." in command_line(member)]
    until(lambda: not any(member.is_running() for member in mine))


def command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def test_a_server_is_used_where_one_is_named(service: Service, files: tuple[str, str], tmp_path: Path) -> None:
    result = wsb_here("analyze", *files, "--url", service.url, "--json", str(tmp_path / "report.json"))
    assert result.returncode == 0, result.stderr
    # The server of these tests answers with the size of the model.
    count = json.loads((tmp_path / "report.json").read_text())["model"]["parameters"]["count"]
    assert count == len(Path(files[0]).read_bytes())


@pytest.mark.parametrize(
    ("output", "code", "told"),
    [
        full("fail", 2, "[unsupported_operator]"),
        full("crash", 3, "[worker_child_killed]"),  # in the short form, wsb check does
        full("sleep:60", 3, "[time_limit_exceeded]"),
    ],
)
def test_a_failure_on_a_server_ends_as_one_here_does(
    service: Service, files: tuple[str, str], output: str, code: int, told: str
) -> None:
    result = wsb_here("analyze", *files, "--url", service.url, "--output", output, "--timeout", "1")
    assert (result.returncode, told in result.stderr) == (code, True), result.stderr


@pytest.mark.slow  # in the short form, wsb check does
def test_a_failed_check_on_a_server_ends_as_one_here_does(
    service: Service, files: tuple[str, str], tmp_path: Path
) -> None:
    flags = ("--url", service.url, "--output", "doubtful", "--json", str(tmp_path / "report.json"))
    result = wsb_here("analyze", *files, *flags)
    assert (result.returncode, "[check_failed]\ncheck parity: " in result.stderr) == (3, True), result.stderr
    assert not Report.model_validate_json((tmp_path / "report.json").read_text()).checks[0].passed
    [analysis] = service.client.get("/v1/analyses").json()["items"]
    assert analysis["state"] == "succeeded"


@pytest.mark.slow
def test_json_alone_on_stdout_and_a_failed_check_on_stderr(service: Service, files: tuple[str, str]) -> None:
    result = wsb_here("analyze", *files, "--url", service.url, "--output", "doubtful", "--json", "-")
    assert (result.returncode, "[check_failed]" in result.stderr) == (3, True)
    assert Report.model_validate_json(result.stdout).checks


def test_a_refusal_by_a_server_ends_with_2(service: Service, files: tuple[str, str]) -> None:
    result = wsb_here("analyze", *files, "--url", service.url, "--device", "cuda:3")
    assert result.returncode == 2
    assert "[device_unavailable]" in result.stderr


def test_a_server_out_of_reach_ends_with_3(files: tuple[str, str]) -> None:
    result = wsb_here("analyze", *files, "--url", "http://127.0.0.1:9")
    assert result.returncode == 3
    assert "can't be reached" in result.stderr


def test_a_file_is_compared_with_the_module_that_the_user_names(files: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "compared.py").write_text("import torch\nmodel = torch.nn.Sequential(torch.nn.Linear(4, 6))\n")
    flags = ("--no-enclosure", "--compare-with", "compared:model")
    result = wsb_here("analyze", *files, *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "Only in the module:" in result.stdout
    refused = wsb_here("analyze", *files, *flags, "--url", "http://127.0.0.1:9", cwd=tmp_path)
    assert refused.returncode == 2
    assert "leave out --url" in refused.stderr
