"""One analysis split over devices, or over processes that talk over loopback: the same numbers, and one end for all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from support.forms import crossed, full
from torch import nn

import wsb_engine as wsb
from wsb_engine.analysis.members import Devices, Member
from wsb_engine.analysis.monitor import Monitor
from wsb_engine.analysis.problem import Problem, pose
from wsb_engine.curvature.closed_form.layout import cheapest_layout
from wsb_engine.curvature.closed_form.sums import ClosedForm, closed_form
from wsb_engine.curvature.products.linearized import LinearizedProduct
from wsb_engine.curvature.team import Add, split_closed_form

pytestmark = pytest.mark.filterwarnings(r"ignore:`torch\.jit\.\w+` is deprecated:DeprecationWarning")

CLOSE = 1e-10
"""Relative."""
TIMEOUT = 120
"""Seconds until a process gives the others up; far more than any of these analyses takes."""

WORKER = """
import glob, json, os, sys
from datetime import timedelta
import torch.distributed as dist
import wsb_engine as wsb
from wsb_engine import distributed
from wsb_engine.curvature.team import Add, Multiply
from wsb_engine.analysis.members import Member
from wsb_engine.analysis.monitor import Monitor

folder, size, timeout = sys.argv[1], *map(int, sys.argv[2:])
members = []
for rank in range(size):
    if not (member := os.fork()):
        break
    members.append(member)
else:
    json.dump([os.waitstatus_to_exitcode(os.waitpid(member, 0)[1]) for member in members], sys.stdout)
    sys.exit()
meeting = f"file://{folder}/meeting"
dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size, timeout=timedelta(seconds=timeout))
answer, expired = Member.answer, Monitor.expired

def refuse():
    raise wsb.ResourceError("no room left here", code="out_of_memory", advice="Make room.")

def divide():
    raise ZeroDivisionError("nothing to divide by")

def interrupt(now):
    if now.phase == "moments" and now.fraction > 0:
        raise InterruptedError("enough")

def troubled(kind, failure):
    return lambda self, task, tensor=None: failure() if isinstance(task, kind) else answer(self, task, tensor)

TROUBLE = {"product": (Multiply, refuse), "term": (Add, divide), "death": (Multiply, lambda: os._exit(9))}
for number, case in enumerate(json.load(open(f"{folder}/cases.json"))):
    trouble, batches = case["trouble"], case["batches"]
    Member.answer = troubled(*TROUBLE[trouble]) if trouble in TROUBLE and rank == size - 1 else answer
    late = trouble == "time" and rank == 0
    Monitor.expired = property(lambda run: run.current == "moments") if late else expired
    try:
        report = distributed.analyze(
            wsb.load_model(case["model"]),
            wsb.load_batch(batches[min(rank, len(batches) - 1)]),
            wsb.Options(**case["options"]),
            progress=interrupt if trouble == "callback" else None,
        )
        found = report.model_dump(mode="json")
    except (wsb.EngineError, InterruptedError, ZeroDivisionError) as error:
        found = {"error": getattr(error, "code", type(error).__name__), "message": str(error)}
    with open(f"{folder}/{rank}-{number}.json", "w") as file:
        json.dump(found, file)
dist.destroy_process_group()
threads = [open(path).read() for path in glob.glob("/proc/self/task/*/comm")]
sys.exit(3 if any("gloo" in name for name in threads) else 0)
"""


def mlp() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6), nn.SiLU(), nn.Linear(6, 3))
    return nn.Sequential(*layers).double().requires_grad_(False)


def convolution() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)).double().requires_grad_(False)


def data(samples: int, *shape: int) -> dict[str, Any]:
    rng = np.random.default_rng(samples)
    x, y = rng.normal(size=(samples, *shape)), rng.integers(0, 3, samples)
    return {"x": x, "y": y, "weights": rng.uniform(0.5, 2, samples)}


def saved(folder: Path, name: str, module: nn.Module, arrays: dict[str, Any]) -> tuple[str, str]:
    model, batch = folder / f"{name}.pt", folder / f"{name}.npz"
    torch.jit.save(torch.jit.trace(module, torch.from_numpy(arrays["x"][:2]), check_trace=False), model)
    np.savez(batch, **arrays)
    return str(model), str(batch)


class Group:
    """What each of some processes that were started together, by one that had imported torch, found in each case."""

    def __init__(self, folder: Path, size: int, cases: list[dict[str, Any]]) -> None:
        self.folder, self.size = folder, size
        (folder / "cases.json").write_text(json.dumps([{"trouble": None, **case} for case in cases]))
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        command = [sys.executable, "-c", WORKER, folder, str(size), str(TIMEOUT)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, env=environment, start_new_session=True, **pipes)
        try:
            codes, self.errors = process.communicate(timeout=4 * TIMEOUT)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        self.codes = json.loads(codes or "null")

    def found(self, rank: int, number: int = 0) -> dict[str, Any]:
        parsed: dict[str, Any] = json.loads((self.folder / f"{rank}-{number}.json").read_text())
        return parsed

    def ends(self, number: int) -> list[str]:
        """The error of each process."""
        return [self.found(rank, number)["error"] for rank in range(self.size)]


def assert_same(found: dict[str, Any], expected: wsb.Report) -> None:
    """Numbers of the analysis, each relative to the largest of its kind; not what measures rounding."""
    want = expected.model_dump(mode="json")
    for part in ("loss", "moments", "bounds", "layers", "blocks", "orthogonality"):
        assert_close(*(_without_rounding(each[part]) for each in (found, want)), part)
    for end in ("lambda_max", "lambda_min"):
        for side in ("lower", "upper"):
            scale = abs(want["enclosure"]["lambda_max"]["upper"])
            difference = abs(found["enclosure"][end][side] - want["enclosure"][end][side])
            assert difference <= CLOSE * scale, (end, side)
        assert found["enclosure"][end]["kind"] == want["enclosure"][end]["kind"]
    assert found["enclosure"]["hessian_vector_products"] == want["enclosure"]["hessian_vector_products"]
    if want["spectrum"] is not None:
        assert_close(found["spectrum"]["eigenvalues"], want["spectrum"]["eigenvalues"], "eigenvalues")
        assert_close(found["spectrum"]["density"], want["spectrum"]["density"], "density")
    assert all(check["passed"] for check in found["checks"])
    assert {warning["code"] for warning in found["warnings"]} == {"split"} | {w.code for w in expected.warnings}


def _without_rounding(part: Any) -> Any:
    return {**part, "probes": None} if isinstance(part, dict) and "probes" in part else part


def assert_close(found: Any, want: Any, where: str) -> None:
    if isinstance(want, dict):
        assert found.keys() == want.keys()
        for key in want:
            assert_close(found[key], want[key], f"{where}.{key}")
    elif isinstance(want, list) and want and isinstance(want[0], float):
        scale = max(map(abs, want))
        worst = max(abs(a - b) for a, b in zip(found, want, strict=True))
        assert worst <= CLOSE * scale, (where, worst / scale)
    elif isinstance(want, list):
        for index, (a, b) in enumerate(zip(found, want, strict=True)):
            assert_close(a, b, f"{where}[{index}]")
    elif isinstance(want, float):
        assert abs(found - want) <= CLOSE * abs(want) + 1e-15, (where, found, want)
    else:
        assert found == want, where


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, Any]]] = {
    "mlp": (mlp, (150, 5), {"spectrum": "top", "top": 4}),
    "mlp_dense": (mlp, (7, 5), {"spectrum": "dense", "density": True}),
    "mlp_tight": (mlp, (150, 5), {"memory_limit": 1 << 20}),
    "mlp_probes": (mlp, (31, 5), {"moments": "probes"}),
    "convolution": (convolution, (23, 1, 3, 3), {"moments": "basis", "spectrum": "top", "top": 3}),
    "convolution_dense": (convolution, (23, 1, 3, 3), {"spectrum": "dense"}),
    "convolution_probes": (convolution, (23, 1, 3, 3), {"moments": "probes"}),
    "one_sample": (mlp, (1, 5), {}),
}
SHORT = ("mlp_dense", "mlp_tight", "one_sample")
"""What processes share in the short form; in the full form they share the others too."""


def prepared(folder: Path, name: str) -> tuple[str, str, dict[str, Any]]:
    module, (samples, *shape), options = CASES[name]
    # Within a gap, an end is where the rounding of products puts it, which depends on who makes them.
    return *saved(folder, name, module(), data(samples, *shape)), {"device": "cpu", "relative_gap": 1e-9, **options}


@cache
def unsplit(name: str) -> wsb.Report:
    with TemporaryDirectory() as folder:
        model, batch, options = prepared(Path(folder), name)
        return wsb.analyze(wsb.load_model(model), wsb.load_batch(batch), wsb.Options(**options))


def case(folder: Path, name: str, trouble: str | None = None) -> dict[str, Any]:
    model, batch, options = prepared(folder, name)
    return {"model": model, "batches": [batch], "options": options, "trouble": trouble}


TROUBLES = ["product", "term", "callback", "time", "other_batch", "other_shape", "devices", "none", "death"]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Group:
    """Two processes that have worked through the cases of the short form, and then met one trouble after another."""
    folder = tmp_path_factory.mktemp("two")
    cases = {trouble: case(folder, "mlp_tight", trouble) for trouble in TROUBLES}
    cases["time"]["options"]["time_limit"] = 1e6
    cases["devices"]["options"]["devices"] = ["cpu", "cpu"]
    for trouble, arrays in (("other_batch", data(149, 5)), ("other_shape", data(150, 4))):
        np.savez(folder / f"{trouble}.npz", **arrays)
        cases[trouble]["batches"].append(str(folder / f"{trouble}.npz"))
    group = Group(folder, 2, [*(case(folder, name) for name in SHORT), *cases.values()])
    assert group.codes == [0, 9], group.errors
    return group


def number_of(trouble: str) -> int:
    """The place of a trouble among the cases of the two processes."""
    return len(SHORT) + TROUBLES.index(trouble)


@pytest.mark.parametrize("name", SHORT)
def test_two_processes_give_the_numbers_of_one(two: Group, name: str) -> None:
    assert_same(two.found(0, SHORT.index(name)), unsplit(name))
    assert two.found(0, SHORT.index(name)) == two.found(1, SHORT.index(name))


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one_in_further_cases(tmp_path: Path) -> None:
    names = [name for name in CASES if name not in SHORT]
    group = Group(tmp_path, 2, [case(tmp_path, name) for name in names])
    assert group.codes == [0, 0], group.errors
    for number, name in enumerate(names):
        assert_same(group.found(0, number), unsplit(name))
        assert group.found(0, number) == group.found(1, number)


@pytest.mark.slow
def test_three_processes_share_seven_samples_or_one(tmp_path: Path) -> None:
    names = ["mlp_dense", "one_sample"]
    group = Group(tmp_path, 3, [case(tmp_path, name) for name in names])
    assert group.codes == [0, 0, 0], group.errors
    for number, name in enumerate(names):
        assert_same(group.found(2, number), unsplit(name))


def test_an_error_of_one_process_reaches_both(two: Group) -> None:
    assert two.ends(number_of("product")) == ["out_of_memory", "out_of_memory"]


def test_a_defect_in_one_process_ends_both_and_names_it(two: Group) -> None:
    number = number_of("term")
    assert two.ends(number) == ["process_failed", "ZeroDivisionError"]
    assert "process 1 stopped with ZeroDivisionError: nothing to divide by" in two.found(0, number)["message"]


def test_raising_in_the_callback_ends_both(two: Group) -> None:
    assert two.ends(number_of("callback")) == ["InterruptedError", "process_failed"]


def test_the_first_process_alone_decides_that_time_is_up(two: Group) -> None:
    first, second = (two.found(rank, number_of("time")) for rank in range(2))
    assert first == second
    assert first["moments"] is None
    assert first["enclosure"] is not None
    assert "time_limit" in {warning["code"] for warning in first["warnings"]}


def test_processes_with_different_batches_refuse(two: Group) -> None:
    assert two.ends(number_of("other_batch")) == ["processes_differ", "processes_differ"]


def test_several_devices_in_a_process_of_a_group_are_refused(two: Group) -> None:
    assert two.ends(number_of("devices")) == ["devices_in_group", "devices_in_group"]


def test_a_batch_that_fails_in_one_process_ends_both(two: Group) -> None:
    assert two.ends(number_of("other_shape")) == ["evaluation_failed", "evaluation_failed"]


def test_a_group_can_be_used_again_after_all_that(two: Group) -> None:
    assert_same(two.found(1, number_of("none")), unsplit("mlp_tight"))


def test_the_death_of_one_process_ends_the_other_before_the_timeout(two: Group) -> None:
    assert two.codes == [0, 9]
    found = two.found(0, number_of("death"))
    assert found["error"] == "process_lost"
    assert "imed out" not in found["message"]


TRIED = {("mlp_tight", 3), ("convolution", 3)}
SPLITS = [pair if pair in TRIED else full(*pair) for pair in product(CASES, (3, 2))]


@pytest.mark.parametrize(("name", "devices"), SPLITS)
def test_devices_give_the_numbers_of_one(name: str, devices: int, tmp_path: Path) -> None:
    model, batch, options = prepared(tmp_path, name)
    classifier, rows = wsb.load_model(model), wsb.load_batch(batch)
    split = wsb.analyze(classifier, rows, wsb.Options(**options, devices=["cpu"] * devices))
    assert_same(split.model_dump(mode="json"), unsplit(name))


def posed(module: nn.Module, samples: int, *shape: int, **options: Any) -> Problem:
    arrays, chosen = data(samples, *shape), wsb.Options(device="cpu", **options)
    batch = wsb.Batch(arrays["x"], arrays["y"], weights=arrays["weights"])
    return pose(wsb.from_module(module), batch, chosen, Monitor(chosen, None, 0.0))


def team(problem: Problem, size: int) -> Devices:
    return Devices(problem, [torch.device("cpu")] * size)


@pytest.mark.parametrize(("prefer", "kept", "size"), crossed(("auto", "pairs", "block"), (1, 3, 100), (2, 5)))
def test_terms_of_the_closed_form_add_up_whichever_device_computes_them(prefer: Any, kept: int, size: int) -> None:
    problem = posed(mlp(), 120, 5)
    assert problem.structure is not None
    net, weights = problem.structure.net, problem.objective.targets.weights
    layout = replace(cheapest_layout(net, 120, memory=1 << 20, itemsize=8, prefer=prefer, tiles=7), kept=kept)
    want = closed_form(net, problem.tile, weights, layout)
    fractions: list[float] = []
    with team(problem, size) as members:
        found = split_closed_form(net, 120, layout, members, progress=fractions.append)
    for name in ClosedForm.__dataclass_fields__:
        ours, theirs = (torch.as_tensor(getattr(part, name), dtype=torch.float64) for part in (found, want))
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13 * float(theirs.abs().max()))
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1


def test_a_gradient_that_was_linearised_is_multiplied_by_all_devices_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsb_engine.analysis.problem.WORTHWHILE", 0)
    monkeypatch.setattr("wsb_engine.curvature.products.linearized.TRACING_SECONDS", 0)
    problem = posed(convolution(), 23, 1, 3, 3)
    v = torch.randn(problem.objective.parameters, 1, dtype=torch.float64)
    ways, both = [], threading.Barrier(2, timeout=TIMEOUT)
    multiply = LinearizedProduct.__call__

    def watched(self: LinearizedProduct, V: torch.Tensor) -> torch.Tensor:
        ways.append(self)
        if len(ways) > 2:
            both.wait()  # passes only when both devices are here
        return multiply(self, V)

    want = problem.from_scratch(problem.objective)(v)
    monkeypatch.setattr(LinearizedProduct, "__call__", watched)
    with team(problem, 2) as members:
        product = replace(problem, team=members).hessian_product(columns=1)
        for _ in range(3):
            torch.testing.assert_close(product(v), want, rtol=CLOSE, atol=1e-13)
    assert len(ways) == 6


def test_the_order_in_which_devices_finish_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, v = posed(mlp(), 301, 5), torch.randn(111, 1, dtype=torch.float64)
    with team(problem, 3) as members:
        product = replace(problem, team=members).hessian_product(columns=1)
        product(v)
        answer, first = Member.answer, members._members[0]
        images = []
        for reverse in (False, True):
            others = threading.Semaphore(0)

            def ordered(self: Member, *task: Any, wait: bool = reverse, others: Any = others) -> torch.Tensor:
                if self is first and wait:
                    assert all(others.acquire(timeout=TIMEOUT) for _ in range(2))
                image = answer(self, *task)
                others.release()
                return image

            monkeypatch.setattr(Member, "answer", ordered)
            images.append(product(v))
    assert torch.equal(*images)


def test_an_error_on_one_device_ends_the_analysis_after_all_have_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    threads, answer = threading.active_count(), Member.answer

    def failing(self: Member, task: Any, tensor: torch.Tensor | None = None) -> torch.Tensor:
        if self._index == 1 and isinstance(task, Add):
            raise wsb.ResourceError("no room left here", code="out_of_memory", advice="Make room.")
        return answer(self, task, tensor)

    monkeypatch.setattr(Member, "answer", failing)
    arrays = data(31, 5)
    with pytest.raises(wsb.ResourceError, match="no room left here"):
        wsb.analyze(wsb.from_module(mlp()), wsb.Batch(arrays["x"], arrays["y"]), wsb.Options(devices=("cpu", "cpu")))
    assert threading.active_count() == threads


def test_a_device_that_is_not_there_is_refused() -> None:
    arrays = data(3, 5)
    with pytest.raises(wsb.OptionsError) as caught:
        wsb.analyze(
            wsb.from_module(mlp()), wsb.Batch(arrays["x"], arrays["y"]), wsb.Options(devices=("cpu", "cuda:99"))
        )
    assert caught.value.code == "device_unavailable"


def test_one_device_by_name_is_an_ordinary_analysis() -> None:
    arrays = data(31, 5)
    classifier, batch = wsb.from_module(mlp()), wsb.Batch(arrays["x"], arrays["y"])
    split, plain = wsb.analyze(classifier, batch, wsb.Options(devices=("cpu",))), wsb.analyze(classifier, batch)
    # They state what was asked.
    kept = {"timings", "evidence"}
    assert split.model_dump(exclude=kept) == plain.model_dump(exclude=kept)
