"""When float64 gives way to float32, and what the report says of that."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import wsb_engine as wsb
from wsb_engine.analysis import inputs


def case() -> tuple[wsb.Classifier, wsb.Batch]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 4, 2), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3))
    return wsb.from_module(module), wsb.Batch(torch.randn(7, 1, 3, 3), torch.arange(7) % 3)


@pytest.mark.slow
def test_auto_computes_in_float32_on_a_cpu_if_products_in_float64_would_take_too_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    truth = wsb.analyze(*case(), wsb.Options(enclosure=False, spectrum="dense")).largest_eigenvalue
    assert truth is not None
    monkeypatch.setattr("wsb_engine.analysis.inputs.DOUBLE_SECONDS", 1e-9)
    report = wsb.analyze(*case(), wsb.Options(max_products=30))
    assert report.engine.dtype == "float32"
    (message,) = report.messages("float32_chosen")
    assert "set dtype float64" in message
    enclosure = report.enclosure
    assert enclosure is not None
    assert enclosure.floor is not None
    assert f"no gap below {enclosure.floor:.2g} can be reached" in message
    assert enclosure.lambda_max.lower <= truth <= enclosure.lambda_max.upper
    assert wsb.estimate(*case()).dtype == "float32"
    asked = wsb.analyze(*case(), wsb.Options(dtype="float64"))
    assert asked.engine.dtype == "float64"
    assert not asked.messages("float32_chosen")


def test_small_models_stay_in_float64() -> None:
    report = wsb.analyze(*case())
    assert report.engine.dtype == "float64"
    assert not report.messages("float32_chosen")


def test_the_budget_counts_the_products_that_are_expected() -> None:
    cpu, options = torch.device("cpu"), wsb.Options()
    most = inputs.DOUBLE_SECONDS * inputs.nominal_rate(cpu, torch.float64)
    forward = most / (inputs.EXPECTED_PRODUCTS * inputs.FORWARD_PASSES)
    assert not inputs.too_dear_in_double(options, cpu, forward)
    assert inputs.too_dear_in_double(options, cpu, 1.01 * forward)
    assert not inputs.too_dear_in_double(wsb.Options(max_products=3), cpu, 1.01 * forward)
    assert not inputs.too_dear_in_double(wsb.Options(dtype="float64"), cpu, 100 * forward)
