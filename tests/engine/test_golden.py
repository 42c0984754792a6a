"""Every golden case through the whole engine, as a module and as an ONNX file, to 1e-9 relative."""

from __future__ import annotations

import numpy as np
import pytest
from support.forms import crossed
from support.golden import NAMES, Golden

import wsb_engine as wsb


def load(case: Golden, source: str) -> tuple[wsb.Classifier, wsb.Batch]:
    if source == "module":
        return wsb.from_module(case.module()), wsb.Batch(case.x, case.y)
    return wsb.load_model(case.onnx()), wsb.load_batch(case.npz())


@pytest.mark.parametrize(("name", "source"), crossed(NAMES, ["module", "onnx"]))
def test_the_report_agrees_with_the_golden_case(name: str, source: str) -> None:
    case = Golden(name)
    report = wsb.analyze(*load(case, source), wsb.Options(spectrum="dense"))
    expected = case.expected
    close = {"rel": 1e-9, "abs": 0}
    assert report.model.architecture == "mlp"
    assert report.model.parameters.count == expected["parameters"]
    assert report.loss.value == pytest.approx(expected["loss"], **close)
    assert report.loss.gradient_norm == pytest.approx(expected["gradient_norm"], **close)
    assert report.moments is not None
    assert report.moments.method == "closed_form"
    assert report.moments.trace == pytest.approx(expected["trace"], **close)
    assert report.moments.frobenius_squared == pytest.approx(expected["frobenius_squared"], **close)
    assert report.bounds is not None
    for end, want in expected["wolkowicz_styan"].items():
        got = getattr(report.bounds.wolkowicz_styan, end)
        assert got.lower == pytest.approx(want["lower"], **close)
        assert got.upper == pytest.approx(want["upper"], **close)
    assert report.spectrum is not None
    scale = np.abs(case.eigenvalues).max()
    np.testing.assert_allclose(report.spectrum.eigenvalues, case.eigenvalues, rtol=1e-9, atol=1e-9 * scale)
    assert all(check.passed for check in report.checks), report.checks


def test_onnx_logits_agree_with_an_independent_runtime() -> None:
    case = Golden("paper_three_layer_tanh")
    report = wsb.analyze(*load(case, "onnx"))
    assert report.model.parity is not None
    assert report.model.parity.reference == "onnxruntime"
    assert report.model.parity.max_abs_error < 1e-12


def test_the_same_input_gives_the_same_report() -> None:
    case = Golden("gelu_soft_labels")
    first, second = (
        wsb.analyze(*load(case, "onnx"), wsb.Options(spectrum="dense")).model_dump(exclude={"timings"})
        for _ in range(2)
    )
    assert first == second
