"""The examples around training and CI do what they say."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from support.command import wsb
from support.examples import EXAMPLES, load
from support.forms import full
from support.policies import report
from support.served import served
from support.service import npz_batch, onnx_mlp

import wsb_engine
from service.policies import evaluate, load_policy

README = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
SCRIPT = EXAMPLES.parent / "scripts" / "first_steps.py"


def test_the_pytest_example_passes_and_fails_by_its_policy() -> None:
    example = load("pytest_sharpness")
    example.test_the_trained_minimum_satisfies_the_policy(example.report.__wrapped__())
    with pytest.raises(AssertionError, match=r"it is not <= 0\.1"):
        example.test_the_trained_minimum_satisfies_the_policy(report((1.0, 1.1)))


@pytest.mark.slow
def test_pytest_runs_its_example() -> None:
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(EXAMPLES / "pytest_sharpness.py")]
    result = subprocess.run(run, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stdout


def test_the_mlflow_example_says_so_where_mlflow_is_not_installed(tmp_path: Path) -> None:
    (tmp_path / "mlflow.py").write_text("raise ImportError")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    run = [sys.executable, str(EXAMPLES / "mlflow_checkpoints.py"), "experiment", "batch.npz"]
    result = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, "mlflow is not installed" in result.stderr) == (0, True)


class Client:
    """What of MLflow's client the example uses, with the runs and artifacts that it is given."""

    def __init__(self, metrics: dict[str, dict[str, float]], artifacts: dict[str, dict[str, bytes]]) -> None:
        self.metrics = metrics
        self.stored = artifacts
        self.texts: list[tuple[str, str]] = []

    def module(self) -> SimpleNamespace:
        """The module `mlflow`."""
        return SimpleNamespace(
            MlflowClient=lambda: self,
            artifacts=SimpleNamespace(download_artifacts=self._download),
            get_experiment_by_name=lambda name: SimpleNamespace() if name == "digits" else None,
            search_runs=self._search,
        )

    def _search(self, *, experiment_names: list[str], output_format: str) -> list[SimpleNamespace]:
        assert (experiment_names, output_format) == (["digits"], "list")
        return [
            SimpleNamespace(info=SimpleNamespace(run_id=run), data=SimpleNamespace(metrics=metrics))
            for run, metrics in self.metrics.items()
        ]

    def _download(self, *, run_id: str, artifact_path: str, dst_path: str) -> str:
        path = Path(dst_path) / artifact_path.rpartition("/")[2]
        path.write_bytes(self.stored[run_id][artifact_path])
        return str(path)

    def list_artifacts(self, run: str, path: str | None) -> list[SimpleNamespace]:
        return [
            SimpleNamespace(path=name, is_dir=False)
            for name in self.stored[run]
            if name.rpartition("/")[0] == (path or "")
        ]

    def log_metric(self, run: str, name: str, value: float) -> None:
        self.metrics[run][name] = value

    def log_text(self, run: str, _text: str, path: str) -> None:
        self.texts.append((run, path))


@pytest.fixture
def batch(tmp_path: Path) -> str:
    (tmp_path / "batch.npz").write_bytes(npz_batch())
    return str(tmp_path / "batch.npz")


def test_the_mlflow_example_logs_to_the_runs_that_have_not_been_done(batch: str) -> None:
    example = load("mlflow_checkpoints")
    client = Client({"fresh": {}, "done": {example.DONE: 1.0}}, {"fresh": {"net.onnx": onnx_mlp()}, "done": {}})
    assert example.log_sharpness(client.module(), "digits", batch, "net.onnx") == 0
    fresh = client.metrics["fresh"]
    assert fresh["wsb.lambda_max_lower"] <= fresh[example.DONE] <= fresh["wsb.wolkowicz_styan_upper"]
    assert client.metrics["done"] == {example.DONE: 1.0}
    assert client.texts == [("fresh", "wsb-report.json")]
    with pytest.raises(SystemExit, match="no experiment"):
        example.log_sharpness(client.module(), "other", batch, "net.onnx")


def test_the_mlflow_example_goes_on_after_runs_without_the_artifact_and_models_that_it_can_not_read(
    batch: str, capsys: pytest.CaptureFixture[str]
) -> None:
    example = load("mlflow_checkpoints")
    stored = {"without": {"model": b""}, "broken": {"a/net.onnx": b"?"}, "good": {"a/net.onnx": onnx_mlp()}}
    client = Client({run: {} for run in stored}, stored)
    assert example.log_sharpness(client.module(), "digits", batch, "a/net.onnx") == 1
    assert [run for run, metrics in client.metrics.items() if example.DONE in metrics] == ["good"]
    printed = capsys.readouterr()
    assert "without: skipped, since it has no artifact a/net.onnx" in printed.out
    assert "broken: not analysed: " in printed.err
    assert "[model_unrecognized]" in printed.err


def test_the_mlflow_example_fetches_the_data_files_of_a_model(batch: str) -> None:
    example = load("mlflow_checkpoints")
    proto = onnx.load_model_from_string(onnx_mlp())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        onnx.save_model(proto, path, save_as_external_data=True, location="net.onnx.data", size_threshold=0)
        stored = {"run": {f"a/{file.name}": file.read_bytes() for file in Path(folder).iterdir()}}
    assert set(stored["run"]) == {"a/net.onnx", "a/net.onnx.data"}
    client = Client({"run": {}}, stored)
    assert example.log_sharpness(client.module(), "digits", batch, "a/net.onnx") == 0
    assert example.DONE in client.metrics["run"]


@pytest.mark.slow
def test_the_series_of_a_training_run_comes_back_from_the_server(capsys: pytest.CaptureFixture[str]) -> None:
    example = load("training_series")
    example.EPOCHS = 2
    with served() as server:
        example.main(server.url)
    rows = re.findall(r"^ +(\d) +([\d.]+) +([\d.]+)  █+$", capsys.readouterr().out, re.MULTILINE)
    assert [int(epoch) for epoch, _, _ in rows] == [1, 2]
    assert float(rows[-1][2]) < float(rows[0][2])


def classifier_of_photos() -> bytes:
    """Average pooling and a linear layer, for images of 224 × 224 pixels."""
    nodes = [
        helper.make_node("AveragePool", ["x"], ["p"], kernel_shape=[112, 112], strides=[112, 112]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w", "b"], ["z"]),
    ]
    weights = {"w": np.random.default_rng(0).normal(size=(12, 3)), "b": np.zeros(3)}
    arrays = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 224, 224])
    z = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 3])
    graph = helper.make_graph(nodes, "photos", [x], [z], arrays)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    content: bytes = model.SerializeToString()
    return content


def write_flowers(folder: Path) -> None:
    """Rows with a column of names, and a classifier of them."""
    random = np.random.default_rng(0)
    rows = [[*map(repr, values), "abc"[row % 3]] for row, values in enumerate(random.normal(size=(150, 4)).tolist())]
    (folder / "flowers.csv").write_text("\n".join(map(",".join, [["a", "b", "c", "d", "species"], *rows])))
    (folder / "flowers.onnx").write_bytes(onnx_mlp())


def write_photos(folder: Path) -> None:
    """Images in folders by kind, and a classifier of them."""
    random = np.random.default_rng(0)
    for index in range(90):
        path = folder / "photos" / f"kind {index % 3}" / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(path)
    (folder / "photos.onnx").write_bytes(classifier_of_photos())


@pytest.mark.parametrize(
    ("write", "place", "samples"), [(write_flowers, 0, 100), full(write_photos, 2, 60)], ids=["flowers", "photos"]
)
def test_own_data_becomes_a_report_by_the_commands_of_the_readme(
    tmp_path: Path, write: Callable[[Path], None], place: int, samples: int
) -> None:
    [block] = [block for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) if "/wsb batch" in block]
    commands = [line.removeprefix(".venv/bin/wsb ").split() for line in block.splitlines() if line]
    assert [command[0] for command in commands] == ["batch", "analyze", "batch", "analyze"]
    write(tmp_path)
    for command in commands[place : place + 2]:
        result = wsb(*command, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    assert "λ_max" in result.stdout
    assert f"{samples} samples, 3 classes" in result.stdout


@pytest.mark.slow  # its model and its gate are tried in this process below, its environment by test_packaging.py
def test_a_clone_comes_to_a_gate_by_the_commands_of_the_readme() -> None:
    result = subprocess.run([sys.executable, str(SCRIPT), "--reuse"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    times = re.findall(r"^ *([\d.]+) s  (.*)$", result.stdout, re.MULTILINE)
    assert [command for _, command in times][:2] == [
        "git clone https://github.com/OWNER/wsb && cd wsb",
        next(line for line in README.splitlines() if line.startswith("./scripts/demo")),
    ]
    assert all(command in README for _, command in times[:-1])
    assert times[-1][1] == f"for {len(times) - 1} commands"


@pytest.fixture
def first_steps() -> Any:
    spec = importlib.util.spec_from_file_location("first_steps", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_model_of_the_first_steps_passes_their_gate(
    first_steps: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [command] = [each for each in first_steps.commands(README) if re.search(first_steps.STEPS["export"], each)]
    found = re.fullmatch(r"[^\n]*<<'(\w+)'\n(.*)\n\1", command, re.DOTALL)
    assert found is not None
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(found[2], {})  # noqa: S102
    made = wsb_engine.analyze(wsb_engine.load_model("model.onnx"), wsb_engine.load_batch("batch.npz"))
    # An untrained network is often wrong, of which the policy only warns.
    assert evaluate(load_policy(EXAMPLES / "ci" / "policy.toml"), made).outcome in {"pass", "warn"}


@pytest.mark.parametrize("step", ["clone", "demo", "export", "analysis", "gate"])
def test_a_step_that_the_readme_lacks_is_named(first_steps: Any, step: str) -> None:
    listed = first_steps.commands(README)
    kept = [command for command in listed if not re.search(first_steps.STEPS[step], command)]
    assert (first_steps.missing(listed), first_steps.missing(kept)) == ([], [step])


def test_steps_in_another_order_are_noticed(first_steps: Any) -> None:
    assert first_steps.missing(first_steps.commands(README)[::-1]) == list(first_steps.STEPS)


def test_the_first_steps_are_at_most_six_commands(first_steps: Any) -> None:
    assert len(first_steps.commands(README)) <= first_steps.MAX_COMMANDS == 6


def test_a_command_ends_where_the_text_that_it_is_given_ends(first_steps: Any) -> None:
    text = "## First steps\n```sh\na <<'X'\nb\nX\nc \\\n  d\ne # f\n```\n## More\n```sh\ng\n```\n"
    assert first_steps.commands(text) == ["a <<'X'\nb\nX", "c \\\n  d", "e # f"]


def test_the_recipe_for_scikit_learn_makes_files_that_can_be_analysed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [block] = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "skl2onnx" in block]
    monkeypatch.chdir(tmp_path)
    exec(block, {})  # noqa: S102
    made = wsb_engine.analyze(wsb_engine.load_model("model.onnx"), wsb_engine.load_batch("batch.npz"))
    assert (made.batch.samples, made.batch.classes) == (200, 3)
    assert made.enclosure is not None


def test_the_recipe_for_batch_normalisation_keeps_its_parameters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [block] = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "model.pt2" in block]
    monkeypatch.chdir(tmp_path)
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.BatchNorm1d(5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    exec(block, {"torch": torch, "model": model.eval(), "example_inputs": (torch.randn(2, 4),)})  # noqa: S102
    names = wsb_engine.load_model("model.pt2").parameters
    assert {"1.weight", "1.bias"} <= set(names)
