from __future__ import annotations

import copy
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.training import GUIDE, batch, example, loader, network, require, same
from torch import nn

import wsb_engine as wsb
from wsb_engine import callbacks
from wsb_engine.callbacks import LoopCallback
from wsb_engine.callbacks.tracker import Tracker

EPOCHS = 2


def train(module: nn.Module, optimizer: torch.optim.Optimizer, sharpness: Any = None) -> None:
    """Two epochs from a fixed random state, with a rate that falls each step."""
    torch.manual_seed(11)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    steps = itertools.count(1)
    for _ in range(EPOCHS):
        for x, y in loader():
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(x), y).backward()
            optimizer.step()
            scheduler.step()
            if sharpness is not None:
                sharpness(next(steps))


def sgd(module: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(module.parameters(), lr=0.2, momentum=0.9)


def test_a_training_ends_in_the_same_bits_and_each_value_is_that_of_its_checkpoint() -> None:
    plain, module = network(), network()
    train(plain, sgd(plain))
    checkpoints: dict[int, nn.Module] = {}
    logged: dict[int, dict[str, float]] = {}

    def log(step: int, metrics: dict[str, float]) -> None:
        logged[step], checkpoints[step] = metrics, copy.deepcopy(module)

    optimizer = sgd(module)
    train(module, optimizer, LoopCallback(module, batch(), every_n_steps=3, optimizer=optimizer, log=log))
    assert same(module.state_dict().values(), plain.state_dict().values())
    assert list(logged) == [3, 6]
    for step, metrics in logged.items():
        report = wsb.analyze(wsb.from_module(checkpoints[step]), batch())
        ends = report.enclosure.lambda_max  # type: ignore[union-attr]
        assert (metrics["wsb/lambda_max_lower"], metrics["wsb/lambda_max_upper"]) == (ends.lower, ends.upper)
        assert metrics["wsb/loss"] == report.loss.value
        rate = 0.2 * 0.9**step
        assert metrics["wsb/stability_ratio"] == pytest.approx(ends.upper * rate / (2 * 1.9))


@pytest.mark.slow
def test_metrics_go_to_a_summary_writer_of_tensorboard(tmp_path: Path) -> None:
    require("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    module = network()
    with SummaryWriter(str(tmp_path)) as writer:  # type: ignore[no-untyped-call]
        sharpness = LoopCallback(module, batch(), every_n_steps=2, log=writer)
        assert [sharpness(step) is None for step in (1, 2)] == [True, False]
    events = EventAccumulator(str(tmp_path)).Reload()
    assert sharpness.last is not None
    [event] = events.Scalars("wsb/lambda_max")
    assert (event.step, event.value) == (2, pytest.approx(sharpness.last.metrics["wsb/lambda_max"]))
    assert set(events.Tags()["scalars"]) == set(sharpness.last.metrics)


class Run:
    """What of a run of W&B is used."""

    def __init__(self) -> None:
        self.defined: dict[str, str | None] = {}
        self.rows: list[dict[str, float]] = []

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.defined[name] = step_metric

    def log(self, data: dict[str, float]) -> None:
        self.rows.append(data)


class Mlflow:
    """What of the module mlflow is used; Lightning's loggers have the same."""

    def __init__(self) -> None:
        self.rows: list[tuple[dict[str, float], int | None]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((metrics, step))


@pytest.mark.slow
def test_metrics_go_to_wandb_over_a_step_of_their_own_and_to_mlflow() -> None:
    module, run, mlflow = network(), Run(), Mlflow()
    found = LoopCallback(module, batch(), log=run)(5)
    assert found is not None
    assert run.defined == {"wsb/step": None, "wsb/*": "wsb/step"}
    assert run.rows == [{**found.metrics, "wsb/step": 5}]
    LoopCallback(module, batch(), log=mlflow)(5)
    assert mlflow.rows == [(found.metrics, 5)]


def test_what_takes_no_metrics_is_refused() -> None:
    with pytest.raises(wsb.OptionsError) as raised:
        LoopCallback(network(), batch(), log="metrics.csv")
    assert raised.value.code == "log_unknown"


def test_a_failure_warns_once_with_code_and_advice_and_training_goes_on() -> None:
    module = network()
    with torch.no_grad():
        module[0].weight[0, 0] = torch.inf
    logged: list[int] = []
    sharpness = LoopCallback(module, batch(), log=lambda step, _: logged.append(step))
    with pytest.warns(
        UserWarning, match=r"not measured after step 1, and training goes on: .*\[model_not_finite\] \w"
    ) as seen:
        assert [sharpness(step) for step in (1, 2)] == [None, None]
    assert len(seen) == 1
    with torch.no_grad():
        module[0].weight[0, 0] = 0.0
    assert sharpness(3) is sharpness.last
    assert logged == [3]


def test_a_failure_that_has_no_code_warns_too() -> None:
    class Broken(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise KeyError("no such layer")

    with pytest.warns(UserWarning, match=r"no such layer.*\[KeyError\] Set on_error='raise'"):
        assert LoopCallback(Broken(4, 3), batch())(1) is None


def test_a_failure_ends_the_training_if_asked_to() -> None:
    with pytest.raises(wsb.BatchError):
        LoopCallback(network(), wsb.Batch(torch.ones(2, 4), [0, 9]), on_error="raise")(1)


def test_an_optimizer_without_a_ratio_leaves_it_out_and_warns_once() -> None:
    module = network()
    sharpness = LoopCallback(module, batch(), optimizer=torch.optim.AdamW(module.parameters()))
    with pytest.warns(UserWarning, match="no wsb/stability_ratio: AdamW is not gradient descent") as seen:
        found = [sharpness(step) for step in (1, 2)]
    assert len(seen) == 1
    assert all(each is not None and "wsb/stability_ratio" not in each.metrics for each in found)


def test_a_time_limit_gives_what_is_certified_by_then() -> None:
    found = LoopCallback(network(), batch(), options=wsb.Options(time_limit=1e-6), on_error="warn")
    with pytest.warns(UserWarning, match="time_limit"):
        assert found(1) is None


def due(steps: list[int], every: int, start: int | None = None) -> list[int]:
    tracker = Tracker(batch(), None, every_n_steps=every)
    if start is not None:
        tracker.start(start)
    return [step for step in steps if tracker.after_step(step)]


def test_it_is_time_whenever_steps_pass_a_multiple_and_once_for_each_number_of_steps() -> None:
    assert due([0, 0, 1, 1, 2, 2, 3, 3, 4], 2, start=0) == [2, 4]
    assert due([2, 4, 6, 8, 10], 3, start=0) == [4, 6, 10]
    assert due([101, 102, 150, 151], 50, start=100) == [150]
    assert due([0, 1, 2, 0, 1, 2], 2) == [0, 2, 0, 2]


@pytest.mark.parametrize(
    "given",
    [{"every_n_steps": 0}, {"every_n_epochs": 1.5}, {"every_n_steps": True}, {"every_n_steps": 1, "every_n_epochs": 1}],
)
def test_an_interval_that_means_nothing_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(wsb.OptionsError) as raised:
        Tracker(batch(), None, **given)
    assert raised.value.code == "interval_invalid"
    with pytest.raises(wsb.OptionsError, match="on_error is 'ignore'"):
        Tracker(batch(), None, on_error="ignore")  # type: ignore[arg-type]


def test_the_example_of_the_guide_runs(capsys: pytest.CaptureFixture[str]) -> None:
    exec(example("A plain loop"), {})  # noqa: S102
    assert re.findall(r"^(\d+) \{'wsb/loss'", capsys.readouterr().out, re.MULTILINE) == ["4", "8"]


def test_every_code_is_in_the_guide() -> None:
    guide = GUIDE.read_text(encoding="utf-8")
    sources = [path.read_text(encoding="utf-8") for path in Path(callbacks.__file__).parent.glob("*.py")]
    codes = {code for source in sources for code in re.findall(r'code="(\w+)"', source)}
    assert len(codes) == 11
    assert [code for code in sorted(codes) if f"`{code}`" not in guide] == []


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("KerasCallback", "keras"),
        ("LightningCallback", "lightning"),
        ("TransformersCallback", r"'transformers\[torch\]'"),
    ],
)
def test_a_framework_that_is_missing_is_named_with_its_package(
    monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    monkeypatch.setattr(callbacks, "find_spec", lambda module: None)
    with pytest.raises(ImportError, match=f"^{name} needs .*, which is not installed: pip install {package}$"):
        getattr(callbacks, name)
    assert dir(callbacks) == ["LoopCallback", "Measurement", "measure"]


def test_the_names_load_neither_torch_nor_a_framework() -> None:
    program = """
import sys, wsb, wsb.callbacks
dir(wsb.callbacks)
heavy = ("torch", "numpy", "keras", "lightning", "pytorch_lightning", "transformers")
print([name for name in heavy if name in sys.modules])
"""
    run = [sys.executable, "-c", program]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout == "[]\n"


PROCESS = """
import os, sys
from contextlib import suppress
import torch, wsb
from torch.nn.parallel import DistributedDataParallel

logged = []
rank = int(sys.argv[1])
module = torch.nn.Linear(4, 3)
x, y = torch.eye(4), torch.tensor([0, 1, 2, 1])
callback = wsb.callbacks.LoopCallback
torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
shared = DistributedDataParallel(module)
sgd = torch.optim.SGD(shared.parameters(), lr=0.1)
sharpness = callback(shared, wsb.Batch(x, y), optimizer=sgd, log=lambda step, _: logged.append(step), on_error="raise")
for step in (1, 2):
    sgd.zero_grad()
    torch.nn.functional.cross_entropy(shared(x[rank::2]), y[rank::2]).backward()
    sgd.step()
    sharpness(step)
print(logged, [round(v, 6) for v in module.weight.flatten().tolist()][:3])
torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize(("rank", "logs"), [(0, [1]), (1, [])])
def test_a_process_measures_if_it_is_the_first_of_its_group(
    rank: int, logs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    logged: list[int] = []
    sharpness = LoopCallback(network(), batch(), log=lambda step, _: logged.append(step), on_error="raise")
    assert (sharpness(1) is None) == (rank > 0)
    assert logged == logs


@pytest.mark.slow
def test_of_several_processes_the_first_measures(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    runs = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", PROCESS, str(rank), str(tmp_path / "store")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    outcomes = [(*run.communicate(timeout=300), run.returncode) for run in runs]
    assert [code for _, _, code in outcomes] == [0, 0], outcomes
    first, second = (out.strip().partition("] ") for out, _, _ in outcomes)
    assert (first[0], second[0]) == ("[1, 2", "[")
    assert first[2] == second[2]
