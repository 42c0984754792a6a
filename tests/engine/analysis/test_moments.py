"""Moments by random probes through analyze(), what ``auto`` chooses, and what a time limit leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support.forms import full, thinned
from support.golden import NAMES, Golden
from torch import nn

import wsb_engine as wsb
from wsb_engine.curvature.closed_form.layout import Layout, cheapest_layout


def case(name: str = "deep_tanh") -> tuple[wsb.Classifier, wsb.Batch, np.ndarray]:
    golden = Golden(name)
    return wsb.load_model(golden.onnx()), wsb.Batch(golden.x, golden.y), golden.eigenvalues


def convolution() -> tuple[wsb.Classifier, wsb.Batch]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 4, 2), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)).double()
    x = torch.randn(7, 1, 3, 3, dtype=torch.float64)
    return wsb.from_module(module), wsb.Batch(x, torch.arange(7) % 3)


def codes(report: wsb.Report) -> list[str]:
    return [warning.code for warning in report.warnings]


@pytest.mark.parametrize("name", thinned(NAMES, 4))
def test_bounds_from_probes_hold_the_eigenvalues_and_the_norm(name: str) -> None:
    classifier, batch, eigenvalues = case(name)
    report = wsb.analyze(classifier, batch, wsb.Options(moments="probes", spectrum="dense"))
    moments, bounds, enclosure = report.moments, report.bounds, report.enclosure
    assert moments is not None
    assert bounds is not None
    assert enclosure is not None
    slack = 1e-9 * np.abs(eigenvalues).max()
    assert (moments.method, moments.exact) == ("probes", False)
    assert moments.frobenius_squared >= float((eigenvalues**2).sum()) * (1 - 1e-9)
    assert moments.trace_standard_error is not None
    assert abs(moments.trace - eigenvalues.sum()) <= 5 * moments.trace_standard_error + slack
    limits = bounds.wolkowicz_styan
    assert limits.lambda_max.lower - slack <= eigenvalues[0] <= limits.lambda_max.upper + slack
    assert limits.lambda_min.lower - slack <= eigenvalues[-1] <= limits.lambda_min.upper + slack
    assert enclosure.lambda_max.lower - slack <= eigenvalues[0] <= enclosure.lambda_max.upper + slack
    assert all(check.passed for check in report.checks), report.checks
    assert "spectrum_frobenius_bound" in [check.name for check in report.checks]
    assert report.layers is report.blocks is report.orthogonality is None


def test_the_failures_of_probes_and_start_add_up_to_the_option() -> None:
    classifier, batch, _ = case()
    report = wsb.analyze(classifier, batch, wsb.Options(moments="probes", failure_probability=1e-6))
    assert report.moments is not None
    assert report.moments.failure_probability == 5e-7
    assert report.enclosure is not None
    assert report.enclosure.lambda_max.kind == "probabilistic"
    assert report.enclosure.lambda_max.failure_probability == 1e-6


def test_probes_stay_within_the_products_that_are_allowed_for_the_enclosure() -> None:
    classifier, batch, _ = case()
    report = wsb.analyze(classifier, batch, wsb.Options(moments="probes", max_products=3))
    assert report.enclosure is not None
    assert report.enclosure.hessian_vector_products == 3


def test_probes_need_no_enclosure_and_one_parameter_is_enough() -> None:
    module = nn.Linear(1, 1, bias=False).double()
    data = wsb.Batch(np.array([[1.0], [2.0]]), np.array([0, 1]))
    exact, probed = (
        wsb.analyze(wsb.from_module(module), data, wsb.Options(moments=m, enclosure=False)) for m in ("basis", "probes")
    )
    assert exact.moments is not None
    assert probed.moments is not None
    assert probed.bounds is not None
    assert probed.enclosure is None
    limits = probed.bounds.wolkowicz_styan.lambda_max
    assert limits.lower <= exact.moments.trace <= limits.upper
    assert 1.2 < probed.moments.frobenius_squared / exact.moments.frobenius_squared < 6


def test_the_seed_draws_the_probes() -> None:
    classifier, batch, _ = case()
    first, again, other = (
        wsb.analyze(classifier, batch, wsb.Options(moments="probes", enclosure=False, seed=seed)).moments
        for seed in (1, 1, 2)
    )
    assert first == again != other


def test_auto_takes_the_closed_form_of_an_mlp_without_a_warning() -> None:
    classifier, batch, _ = case()
    report = wsb.analyze(classifier, batch)
    assert report.moments is not None
    assert report.moments.method == "closed_form"
    assert not codes(report)


def test_auto_takes_probes_of_an_mlp_whose_closed_form_costs_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    def dear(*arguments: Any, **named: Any) -> Layout:
        return replace(cheapest_layout(*arguments, **named), cost=3e14)

    monkeypatch.setattr("wsb_engine.analysis.moments.cheapest_layout", dear)
    classifier, batch, _ = case()
    report = wsb.analyze(classifier, batch, needs=["moments.frobenius_squared"])
    assert report.model.architecture == "mlp"
    assert report.moments is not None
    assert report.moments.method == "probes"
    assert report.layers is report.orthogonality is None
    (notice,) = [warning for warning in report.warnings if warning.code == "moments_probes"]
    assert "the closed form would take 3.0e+14 operations" in notice.message


@pytest.mark.slow
@pytest.mark.parametrize("asked", [full({"needs": ["bounds.wolkowicz_styan.lambda_max.upper"]}), {"enclosure": False}])
def test_moments_that_are_needed_go_from_the_basis_to_probes_to_nothing_as_they_cost_more(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = convolution()

    def analyzed() -> wsb.Report:
        return wsb.analyze(model, data, wsb.Options(enclosure="needs" in asked), needs=asked.get("needs", ()))

    exact = analyzed()
    assert exact.moments is not None
    assert exact.moments.method == "basis"
    assert codes(exact) == []
    monkeypatch.setattr("wsb_engine.analysis.moments.BASIS_PARAMETERS", 10)
    probed = analyzed()
    assert probed.moments is not None
    assert probed.moments.method == "probes"
    assert codes(probed) == ["moments_probes"]
    monkeypatch.setattr("wsb_engine.analysis.moments.BUDGET_SECONDS", 1e-9)
    without = analyzed()
    assert without.moments is None
    assert codes(without) == ["moments_unavailable"]


def test_a_dense_spectrum_gives_moments_at_no_further_products() -> None:
    report = wsb.analyze(*convolution(), wsb.Options(spectrum="dense"))
    assert report.moments is not None
    assert report.moments.method == "basis"
    assert report.enclosure is not None
    assert report.enclosure.lambda_max.kind == "deterministic"


@pytest.mark.slow
def test_auto_leaves_out_moments_that_cost_more_than_half_of_the_enclosure_and_says_how_to_get_them() -> None:
    model, data = convolution()
    report, alone = wsb.analyze(model, data), wsb.analyze(model, data, wsb.Options(moments="none"))
    assert report.moments is report.bounds is None
    assert report.enclosure == alone.enclosure
    (notice,) = [warning.message for warning in report.warnings if warning.code == "moments_left_out"]
    assert "71 more (moments basis)" in notice
    for method in ("basis", "probes"):
        asked = wsb.analyze(model, data, wsb.Options(moments=method, enclosure=False))
        assert asked.moments is not None
        assert asked.moments.method == method
        assert codes(asked) == []


def test_auto_takes_a_basis_that_is_small_beside_the_enclosure() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv1d(1, 2, 2, bias=False), nn.Tanh(), nn.Flatten()).double()
    data = wsb.Batch(torch.randn(7, 1, 2, dtype=torch.float64), torch.arange(7) % 2)
    report = wsb.analyze(wsb.from_module(module), data)
    assert report.moments is not None
    assert (report.moments.method, report.moments.exact) == ("basis", True)
    assert codes(report) == []


def test_a_closed_form_after_the_enclosure_finishes_it_at_no_further_products(monkeypatch: pytest.MonkeyPatch) -> None:
    classifier, batch, eigenvalues = case()
    first, none = wsb.analyze(classifier, batch), wsb.analyze(classifier, batch, wsb.Options(moments="none"))
    monkeypatch.setattr("wsb_engine.analysis.moments.FIRST_SECONDS", 0.0)
    last = wsb.analyze(classifier, batch)
    assert last.moments == first.moments
    assert first.enclosure is not None
    assert none.enclosure is not None
    assert last.enclosure is not None
    assert last.enclosure.hessian_vector_products == none.enclosure.hessian_vector_products
    assert (none.enclosure.lambda_max.kind, last.enclosure.lambda_max.kind) == ("probabilistic", "deterministic")
    assert last.enclosure.lambda_max.lower <= eigenvalues[0] <= last.enclosure.lambda_max.upper
    assert last.enclosure.lambda_max.upper <= none.enclosure.lambda_max.upper
    assert last.enclosure.convergence is not None
    assert none.enclosure.convergence is not None
    assert last.enclosure.convergence[:-1] == none.enclosure.convergence[:-1]
    assert list(last.timings).index("enclosure") < list(last.timings).index("moments")


@pytest.mark.slow
def test_a_gap_below_what_rounding_allows_without_moments_is_reached_with_them() -> None:
    model, data = convolution()
    wanted = {"relative_gap": 1e-12, "max_products": 40}
    open_, closed = (wsb.analyze(model, data, wsb.Options(moments=m, **wanted)) for m in ("none", "auto"))
    for report in (open_, closed):
        assert report.enclosure is not None
        assert report.enclosure.lambda_max.relative_gap is not None
    assert closed.moments is not None
    assert closed.enclosure.lambda_max.kind == "deterministic"
    assert closed.enclosure.lambda_max.relative_gap < open_.enclosure.lambda_max.relative_gap / 100
    dense = wsb.analyze(model, data, wsb.Options(moments="none", spectrum="dense", enclosure=False))
    assert dense.largest_eigenvalue is not None
    truth, slack = dense.largest_eigenvalue, 1e-13
    assert closed.enclosure.lambda_max.lower - slack <= truth <= closed.enclosure.lambda_max.upper + slack


def test_a_closed_form_that_does_not_fit_leaves_the_choice_to_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    classifier, batch, _ = case()

    def refuse(*_: object, **__: object) -> None:
        raise wsb.ResourceError("one pair needs more", code="memory_limit", advice="Raise it.")

    monkeypatch.setattr("wsb_engine.analysis.moments.cheapest_layout", refuse)
    assert codes(wsb.analyze(classifier, batch, needs=["moments"])) == ["moments_probes"]
    assert codes(wsb.analyze(classifier, batch)) == ["moments_left_out"]
    with pytest.raises(wsb.ResourceError) as caught:
        wsb.analyze(classifier, batch, wsb.Options(moments="closed_form"))
    assert caught.value.code == "memory_limit"


def at_the_first(phase: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[wsb.Progress], None]:
    """Lets time run out as soon as this phase has begun."""

    def late(event: wsb.Progress) -> None:
        if event.phase == phase:
            monkeypatch.setattr("wsb_engine.analysis.monitor.Monitor.expired", True)

    return late


@pytest.mark.parametrize(
    ("options", "general"),
    [
        ({"moments": "closed_form"}, False),
        full({"moments": "basis"}, False),
        ({"moments": "probes"}, False),
        ({"moments": "basis"}, True),
        full({"moments": "probes"}, True),
    ],
)
def test_time_that_runs_out_during_moments_leaves_a_report_with_the_enclosure(
    options: dict[str, object], general: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsb_engine.analysis.moments.FIRST_SECONDS", 0.0)
    model, data = convolution() if general else case()[:2]
    late = at_the_first("moments", monkeypatch)
    report = wsb.analyze(model, data, wsb.Options(time_limit=3600, **options), progress=late)
    assert report.moments is None
    assert report.bounds is None
    assert report.spectrum is None
    assert report.enclosure is not None
    assert report.enclosure.lambda_max.relative_gap is not None
    assert report.enclosure.lambda_max.relative_gap <= 1e-6
    messages = [warning.message for warning in report.warnings if warning.code == "time_limit"]
    assert any(message.endswith("the report is partial, without moments") for message in messages)


def test_time_that_runs_out_with_nothing_else_to_say_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = convolution()
    options = wsb.Options(time_limit=3600, enclosure=False)
    with pytest.raises(wsb.ResourceError) as caught:
        wsb.analyze(model, data, options, progress=at_the_first("moments", monkeypatch))
    assert caught.value.code == "time_limit"


@pytest.mark.parametrize("phase", ["setup", "loss", "rounding"])
@pytest.mark.parametrize("general", [False, True])
def test_time_that_runs_out_before_the_enclosure_ends_the_analysis_in_that_phase(
    phase: str, general: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = convolution() if general else case()[:2]
    with pytest.raises(wsb.ResourceError) as caught:
        wsb.analyze(model, data, wsb.Options(time_limit=3600), progress=at_the_first(phase, monkeypatch))
    assert (caught.value.code, caught.value.details["phase"]) == ("time_limit", phase)


@pytest.mark.parametrize("general", [False, True])
def test_time_that_runs_out_in_the_enclosure_leaves_what_is_certified_unconfirmed(
    general: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = convolution() if general else case()[:2]
    truth = wsb.analyze(model, data, wsb.Options(moments="none", enclosure=False, spectrum="dense")).largest_eigenvalue

    def late(event: wsb.Progress) -> None:
        if event.phase == "enclosure" and event.hessian_vector_products == 20:
            monkeypatch.setattr("wsb_engine.analysis.monitor.Monitor.expired", True)

    options = wsb.Options(moments="none", time_limit=3600, relative_gap=1e-15)
    report = wsb.analyze(model, data, options, progress=late)
    assert report.enclosure is not None
    assert report.enclosure.stopped_by == "time"
    assert "ritz_pairs" not in [check.name for check in report.checks]
    assert truth is not None
    assert report.enclosure.lambda_max.lower <= truth <= report.enclosure.lambda_max.upper
    messages = [warning.message for warning in report.warnings if warning.code == "time_limit"]
    assert any("without fresh products that confirm the enclosure" in message for message in messages)
