"""The engine on GPUs, which two devices on the CPU's memory stand in for: same numbers, few waits, honest failures."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from support import pt2, simulated
from support.forms import crossed, full
from torch import Tensor, nn

import wsb_engine as wsb
from wsb_engine import devices, memory
from wsb_engine.analysis import estimate, moments
from wsb_engine.analysis.inputs import EXPECTED_PRODUCTS, FORWARD_PASSES
from wsb_engine.analysis.krylov import krylov
from wsb_engine.analysis.members import Devices
from wsb_engine.analysis.monitor import Monitor
from wsb_engine.analysis.problem import Problem, pose
from wsb_engine.arithmetic import exact
from wsb_engine.curvature.closed_form.layout import LAUNCHES_BLOCK, LAUNCHES_LAYER, LAUNCHES_PAIR, Layout
from wsb_engine.curvature.closed_form.sums import closed_form
from wsb_engine.curvature.cost import logits_footprint, nominal_rate, solver_operations
from wsb_engine.curvature.gauss_newton import ROWS, mlp_trace, rows_of
from wsb_engine.curvature.team import Multiply
from wsb_engine.spectrum.dense import BLOCK, dense_spectrum

simulated.load()
pytestmark = pytest.mark.filterwarnings(r"ignore:`torch\.jit\.\w+` is deprecated:DeprecationWarning")

CLASSES = 4
SAMPLES = 24


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[simulated.Devices]:
    with simulated.as_gpus(monkeypatch) as both:
        yield both


class Encoder(nn.Module):
    """Tokens with a stored table of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(20, 8)
        self.register_buffer("positions", torch.randn(5, 8))
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, "gelu", batch_first=True, norm_first=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.tokens(x) + self.positions)[:, 0])


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 7), nn.GELU(), nn.Linear(7, CLASSES))


def _convolution(norm: nn.Module) -> nn.Module:
    first, second = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=2, groups=2)
    return nn.Sequential(first, norm, nn.Tanh(), second, nn.SiLU(), nn.Flatten(), nn.Linear(16, CLASSES))


def _pooled() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, CLASSES))


def _recurrent() -> nn.Module:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cells, self.head = nn.GRU(3, 5, batch_first=True), nn.Linear(5, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.cells(x)[0][:, -1])

    return Last()


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (_mlp, (6,)),
    "recurrent": (_recurrent, (4, 3)),
    "group norm": (lambda: _convolution(nn.GroupNorm(2, 4)), (2, 5, 5)),
    "max pool": (_pooled, (2, 4, 4)),
    "encoder": (Encoder, (5,)),
    "batch norm": (lambda: _convolution(nn.BatchNorm2d(4)), (2, 5, 5)),
}
MODES: dict[str, dict[str, Any]] = {
    "float64": {},
    "dense": {"spectrum": "dense", "density": True},
    "float32": {"dtype": "float32", "ends": "largest", "failure_probability": 1e-3, "max_products": 40},
    "basis": {"moments": "basis", "spectrum": "top", "top": 3},
    "three vectors": {"basis": "three_vectors", "moments": "none"},
    "probes": {"moments": "probes"},
}


def case(name: str) -> tuple[wsb.Classifier, wsb.Batch]:
    torch.manual_seed(0)
    make, shape = NETS[name]
    module = make().eval()
    rng = np.random.default_rng(0)
    x = rng.integers(0, 20, (SAMPLES, *shape)) if name == "encoder" else rng.normal(size=(SAMPLES, *shape))
    return wsb.from_module(module), wsb.Batch(x, rng.integers(0, CLASSES, SAMPLES))


@pytest.mark.parametrize(("net", "mode"), crossed(NETS, MODES, keep=2))
def test_a_gpu_gives_the_numbers_of_the_cpu(net: str, mode: str, gpus: simulated.Devices) -> None:
    classifier, batch = case(net)
    here = wsb.analyze(classifier, batch, wsb.Options(device="cpu", **MODES[mode]))
    there = wsb.analyze(classifier, batch, wsb.Options(device="cuda:0", **MODES[mode]))
    assert there.engine.device == "cuda:0"
    assert gpus.counts(0).launches > 0
    assert gpus.counts(1).launches == 0
    assert here.enclosure is not None
    assert there.enclosure is not None
    single = mode == "float32"
    for end in ("lambda_max", "lambda_min"):
        ours, theirs = getattr(there.enclosure, end), getattr(here.enclosure, end)
        scale = max(abs(here.enclosure.lambda_max.upper), abs(theirs.lower))
        assert ours.lower <= theirs.upper + 1e-12 * scale
        assert theirs.lower <= ours.upper + 1e-12 * scale
        if not single:
            assert_same_ends(ours, theirs, scale)
    if here.moments is not None and there.moments is not None and mode != "probes":
        assert there.moments.frobenius_squared == pytest.approx(
            here.moments.frobenius_squared, rel=1e-5 if single else 1e-12
        )
    if here.spectrum is not None and there.spectrum is not None:
        scale = here.spectrum.eigenvalues[0]
        assert there.spectrum.eigenvalues == pytest.approx(here.spectrum.eigenvalues, abs=1e-10 * scale)
    assert [check.name for check in there.checks if not check.passed] == []
    assert {w.code for w in there.warnings} <= {w.code for w in here.warnings} | {"not_deterministic"}


def assert_same_ends(ours: wsb.report.CertifiedInterval, theirs: wsb.report.CertifiedInterval, scale: float) -> None:
    """Demand equal ends. An outer end magnifies the slack, which depends on how a device rounds."""
    width = theirs.upper - theirs.lower
    for mine, other in ((ours.lower, theirs.lower), (ours.upper, theirs.upper)):
        assert mine == pytest.approx(other, abs=1e-9 * scale + 0.1 * width)
    assert min(abs(ours.lower - theirs.lower), abs(ours.upper - theirs.upper)) <= 1e-9 * scale


def saved(module: nn.Module, example: Tensor, form: str) -> wsb.Classifier:
    if form == "pt2":
        return wsb.load_model(pt2.exported(module, example, free=True))
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if form == "torchscript":
            torch.jit.save(torch.jit.trace(module, example, check_trace=False), buffer)
        else:
            axes = {"x": {0: "n"}}
            torch.onnx.export(module, (example,), buffer, dynamo=False, input_names=["x"], dynamic_axes=axes)
    return wsb.load_model(buffer.getvalue())


@pytest.mark.parametrize(("form", "net"), crossed(["torchscript", "pt2", "onnx"], NETS, keep=1))
def test_what_a_file_holds_is_moved_to_the_gpu(form: str, net: str, gpus: simulated.Devices) -> None:
    _, batch = case(net)
    torch.manual_seed(0)
    x = batch.x["x"] if net == "encoder" else batch.x["x"].float()
    classifier = saved(NETS[net][0]().eval(), x[:2], form)
    found = []
    for device in ("cpu", "cuda:0"):
        options = wsb.Options(device=device, dtype="float64", moments="none", max_products=4)
        report = wsb.analyze(classifier, wsb.Batch(x, batch.y), options)
        assert report.enclosure is not None
        found.append(report.enclosure.lambda_max)
    assert gpus.counts().launches > 0
    assert_same_ends(found[1], found[0], found[0].upper)


def test_the_engine_chooses_a_gpu_if_all_tests_are_to_run_on_one(pytestconfig: pytest.Config) -> None:
    asked = bool(pytestconfig.getoption("--simulated"))
    assert wsb.analyze(*case("mlp")).engine.device.startswith("cuda" if asked else "cpu")


def test_tensors_of_several_devices_do_not_mix(gpus: simulated.Devices) -> None:
    here, first, second = (torch.ones(2, device=device) for device in ("cpu", *map(devices.numbered, (0, 1))))
    for a, b in ((here, first), (first, second)):
        with pytest.raises(RuntimeError, match="same device"):
            a + b
    assert gpus.counts(0).synchronisations == 0
    assert float((first + first.sum().cpu()).sum()) == 6  # a number may be on the CPU
    assert gpus.counts(0).synchronisations == 2


def test_a_module_on_another_device_takes_its_buffers_along(gpus: simulated.Devices) -> None:
    torch.manual_seed(0)
    module = Encoder().eval()
    x, y = torch.randint(0, 20, (SAMPLES, 5)), torch.randint(0, CLASSES, (SAMPLES,))
    there = wsb.from_module(module.to(f"{simulated.NAME}:1"))
    options = wsb.Options(device="cuda:0", moments="none", max_products=5)
    assert wsb.analyze(there, wsb.Batch(x, y), options).enclosure is not None


@pytest.mark.parametrize("net", ["mlp", *map(full, ("group norm", "batch norm", "max pool", "encoder", "recurrent"))])
def test_two_gpus_give_the_numbers_of_one(net: str, gpus: simulated.Devices) -> None:
    classifier, batch = case(net)
    one = wsb.analyze(classifier, batch, wsb.Options(device="cuda:0", ends="largest"))
    gpus.reset()
    two = wsb.analyze(classifier, batch, wsb.Options(devices="all", ends="largest"))
    assert gpus.counts(1).launches > 0
    assert one.enclosure is not None
    assert two.enclosure is not None
    assert_same_ends(two.enclosure.lambda_max, one.enclosure.lambda_max, one.enclosure.lambda_max.upper)
    if one.moments is not None and two.moments is not None:
        assert two.moments.frobenius_squared == pytest.approx(one.moments.frobenius_squared, rel=1e-12)
    assert "split" in {warning.code for warning in two.warnings}


def test_two_gpus_give_the_eigenvectors_of_one(gpus: simulated.Devices) -> None:
    classifier, batch = case("mlp")
    one, two = (
        wsb.eigenpairs(classifier, batch, wsb.Options(top=2, max_products=60, **where))
        for where in ({"device": "cuda:0"}, {"devices": ("cuda:0", "cuda:1")})
    )
    assert gpus.counts(1).launches > 0
    torch.testing.assert_close(two.eigenvalues, one.eigenvalues, rtol=1e-9, atol=0)
    torch.testing.assert_close((two.eigenvectors * one.eigenvectors).sum(dim=0).abs(), torch.ones(2).double())


def test_answers_of_gpus_are_added_one_at_a_time(gpus: simulated.Devices) -> None:
    classifier, batch = case("mlp")
    problem = posed(classifier, batch, devices=("cuda:0", "cuda:1"))
    V = torch.randn(problem.objective.parameters, 1, dtype=torch.float64)
    want = problem.hessian_product(1)(V.to(problem.objective.device))
    with Devices(problem, [devices.numbered(0), devices.numbered(1)]) as team:
        total = team.sum(Multiply(1), V.to(problem.objective.device))
    assert total.device == problem.objective.device
    torch.testing.assert_close(total.cpu(), want.cpu(), rtol=1e-12, atol=1e-14)


# --- how often the CPU waits for a GPU --------------------------------------------------------------------------------


def posed(classifier: wsb.Classifier, batch: wsb.Batch, **options: Any) -> Problem:
    chosen = wsb.Options(**{"device": "cuda:0", **options})
    return pose(classifier, batch, chosen, Monitor(chosen, None, 0.0))


@pytest.mark.parametrize(
    ("net", "linearised"), [("mlp", False), full("batch norm", False), ("batch norm", True), full("encoder", True)]
)
def test_a_product_never_waits_for_the_gpu(
    net: str, linearised: bool, gpus: simulated.Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    if linearised:
        monkeypatch.setattr("wsb_engine.analysis.problem.WORTHWHILE", 0)
        monkeypatch.setattr("wsb_engine.curvature.products.linearized.TRACING_SECONDS", 0)
    monkeypatch.setattr("wsb_engine.curvature.products.autodiff.GRADIENT_SAMPLES", 5)
    problem = posed(*case(net))
    product = problem.hessian_product(columns=1)
    v = torch.ones(problem.objective.parameters, 1, dtype=torch.float64, device=problem.objective.device)
    product(v)
    gpus.reset()
    product(v)
    counts = gpus.counts()
    assert counts.launches > 0
    assert (counts.synchronisations, counts.to_host) == (0, 0)


def test_a_step_of_the_enclosure_waits_a_few_times_whatever_the_chunks(
    gpus: simulated.Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = set()
    for size in (SAMPLES, 3):
        monkeypatch.setattr("wsb_engine.curvature.products.autodiff.GRADIENT_SAMPLES", size)
        problem, options = posed(*case("batch norm")), wsb.Options(moments="none")
        run = krylov(problem, problem.hessian_product(1), options, Monitor(options, None, 0.0)).run
        for _ in range(4):
            run.step()
        gpus.reset()
        run.step()
        found.add(gpus.counts().synchronisations)
    assert len(found) == 1
    assert found.pop() <= 12


def summed(problem: Problem, layout: Layout, gpus: simulated.Devices) -> tuple[float, simulated.Counts]:
    assert problem.structure is not None
    gpus.reset()
    with torch.no_grad():
        found = closed_form(problem.structure.net, problem.tile, problem.objective.targets.weights, layout)
    return found.frobenius_squared, gpus.counts()


def test_moments_start_few_kernels_for_a_tile_and_a_pair_and_wait_for_neither(gpus: simulated.Devices) -> None:
    problem = posed(*case("mlp"))
    assert problem.structure is not None
    layout = moments._layout(problem, problem.structure)
    whole, *others = [summed(problem, replace(layout, tile=SAMPLES // tiles, kept=tiles), gpus) for tiles in (1, 2, 4)]
    assert {counts.synchronisations for _, counts in (whole, *others)} == {whole[1].synchronisations}
    assert whole[1].synchronisations <= 8
    assert [value for value, _ in others] == pytest.approx([whole[0]] * 2, rel=1e-13)
    one, two, four = (counts.launches for _, counts in (whole, *others))
    pair = ((four - two) - 2 * (two - one)) / 3  # there are 1, 3 and 10 pairs
    assert pair <= LAUNCHES_PAIR + LAUNCHES_BLOCK * len(layout.forms)
    assert two - one - 2 * pair <= LAUNCHES_LAYER * len(layout.learning)


def test_tiles_of_a_gpu_are_as_large_as_its_memory_allows(gpus: simulated.Devices) -> None:
    launches, values = [], []
    for room in (1 << 30, 100 << 10, 48 << 10):
        problem = replace(posed(*case("mlp")), memory=room)
        assert problem.structure is not None
        layout = moments._layout(problem, problem.structure)
        value, counts = summed(problem, layout, gpus)
        launches.append(counts.launches)
        values.append(value)
        assert (layout.tile == SAMPLES) == (room == 1 << 30)
    assert launches == sorted(set(launches))
    assert values == pytest.approx(values[:1] * 3, rel=1e-13)
    problem = replace(problem, memory=1 << 30, team=cast(Any, SimpleNamespace(size=2)))
    assert problem.structure is not None
    assert moments._layout(problem, problem.structure).tile == SAMPLES // 4  # every GPU has its share of pairs


def test_a_gpu_takes_all_samples_that_fit_for_the_gauss_newton_trace(gpus: simulated.Devices) -> None:
    problem = posed(*case("mlp"))
    assert problem.structure is not None
    net, weights = problem.structure.net, problem.objective.targets.weights
    found = []
    for room in (1 << 30, 1 << 12):
        gpus.reset()
        rows = rows_of(net, problem.objective.device, room)
        trace = mlp_trace(net, problem.tile, weights, rows=rows)
        found.append((trace, gpus.counts()))
    (one, few), (other, many) = found
    assert one == pytest.approx(other, rel=1e-13)
    assert few.launches < many.launches / 2
    assert few.synchronisations == many.synchronisations == 1
    assert rows_of(net, torch.device("cpu"), 1 << 30) == ROWS


# --- dense spectra ----------------------------------------------------------------------------------------------------


def symmetric(size: int) -> Tensor:
    H = torch.randn(size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return H + H.T


def test_a_gpu_solves_the_dense_spectrum_itself_and_hands_over_the_eigenvalues(gpus: simulated.Devices) -> None:
    there = symmetric(BLOCK + 3).to(devices.numbered(0))
    gpus.reset()
    found = dense_spectrum(there)
    assert gpus.counts().to_host < 2 * 8 * len(there)
    assert gpus.counts().synchronisations <= 8
    torch.testing.assert_close(found.eigenvalues, dense_spectrum(there.cpu()).eigenvalues, rtol=0, atol=1e-12)


def test_an_estimate_counts_a_dense_spectrum_at_the_rate_of_the_solver(gpus: simulated.Devices) -> None:
    here, there = (solver_operations(8000, torch.device(device)) for device in ("cpu", f"{simulated.NAME}:0"))
    gpus.properties.multi_processor_count = 132
    assert 0.1 < there / nominal_rate(devices.numbered(0), torch.float64) < 1  # an H200 took 0.48 s
    assert here == 4 / 3 * 8000**3


REFUSALS = [
    NotImplementedError("Could not run 'aten::_linalg_eigh.eigenvalues' with arguments from this backend"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB"),
    RuntimeError("cusolver error: CUSOLVER_STATUS_INVALID_VALUE, when calling `cusolverDnXsyevd_bufferSize`"),
    torch.linalg.LinAlgError("linalg.eigh: The algorithm failed to converge"),
]


@pytest.mark.parametrize("error", REFUSALS, ids=lambda error: type(error).__name__)
def test_the_cpu_solves_what_a_gpu_has_no_solver_or_no_memory_for(
    error: Exception, gpus: simulated.Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    solve = torch.linalg.eigvalsh

    def refusing(H: Tensor) -> Tensor:
        if H.device.type != "cpu":
            raise error
        return solve(H)

    monkeypatch.setattr(torch.linalg, "eigvalsh", refusing)
    found = dense_spectrum(symmetric(20).to(devices.numbered(0))).eigenvalues
    assert torch.equal(found, dense_spectrum(symmetric(20)).eigenvalues)


def test_a_gpu_that_fails_in_its_solver_has_failed(gpus: simulated.Devices, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(H: Tensor) -> Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.linalg, "eigvalsh", failing)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        dense_spectrum(symmetric(20).to(devices.numbered(0)))


# --- exact arithmetic -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("allowed", "least", "most"), [(True, 1e-5, 1.0), (False, 0.0, 2e-6)])
def test_convolutions_keep_the_precision_of_float32(
    allowed: bool, least: float, most: float, gpus: simulated.Devices
) -> None:
    """torch allows TF32 in them unless told otherwise; its error is thousands of times that of float32."""
    classifier, batch = case("batch norm")
    with nullcontext() if allowed else exact(gpus=True):
        single, double = (posed(classifier, batch, dtype=dtype) for dtype in ("float32", "float64"))
        v = torch.ones(single.objective.parameters, dtype=torch.float64, device=single.objective.device)
        image, truth = (each.hessian_product(1).vector(v) for each in (single, double))
    assert least <= float((image - truth).norm() / truth.norm()) <= most


def precisions() -> list[str]:
    backends = torch.backends
    owners = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul)
    return [str(owner.fp32_precision) for owner in owners]


def old_precisions() -> tuple[str, bool]:
    """The same in the settings that torch had before; it refuses to tell them where they contradict the others."""
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


def deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


@pytest.fixture
def matmul_in_tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("matmul_in_tf32")
def test_settings_of_the_process_come_back_after_an_analysis_even_if_it_fails(gpus: simulated.Devices) -> None:
    before, inside = (precisions(), old_precisions(), deterministic()), []

    def look(_: Any) -> None:
        inside.append((set(precisions()), old_precisions(), deterministic()))
        if len(inside) > 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        wsb.analyze(*case("mlp"), wsb.Options(device="cuda:0"), progress=look)
    assert inside[-1] == ({"ieee"}, ("highest", False), (True, True))
    assert (precisions(), old_precisions(), deterministic()) == before
    assert before[1] == ("high", True)


@pytest.mark.usefixtures("matmul_in_tf32")
def test_the_last_of_several_analyses_restores_the_settings() -> None:
    before = precisions()
    entered, leave = threading.Barrier(3), [threading.Event(), threading.Event()]

    def hold(number: int) -> None:
        with exact(gpus=True):
            entered.wait(60)
            leave[number].wait(60)

    threads = [threading.Thread(target=hold, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    entered.wait(60)
    leave[0].set()
    threads[0].join(60)
    assert set(precisions()) == {"ieee"}
    leave[1].set()
    threads[1].join(60)
    assert precisions() == before


def digest(report: wsb.Report) -> str:
    return report.model_dump_json(exclude={"timings"})


def test_the_same_analysis_gives_the_same_bits_twice(gpus: simulated.Devices) -> None:
    classifier, batch = case("batch norm")
    first, second = (wsb.analyze(classifier, batch, wsb.Options(device="cuda:0", max_products=8)) for _ in range(2))
    assert digest(first) == digest(second)


def test_an_operator_without_a_deterministic_form_is_named(gpus: simulated.Devices) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8, 3))
    batch = wsb.Batch(np.random.default_rng(0).normal(size=(6, 1, 6, 6)), np.arange(6) % 3)
    report = wsb.analyze(wsb.from_module(module), batch, wsb.Options(device="cuda:0", moments="none", max_products=5))
    told = [warning.message for warning in report.warnings if warning.code == "not_deterministic"]
    assert len(told) == 1
    assert "adaptive_avg_pool2d_backward" in told[0]


# --- which precision and which device ---------------------------------------------------------------------------------


def chosen_dtype(gpus: simulated.Devices, **properties: Any) -> str:
    gpus.properties = simulated.Properties(**properties)
    return str(posed(*case("mlp")).objective.dtype).removeprefix("torch.")


@pytest.mark.parametrize(("capability", "dtype"), [((9, 0), "float64"), ((7, 5), "float32")])
def test_float64_is_chosen_where_the_gpu_does_it_in_time(
    capability: tuple[int, int], dtype: str, gpus: simulated.Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = posed(*case("mlp"))
    operations = logits_footprint(counted.objective).operations * counted.samples
    in_single = EXPECTED_PRODUCTS * FORWARD_PASSES * operations / nominal_rate(counted.objective.device, torch.float32)
    monkeypatch.setattr("wsb_engine.analysis.inputs.DOUBLE_SECONDS_GPU", 4 * in_single)
    assert chosen_dtype(gpus, major=capability[0], minor=capability[1]) == dtype


def test_float32_is_chosen_where_the_gpu_has_no_memory_for_float64(gpus: simulated.Devices) -> None:
    parameters = sum(tensor.numel() for tensor in case("mlp")[0].parameters.values())
    assert chosen_dtype(gpus, total_memory=2 * 8 * 8 * parameters + 2) == "float64"
    assert chosen_dtype(gpus, total_memory=2 * 8 * 8 * parameters - 2) == "float32"


def test_auto_leaves_a_small_analysis_to_the_cpu(gpus: simulated.Devices, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsb_engine.curvature.cost.MEASURED_SIZE_GPU", 64)
    classifier, batch = case("mlp")
    assert wsb.analyze(classifier, batch, wsb.Options(max_products=5)).engine.device == "cpu"
    assert gpus.counts().launches == 0
    assert wsb.estimate(classifier, batch).device == "cpu"
    monkeypatch.setattr("wsb_engine.curvature.cost.CPU_RATE", 1e3)  # a very slow one
    assert wsb.analyze(classifier, batch, wsb.Options(max_products=5)).engine.device == "cuda:0"
    assert wsb.estimate(classifier, batch).device == "cuda:0"


def test_auto_takes_the_gpu_for_what_the_cpu_can_not_do(
    gpus: simulated.Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier, batch = case("mlp")
    counted = estimate._counted

    def refusing(*given: Any) -> Problem:
        if given[2].device == "cpu":
            raise RuntimeError("not implemented for this CPU")
        return counted(*given)

    monkeypatch.setattr(estimate, "_counted", refusing)
    assert wsb.analyze(classifier, batch, wsb.Options(max_products=5)).engine.device == "cuda:0"


def test_auto_takes_the_gpu_that_the_process_has_selected(
    gpus: simulated.Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsb_engine.analysis.estimate.SMALL_MODEL", 0)
    module = torch.get_device_module(simulated.NAME)
    module.set_device(f"{simulated.NAME}:1")
    try:
        assert wsb.analyze(*case("mlp"), wsb.Options(max_products=5)).engine.device == "cuda:1"
    finally:
        module.set_device(f"{simulated.NAME}:0")


# --- faults -----------------------------------------------------------------------------------------------------------


@cache
def launches_of(net: str, options: wsb.Options) -> int:
    """Launches of a whole analysis."""
    devices = simulated.load()
    devices.reset()
    wsb.analyze(*case(net), options)
    return devices.counts().launches


FAILING = wsb.Options(device="cuda:0", max_products=4)


@pytest.mark.parametrize(("net", "part"), [("mlp", 0.02), ("mlp", 0.5), ("mlp", 0.98)])
def test_a_gpu_that_fails_at_any_point_is_an_error_of_the_device(
    net: str, part: float, gpus: simulated.Devices
) -> None:
    total = launches_of(net, FAILING)
    gpus.reset()
    gpus.fail_after(int(part * total))
    with pytest.raises(wsb.ResourceError) as caught:
        wsb.analyze(*case(net), FAILING)
    assert caught.value.code == "device_failed"
    assert "unspecified launch failure" in caught.value.message


@pytest.mark.slow
@pytest.mark.parametrize("part", np.linspace(0.01, 0.99, 25))
@pytest.mark.parametrize("net", NETS)
def test_no_failure_of_a_gpu_is_taken_for_something_else(net: str, part: float, gpus: simulated.Devices) -> None:
    test_a_gpu_that_fails_at_any_point_is_an_error_of_the_device(net, part, gpus)


def test_a_gpu_of_several_that_fails_is_an_error_of_the_device(gpus: simulated.Devices) -> None:
    gpus.fail_after(300, index=1)
    with pytest.raises(wsb.ResourceError) as caught:
        wsb.analyze(*case("mlp"), wsb.Options(devices="all"))
    assert caught.value.code == "device_failed"


def test_memory_that_runs_out_leads_to_smaller_products(gpus: simulated.Devices) -> None:
    problem = posed(*case("batch norm"))
    v = torch.ones(problem.objective.parameters, 1, dtype=torch.float64, device=problem.objective.device)
    held = gpus.counts().held
    gpus.reset()
    want = problem.hessian_product(1)(v)
    peak = gpus.counts().peak
    told: list[str] = []
    gpus.limit(held + (peak - held) // 2)
    found = replace(problem, warn=lambda code, _: told.append(code)).hessian_product(1)(v)
    assert told == ["memory_step_down"]
    torch.testing.assert_close(found.cpu(), want.cpu(), rtol=1e-12, atol=1e-14)


BYTES_FOR_EACH_PARAMETER = {"float32": 40, "float64": 64}
"""Besides the intermediates of a few samples, for which ``benchmarks/gpu/billion.py`` adds a few."""


@pytest.mark.parametrize("dtype", ["float32", full("float64")])
def test_three_vectors_of_a_large_model_hold_what_is_counted_on(
    dtype: Any, gpus: simulated.Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As small beside this model as beside others.
    monkeypatch.setattr("wsb_engine.random_vectors.LARGE_TILE", 1 << 10)
    for module_of_tiles in ("run", "three_vectors", "confirmation"):
        monkeypatch.setattr(f"wsb_engine.spectrum.{module_of_tiles}.TILE", 1 << 13)
    others = gpus.counts().held
    torch.manual_seed(0)
    hidden = [each for _ in range(20) for each in (nn.Linear(128, 128), nn.SiLU())]
    layers = (nn.LayerNorm(128), *hidden, nn.Linear(128, CLASSES))
    module = nn.Sequential(nn.Embedding(20, 32), nn.Flatten(), *layers).to(devices.numbered(0))
    classifier = wsb.from_module(module)
    parameters = sum(tensor.numel() for tensor in module.parameters())
    del module, layers, hidden
    batch, held = wsb.Batch(torch.arange(12).view(3, 4), np.arange(3)), BYTES_FOR_EACH_PARAMETER[dtype] * parameters
    run = {"basis": "three_vectors", "moments": "none", "ends": "largest", "max_products": 5, "relative_gap": 0.1}
    gpus.reset()
    options = wsb.Options(device="cuda:0", dtype=dtype, failure_probability=0.1, memory_limit=held, **run)
    report = wsb.analyze(classifier, batch, options)
    assert report.enclosure is not None
    assert 0.8 * held < gpus.counts().peak - others <= held


@pytest.mark.parametrize(
    ("error", "ran_out", "failed"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True, False),
        (RuntimeError("CUDA error: out of memory"), True, False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True, False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"), True, False),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True, False),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False, True),
        (RuntimeError("CUDA error: unspecified launch failure"), False, True),
        (RuntimeError("CUDA error: device-side assert triggered"), False, True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), False, True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"), False, True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)"), False, False),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"), False, False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx`"), False, False),
        (RuntimeError("CUDA error: invalid configuration argument"), False, False),
        (wsb.ModelError("CUDA error: in a name", code="evaluation_failed", advice=""), False, False),
    ],
)
def test_what_cuda_says_is_told_apart(error: Exception, ran_out: bool, failed: bool) -> None:
    assert (memory.ran_out(error), devices.has_failed(error)) == (ran_out, failed)


@pytest.mark.parametrize("row", [0, SAMPLES - 1])
def test_an_index_out_of_range_is_found_before_the_gpu_fails(row: int, gpus: simulated.Devices) -> None:
    classifier, batch = case("encoder")
    x = batch.x["x"].clone()
    x[row, 2] = 20
    found = []
    for device in ("cpu", "cuda:0"):
        with pytest.raises((wsb.EngineError, IndexError)) as caught:
            wsb.analyze(classifier, wsb.Batch(x, batch.y), wsb.Options(device=device))
        found.append((type(caught.value), getattr(caught.value, "code", None)))
    assert found[0] == found[1]
    torch.zeros(1, device=f"{simulated.NAME}:0").add_(1)  # the device is whole
