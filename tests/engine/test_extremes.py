"""Numbers at the ends of the range: a report that can be written, or an error with a code, whatever is asked for."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from flint import arb
from support.forms import crossed
from support.networks import case
from torch import nn

import wsb_engine as wsb

ASKED: dict[str, dict[str, object]] = {
    "default": {},
    "probes": {"moments": "probes"},
    "dense": {"moments": "probes", "spectrum": "dense"},
    "density": {"density": True},
    "top": {"spectrum": "top"},
}


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize(("sizes", "asked"), crossed(product([1e-300, 1e-80, 1e40], [1e-160, 1e80, 1e200]), ASKED))
def test_a_report_or_an_error_with_a_code(sizes: tuple[float, float], asked: str) -> None:
    weights, inputs = sizes
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(weights)
    batch = wsb.Batch(inputs * np.random.default_rng(0).normal(size=(5, 3)), np.arange(5) % 3)
    try:
        report = wsb.analyze(wsb.from_module(module), batch, wsb.Options.model_validate(ASKED[asked]))
    except wsb.EngineError:  # which has a code and advice
        return
    assert wsb.Report.model_validate_json(report.model_dump_json()) == report
    for check in report.checks:
        assert not check.passed or (check.value is not None and math.isfinite(check.value))


def test_float32_falls_back_to_float64_where_squares_leave_its_range() -> None:
    """x² = 1e24 times a curvature of 1e-22: products fit in float32, the squares in ‖H‖_F² do not."""
    each = case(4257, 40)
    report = wsb.analyze(each.classifier(), each.batch, each.options)
    top, bottom = each.exact()
    assert report.enclosure is not None
    for end, truth in ((report.enclosure.lambda_max, top), (report.enclosure.lambda_min, bottom)):
        low, high = sorted(abs(value) for value in (end.lower, end.upper))
        assert arb(low) <= truth.above
        assert truth.below <= arb(high)
    assert not [check.name for check in report.checks if not check.passed]
    assert "float32_drift" not in [warning.code for warning in report.warnings]
