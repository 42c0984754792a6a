"""analyze(): options, refusals, progress, limits; the mathematics has tests of its own."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from support.forms import full, thinned
from support.golden import NAMES, Golden
from torch import nn

import wsb_engine as wsb
from wsb_engine.analysis import inputs, targets
from wsb_engine.analysis.monitor import Monitor
from wsb_engine.analysis.problem import pose
from wsb_engine.model import Input

GOLDEN = Golden("paper_three_layer_tanh")
MOMENTS = wsb.Options(enclosure=False)


def classifier() -> wsb.Classifier:
    return wsb.load_model(GOLDEN.onnx())


def batch(**changes: object) -> wsb.Batch:
    return wsb.Batch(**{"x": GOLDEN.x, "y": GOLDEN.y, **changes})


def code_of(model: wsb.Classifier, data: wsb.Batch, options: wsb.Options | None = None) -> str:
    with pytest.raises(wsb.EngineError) as caught:
        wsb.analyze(model, data, options)
    assert caught.value.advice
    return caught.value.code


def wide(parameters: int) -> wsb.Classifier:
    return wsb.from_module(nn.Linear(parameters, 1, bias=False))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"x": GOLDEN.x[:, :3]}, "feature_count_mismatch"),
        ({"x": GOLDEN.x[:, :, None]}, "feature_count_mismatch"),
        ({"y": GOLDEN.y + 1}, "labels_out_of_range"),
        ({"y": GOLDEN.y - 1}, "labels_out_of_range"),
        ({"y": np.full((12, 2), 0.5)}, "label_classes_mismatch"),
        ({"y": np.full(12, 0.5)}, "label_classes_mismatch"),
        ({"y": np.array(["cat"] * 12)}, "labels_unknown"),
        ({"x": {"pixels": GOLDEN.x}}, "input_missing"),
        ({"x": {"x": GOLDEN.x, "mask": GOLDEN.x}}, "input_unknown"),
    ],
)
def test_a_batch_that_does_not_fit_has_its_code(changes: dict[str, object], code: str) -> None:
    with pytest.raises(wsb.BatchError) as caught:
        wsb.analyze(classifier(), batch(**changes))
    assert caught.value.code == code
    assert caught.value.advice


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (wsb.Options(device="cuda:97"), "device_unavailable"),
        (wsb.Options(parameters=("nothing*",)), "parameter_pattern_unmatched"),
        (wsb.Options(parameters=("*", "!*")), "no_parameters_selected"),
        (wsb.Options(output="nothing"), "unknown_output"),
        (wsb.Options(moments="closed_form", enclosure=False, time_limit=1e-9), "time_limit"),
    ],
)
def test_an_option_that_cannot_be_satisfied_has_its_code(options: wsb.Options, code: str) -> None:
    assert code_of(classifier(), batch(), options) == code


def test_the_closed_form_is_refused_where_there_is_none() -> None:
    model = wsb.from_module(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3)))
    assert code_of(model, batch(), wsb.Options(moments="closed_form")) == "closed_form_unavailable"


def test_a_dense_spectrum_above_the_memory_limit_is_refused_before_work() -> None:
    data = wsb.Batch(np.zeros((2, 1000)), np.array([0, 1]))
    assert code_of(wide(1000), data, wsb.Options(spectrum="dense", memory_limit=1 << 20)) == "memory_limit"


def test_logits_that_overflow_are_named() -> None:
    data = wsb.Batch(np.full((2, 3), 1e300), np.array([0, 1]))
    model = wsb.from_module(nn.Linear(3, 2).double())
    with torch.no_grad():
        model.parameters["weight"].fill_(1e10)
    assert code_of(model, data) == "logits_not_finite"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"moments": "none"},
        {"moments": "none", "enclosure": False, "spectrum": "dense"},
        {"moments": "none", "enclosure": False, "spectrum": "top"},
        {"moments": "none", "enclosure": False, "density": True},
    ],
)
def test_a_hessian_that_overflows_has_its_code(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = wsb.from_module(nn.Linear(3, 2).double().apply(lambda m: m.weight.data.mul_(1e-200)))
    data = wsb.Batch(np.full((2, 3), 1e170), np.array([0, 1]))
    assert code_of(model, data, wsb.Options(**options)) == "overflow"


def test_a_hessian_whose_squares_alone_overflow_is_enclosed_without_moments() -> None:
    """x = (1e100, 1e100, 1e100) twice and p = ½: H = S ⊗ ã ãᵀ has λ_max = ½ · 3e200."""
    layer = nn.Linear(3, 2).double().apply(lambda m: (m.weight.data.zero_(), m.bias.data.zero_()))
    data = wsb.Batch(np.full((2, 3), 1e100), np.array([0, 1]))
    report = wsb.analyze(wsb.from_module(layer), data)
    assert report.moments is None
    assert "moments_unavailable" in [warning.code for warning in report.warnings]
    assert report.enclosure is not None
    assert report.enclosure.lambda_max.lower <= 1.5e200 <= report.enclosure.lambda_max.upper
    assert code_of(wsb.from_module(layer), data, wsb.Options(moments="basis")) == "overflow"


def test_logits_that_overflow_in_the_reference_are_left_out_of_the_comparison() -> None:
    model = classifier()
    resolve = model.resolve

    def underflowing(**options: object) -> object:
        resolved = resolve(**options)

        def reference(arrays: object) -> np.ndarray:
            z = np.array(resolved.reference(arrays))
            z[0, 0] = -np.inf
            return z

        return replace(resolved, reference=reference)

    model.resolve = underflowing
    report = wsb.analyze(model, batch())
    assert report.model.parity is not None
    assert report.model.parity.max_abs_error < 1e-12
    assert "parity_partial" in [warning.code for warning in report.warnings]


def test_what_nothing_needs_is_not_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsb_engine.analysis.krylov.Lanczos", None)
    assert wsb.analyze(classifier(), batch(), wsb.Options(enclosure=False)).bounds is not None


class PerToken(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(super().forward(x))


def test_an_output_for_each_token_is_named_and_its_advice_works() -> None:
    data = wsb.Batch(np.random.default_rng(0).standard_normal((2, 3, 3)), np.array([0, 1]))
    assert code_of(wsb.from_module(nn.Linear(3, 2)), data) == "per_token_output"

    class First(PerToken):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)[:, 0]

    assert wsb.analyze(wsb.from_module(First(3, 2)), data).batch.classes == 2


def test_an_output_for_each_pixel_is_named_and_its_advice_works() -> None:
    data = wsb.Batch(np.random.default_rng(0).standard_normal((2, 3, 4, 4)), np.array([0, 1]))
    assert code_of(wsb.from_module(nn.Conv2d(3, 2, 1)), data) == "per_pixel_output"

    class First(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)[:, :, 0, 0]

    assert wsb.analyze(wsb.from_module(First(3, 2, 1)), data).batch.classes == 2


def test_an_output_of_another_shape_is_refused() -> None:
    data = wsb.Batch(np.zeros((2, 3, 3, 3, 3)), np.array([0, 1]))
    assert code_of(wsb.from_module(nn.Linear(3, 2)), data) == "unsupported_output"


@pytest.mark.parametrize("label", [-100, full(-1)])
def test_the_advice_for_unlabelled_rows_works(label: int) -> None:
    x, y = GOLDEN.x, GOLDEN.y.copy()
    y[3] = label
    with pytest.raises(wsb.BatchError) as caught:
        wsb.analyze(classifier(), batch(y=y))
    assert caught.value.code == "labels_out_of_range"
    assert "keep = y >= 0; x, y = x[keep], y[keep]" in caught.value.advice
    assert "weights = (y >= 0).astype(float)" in caught.value.advice
    dropped = wsb.analyze(classifier(), batch(x=x[y >= 0], y=y[y >= 0]))
    weighted = wsb.analyze(classifier(), batch(y=y, weights=(y >= 0).astype(float)))
    assert weighted.loss.value == pytest.approx(dropped.loss.value, rel=1e-13)
    assert weighted.enclosure is not None
    assert dropped.enclosure is not None
    assert weighted.enclosure.lambda_max.upper == pytest.approx(dropped.enclosure.lambda_max.upper, rel=1e-9)


def test_a_label_that_is_none_of_the_classes_may_have_weight_0() -> None:
    y = np.array(["a", "?", "b"])
    with pytest.raises(wsb.BatchError, match=r"'\?' in row 1"):
        targets._class_indices(y, np.ones(3, bool), 2, ("a", "b"))
    assert targets._class_indices(y, np.array([True, False, True]), 2, ("a", "b")).tolist() == [0, 0, 1]


def test_a_missing_input_comes_with_all_inputs_and_what_the_batch_has() -> None:
    declared = (
        Input(name="ids", shape=(None, 5), dtype=torch.int64),
        Input(name="mask", shape=(None, None), dtype=torch.bool),
    )
    data = wsb.Batch({"ids": np.zeros((2, 5), int), "attention": np.ones((2, 5), bool)}, [0, 1])
    with pytest.raises(wsb.BatchError) as caught:
        inputs.match_inputs(declared, data)
    assert caught.value.code == "input_missing"
    for part in ("'ids' int64 [N, 5]", "'mask' bool [N, ?]", "'attention' bool [N, 5]"):
        assert part in caught.value.message
    assert "a['mask'] = a.pop('attention')" in caught.value.advice


IMAGES = {
    "channels last": ((None, 3, 6, 4), (2, 6, 4, 3), "x = numpy.transpose(x, (0, 3, 1, 2))"),
    "channels first": ((None, 6, 4, 3), (2, 3, 6, 4), "x = numpy.transpose(x, (0, 2, 3, 1))"),
    "sizes left open": ((None, 3, None, None), (2, 6, 4, 3), "x = numpy.transpose(x, (0, 3, 1, 2))"),
    "no channel": ((None, 1, 6, 4), (2, 6, 4), "x = x.reshape(len(x), 1, 6, 4)"),
    "flattened": ((None, 3, 6, 4), (2, 72), "x = x.reshape(len(x), 3, 6, 4)"),
    "not flattened": ((None, 72), (2, 3, 6, 4), "x = x.reshape(len(x), 72)"),
}


@pytest.mark.parametrize("case", IMAGES)
def test_the_advice_for_images_in_another_layout_works(case: str) -> None:
    shape, given, command = IMAGES[case]
    declared = (Input(name="x", shape=shape, dtype=torch.float32),)
    x = np.zeros(given, np.float32)
    with pytest.raises(wsb.BatchError) as caught:
        inputs.match_inputs(declared, wsb.Batch(x, [0, 1]))
    assert caught.value.code == "feature_count_mismatch"
    assert command in caught.value.advice
    scope = {"numpy": np, "x": x}
    exec(command, scope)  # noqa: S102 - the advice itself
    assert inputs.match_inputs(declared, wsb.Batch(scope["x"], [0, 1]))


def test_a_module_that_takes_the_other_layout_is_noticed_too() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(48, 2))
    x = np.random.default_rng(0).standard_normal((2, 5, 6, 3)).astype(np.float32)
    with pytest.raises(wsb.BatchError) as caught:
        wsb.analyze(wsb.from_module(module), wsb.Batch(x, [0, 1]))
    assert "x = numpy.transpose(x, (0, 3, 1, 2))" in caught.value.advice
    taken = wsb.Batch(np.transpose(x, (0, 3, 1, 2)), [0, 1])
    wsb.analyze(wsb.from_module(module), taken, wsb.Options(moments="none", enclosure=False))


def test_inputs_that_are_not_scaled_as_in_training_are_noticed() -> None:
    module = nn.Linear(3, 4)
    x, y = np.random.default_rng(0).standard_normal((20, 3)), np.arange(20) % 4
    for factor, expected in ((1.0, False), (255.0, True)):
        report = wsb.analyze(wsb.from_module(module), wsb.Batch(factor * x, y), MOMENTS)
        found = [warning.message for warning in report.warnings if warning.code == "implausible_loss"]
        assert bool(found) == expected
        assert report.loss.value / np.log(4) > 10 or not expected
        for message in found:
            assert f"{report.loss.value / np.log(4):.3g} times that of guessing" in message


def test_options_refuse_unknown_names_and_values() -> None:
    for wrong in ({"moment": "auto"}, {"seed": -1}, {"device": "tpu"}, {"relative_gap": math.nan}, {"top": 0}):
        with pytest.raises(ValidationError):
            wsb.Options(**wrong)


def test_weights_count_samples_as_often_as_they_say() -> None:
    counts = np.array([2, 1, 3] + [1] * 9)
    repeated = np.repeat(np.arange(12), counts)
    weighted = wsb.analyze(classifier(), batch(weights=counts), MOMENTS)
    explicit = wsb.analyze(classifier(), batch(x=GOLDEN.x[repeated], y=GOLDEN.y[repeated]), MOMENTS)
    assert weighted.moments is not None
    assert explicit.moments is not None
    assert weighted.loss.value == pytest.approx(explicit.loss.value, rel=1e-13)
    assert weighted.loss.accuracy == pytest.approx(explicit.loss.accuracy, rel=1e-13)
    assert weighted.loss.gradient_norm == pytest.approx(explicit.loss.gradient_norm, rel=1e-13)
    assert weighted.moments.trace == pytest.approx(explicit.moments.trace, rel=1e-12)
    assert weighted.moments.frobenius_squared == pytest.approx(explicit.moments.frobenius_squared, rel=1e-12)


def test_soft_labels_at_the_corners_equal_hard_labels() -> None:
    hard = wsb.analyze(classifier(), batch(), MOMENTS)
    soft = wsb.analyze(classifier(), batch(y=np.eye(3)[GOLDEN.y]), MOMENTS)
    assert soft.loss == hard.loss
    assert soft.moments == hard.moments


def test_one_logit_takes_two_columns_one_column_or_numbers() -> None:
    binary = Golden("softplus_single_logit")
    model = wsb.load_model(binary.onnx())
    p = binary.y * 0.8 + 0.1
    forms = (p, p[:, None], np.stack([1 - p, p], axis=1))
    reports = [wsb.analyze(model, wsb.Batch(binary.x, y), MOMENTS) for y in forms]
    assert reports[0].batch.classes == 2
    for other in reports[1:]:
        assert other.moments is not None
        assert reports[0].moments is not None
        assert other.moments.trace == pytest.approx(reports[0].moments.trace, rel=1e-12)


def test_a_subset_of_parameters_is_a_principal_block_of_the_hessian() -> None:
    names = [t.name for t in wsb.analyze(classifier(), batch(), MOMENTS).model.parameters.tensors]
    last = tuple(name for name in names if name.endswith("1"))
    options = wsb.Options(parameters=last, spectrum="dense")
    report = wsb.analyze(classifier(), batch(), options)
    excluded = wsb.Options(parameters=tuple(f"!{name}" for name in names if name not in last), enclosure=False)
    other = wsb.analyze(classifier(), batch(), excluded)
    assert report.model.parameters.count == 6 * 3 + 3
    assert all(check.passed for check in report.checks)
    assert other.moments == report.moments


def test_the_basis_gives_the_same_moments_as_the_closed_form() -> None:
    closed, basis = (
        wsb.analyze(classifier(), batch(), wsb.Options(moments=m, enclosure=False)) for m in ("closed_form", "basis")
    )
    assert closed.moments is not None
    assert basis.moments is not None
    assert basis.moments.method == "basis"
    assert basis.moments.trace == pytest.approx(closed.moments.trace, rel=1e-12)
    assert basis.moments.frobenius_squared == pytest.approx(closed.moments.frobenius_squared, rel=1e-12)


def test_no_moments_means_no_bounds() -> None:
    report = wsb.analyze(classifier(), batch(), wsb.Options(moments="none"))
    assert report.moments is None
    assert report.bounds is None


def test_the_enclosure_holds_the_dense_eigenvalues() -> None:
    report = wsb.analyze(classifier(), batch(), wsb.Options(spectrum="dense"))
    assert report.enclosure is not None
    assert report.spectrum is not None
    top, bottom = report.enclosure.lambda_max, report.enclosure.lambda_min
    assert top.lower <= report.spectrum.eigenvalues[0] <= top.upper
    assert bottom.lower <= report.spectrum.eigenvalues[-1] <= bottom.upper
    assert top.kind == "deterministic"
    assert top.failure_probability is None
    assert top.relative_gap is not None
    assert top.relative_gap < 1e-6
    assert report.enclosure.rounding_slack > 0


def test_without_moments_the_enclosure_is_probabilistic() -> None:
    report = wsb.analyze(classifier(), batch(), wsb.Options(moments="none", failure_probability=1e-6))
    assert report.enclosure is not None
    assert report.enclosure.lambda_max.kind == "probabilistic"
    assert report.enclosure.lambda_max.failure_probability == 1e-6


def test_an_enclosure_that_runs_out_of_products_says_so() -> None:
    report = wsb.analyze(classifier(), batch(), wsb.Options(max_products=2))
    assert report.enclosure is not None
    assert report.enclosure.hessian_vector_products == 2
    assert report.enclosure.lambda_max.lower < report.enclosure.lambda_max.upper
    assert "enclosure_open" in [warning.code for warning in report.warnings]


@pytest.mark.parametrize("name", thinned(NAMES, 4))
def test_the_top_of_the_spectrum_equals_the_dense_one(name: str) -> None:
    case = Golden(name)
    options = wsb.Options(spectrum="top", relative_gap=1e-9)
    report = wsb.analyze(wsb.load_model(case.onnx()), wsb.Batch(case.x, case.y), options)
    assert report.spectrum is not None
    assert report.spectrum.method == "lanczos"
    assert report.spectrum.residuals is not None
    scale = np.abs(case.eigenvalues).max()
    np.testing.assert_allclose(report.spectrum.eigenvalues, case.eigenvalues[:10], rtol=0, atol=1e-8 * scale)
    assert max(report.spectrum.residuals) <= 1e-7 * scale
    assert report.enclosure is not None
    assert abs(report.enclosure.lambda_max.lower - case.eigenvalues[0]) <= 1e-8 * scale
    assert abs(report.enclosure.lambda_min.upper - case.eigenvalues[-1]) <= 1e-8 * scale


def test_the_density_comes_with_its_moments() -> None:
    report = wsb.analyze(classifier(), batch(), wsb.Options(density=True))
    assert report.spectrum is not None
    assert report.moments is not None
    density = report.spectrum.density
    assert density is not None
    P = report.model.parameters.count
    integral = np.trapezoid(density.values, density.grid)
    assert integral == pytest.approx(1.0, abs=1e-6)
    assert abs(density.mean - report.moments.trace / P) <= 4 * density.mean_error
    assert abs(density.second_moment - report.moments.frobenius_squared / P) <= 4 * density.second_moment_error


def test_a_time_limit_returns_what_is_certified_by_then(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(event: wsb.Progress) -> None:
        if event.phase == "enclosure" and event.hessian_vector_products == 3:
            monkeypatch.setattr("wsb_engine.analysis.monitor.Monitor.expired", True)

    report = wsb.analyze(classifier(), batch(), wsb.Options(spectrum="dense", time_limit=3600), progress=late)
    assert report.enclosure is not None
    assert report.enclosure.hessian_vector_products == 3
    assert report.spectrum is None
    assert {"enclosure_open", "time_limit"} <= {warning.code for warning in report.warnings}


def test_a_closed_form_that_costs_too_much_is_left_out_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsb_engine.analysis.moments.BUDGET_SECONDS", 0.0)
    report = wsb.analyze(classifier(), batch())
    assert report.moments is None
    assert report.enclosure is not None
    assert report.enclosure.lambda_max.kind == "probabilistic"
    assert "moments_left_out" in [warning.code for warning in report.warnings]
    assert wsb.analyze(classifier(), batch(), wsb.Options(moments="closed_form")).moments is not None


def test_no_enclosure_is_made_where_none_is_wanted() -> None:
    assert wsb.analyze(classifier(), batch(), wsb.Options(enclosure=False)).enclosure is None


def test_float32_is_close_and_says_so() -> None:
    single, double = (wsb.analyze(classifier(), batch(), wsb.Options(dtype=d)) for d in ("float32", "float64"))
    assert single.engine.dtype == "float32"
    assert single.moments is not None
    assert double.moments is not None
    assert single.moments.frobenius_squared == pytest.approx(double.moments.frobenius_squared, rel=1e-4)


def test_layers_and_samples_add_up_to_the_whole() -> None:
    report = wsb.analyze(classifier(), batch(), MOMENTS)
    assert report.moments is not None
    assert report.layers is not None
    assert report.blocks is not None
    assert report.orthogonality is not None
    q = report.moments.frobenius_squared
    assert sum(layer.trace for layer in report.layers) == pytest.approx(report.moments.trace, rel=1e-12)
    assert sum(norm**2 for row in report.blocks for norm in row) == pytest.approx(q, rel=1e-12)
    assert [layer.frobenius_squared for layer in report.layers] == pytest.approx(
        [report.blocks[i][i] ** 2 for i in range(2)], rel=1e-12
    )
    shares = [entry.share for entry in report.orthogonality.sample_shares]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) <= 1 + 1e-9


def test_progress_names_its_phases_and_never_goes_back() -> None:
    seen: list[wsb.Progress] = []
    wsb.analyze(classifier(), batch(), wsb.Options(spectrum="dense"), progress=seen.append)
    assert {"setup", "moments", "spectrum"} <= {event.phase for event in seen}
    for phase in {event.phase for event in seen}:
        fractions = [event.fraction for event in seen if event.phase == phase]
        assert fractions == sorted(fractions)
        assert 0 <= fractions[0] <= fractions[-1] == 1


def test_raising_in_progress_stops_the_analysis() -> None:
    def stop(_: wsb.Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        wsb.analyze(classifier(), batch(), progress=stop)


def test_a_report_survives_json() -> None:
    report = wsb.analyze(classifier(), batch(), wsb.Options(spectrum="dense"))
    text = report.model_dump_json()
    assert wsb.Report.model_validate_json(text) == report
    assert "NaN" not in text
    assert "Infinity" not in text
    assert json.loads(text)["spectrum"]["density"] is None


def test_timings_cover_the_phases() -> None:
    timings = wsb.analyze(classifier(), batch()).timings
    assert {"load", "moments", "total"} <= set(timings)
    assert sum(seconds for phase, seconds in timings.items() if phase != "total") <= timings["total"]


def test_the_report_schema_and_options_need_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, wsb_engine; wsb_engine.Report; wsb_engine.Options(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_agrees_with_the_cpu() -> None:
    here, there = (wsb.analyze(classifier(), batch(), wsb.Options(device=d, spectrum="dense")) for d in ("cpu", "cuda"))
    assert here.moments is not None
    assert there.moments is not None
    assert there.moments.frobenius_squared == pytest.approx(here.moments.frobenius_squared, rel=1e-9)
    assert there.engine.device == "cuda:0"


@pytest.mark.filterwarnings("ignore:.torch.jit.save. is deprecated:DeprecationWarning")
def test_a_torchscript_file_is_read_and_its_missing_parity_is_reported() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).double().eval()
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(module), buffer)
    report = wsb.analyze(wsb.load_model(buffer.getvalue()), batch())
    assert report.model.format == "torchscript"
    assert report.model.architecture == "mlp"
    assert report.model.parity is None
    assert "parity_none" in [warning.code for warning in report.warnings]


def test_an_analysis_of_an_mlp_asks_for_nothing_of_the_compiler_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if f"{name}.".startswith("torch._dynamo.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(torch, "_dynamo", raising=False)
    # An import of it fails.
    monkeypatch.setitem(sys.modules, "torch._dynamo", None)
    assert wsb.analyze(wsb.from_module(GOLDEN.module()), batch(), wsb.Options(spectrum="dense")).spectrum is not None


@pytest.mark.slow
@pytest.mark.parametrize("form", ["live", "ONNX"])
def test_an_analysis_of_an_mlp_does_without_the_compiler_of_torch(form: str, tmp_path: Path) -> None:
    program = """
import sys, numpy, torch, wsb_engine as wsb
if sys.argv[1:]:
    classifier, batch = wsb.load_model(sys.argv[1]), wsb.load_batch(sys.argv[2])
else:
    classifier = wsb.from_module(torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)))
    batch = wsb.Batch(numpy.ones((6, 4), "float32"), numpy.arange(6) % 3)
wsb.analyze(classifier, batch, wsb.Options(spectrum="dense"))
print("torch._dynamo" in sys.modules)
"""
    command = [sys.executable, "-c", program]
    if form == "ONNX":
        model, rows = tmp_path / "model.onnx", tmp_path / "batch.npz"
        model.write_bytes(GOLDEN.onnx())
        np.savez(rows, x=GOLDEN.x, y=GOLDEN.y)
        command += [str(model), str(rows)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    # Its import takes longer than the analysis.
    assert done.stdout.strip() == "False"


def test_a_parameter_that_the_loss_does_not_depend_on_has_no_gradient() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(4, 3), nn.Parameter(torch.ones(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    torch.manual_seed(0)
    data = wsb.Batch(torch.randn(6, 4).numpy(), torch.arange(6).numpy() % 3)
    report = wsb.analyze(wsb.from_module(Idle()), data, wsb.Options(spectrum="dense"))
    assert report.spectrum is not None
    assert sum(abs(value) < 1e-12 for value in report.spectrum.eigenvalues) >= 2
    alone = wsb.analyze(wsb.from_module(Idle()), data, wsb.Options(parameters=("idle",)))
    assert alone.loss.gradient_norm == 0.0


def told(model: wsb.Classifier, data: wsb.Batch, **options: object) -> list[tuple[str, bool]]:
    """Phases with whether they said that one thread is enough for what is left."""
    seen: list[tuple[str, bool]] = []
    wsb.analyze(
        model,
        data,
        wsb.Options(device="cpu", **options),
        progress=lambda progress: seen.append((progress.phase, progress.one_thread)),
    )
    return list(dict.fromkeys(seen))


def test_a_small_analysis_says_once_it_knows_that_one_thread_is_enough() -> None:
    expected = [("setup", False), ("loss", False), ("parity", False)]
    after = [(phase, True) for phase in ("rounding", "moments", "enclosure", "spectrum")]
    assert told(classifier(), batch()) == [*expected, *after]


@pytest.mark.parametrize("options", [{"spectrum": "dense"}, {"spectrum": "top"}, {"moments": "basis"}])
def test_what_may_use_all_threads_does_not_say_so(options: dict[str, object]) -> None:
    assert not any(one for _, one in told(classifier(), batch(), **options))


@pytest.mark.slow
def test_a_large_product_or_a_large_sum_does_not_say_so() -> None:
    random = np.random.default_rng(0)
    data = wsb.Batch(random.random((2000, 64), np.float32), random.integers(0, 10, 2000))
    model = wsb.from_module(nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10)))
    assert not any(one for _, one in told(model, data, max_products=2))


def test_an_analysis_leaves_the_number_of_threads_as_it_was() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        wsb.analyze(classifier(), batch())
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_numbers_in_bfloat16_are_those_in_float32() -> None:
    x = torch.from_numpy(np.asarray(GOLDEN.x)).bfloat16()
    classifier, options = wsb.load_model(GOLDEN.onnx()), wsb.Options(max_products=5)
    short, long = (
        wsb.analyze(classifier, wsb.Batch(given, GOLDEN.y), options).model_dump(
            exclude={"timings": True, "batch": {"sha256"}}
        )
        for given in (x, x.float())
    )
    assert short == long
    assert short["model"]["parity"] is not None


@pytest.mark.parametrize("kind", ["uint8", "int64", "bool"])
def test_integers_for_a_floating_input_stay_as_stored_and_count_as_the_same_numbers(kind: str) -> None:
    x = np.random.default_rng(0).integers(0, 2 if kind == "bool" else 9, GOLDEN.x.shape).astype(kind)
    classifier = wsb.load_model(GOLDEN.onnx())
    options = wsb.Options(max_products=5)
    objective = pose(classifier, wsb.Batch(x, GOLDEN.y), options, Monitor(options, None, 0.0)).objective
    (stored,) = objective.inputs.values()
    assert str(stored.dtype) == f"torch.{kind}"
    reports = [wsb.analyze(classifier, wsb.Batch(given, GOLDEN.y), options) for given in (x, x.astype("f4"))]
    integers, floats = (report.model_dump(exclude={"timings": True, "batch": {"sha256"}}) for report in reports)
    assert integers == floats
    assert integers["model"]["parity"] is not None
