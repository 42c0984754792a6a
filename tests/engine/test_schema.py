"""Reports of earlier versions stay readable, and what the present version adds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.golden import Golden

import wsb_engine as wsb

STORED = Path(__file__).parent / "reports"
"""Reports as version 1.0 of the schema wrote them; densities thinned."""
ADDED_IN_1_5 = ("basis", "alpha", "beta", "gamma", "epsilon", "modelled")
SETTINGS_OF_LOSSES = ("ignored", "ignore_index", "label_smoothing", "class_weights", "pos_weight", "focal_gamma")
ADDED_IN_1_7 = ("evidence", "population", "scaled", "optimizer", "groups", "classes", "gauss_newton", "alignment")
"""And λ_max of layers."""


@pytest.mark.parametrize("path", sorted(STORED.glob("*.json")), ids=lambda path: path.stem)
def test_a_stored_report_of_schema_1_0_is_read_and_written_back(path: Path) -> None:
    stored = json.loads(path.read_text())
    assert stored["schema_version"] == "1.0"
    report = wsb.Report.model_validate(stored)
    assert report.schema_version == "1.0"
    assert report.enclosure is not None
    assert report.enclosure.convergence is None
    written = report.model_dump(mode="json")
    for added in ("bounds_list", "products", "citations", *ADDED_IN_1_7):
        assert written.pop(added) is None
    for added in ("stored_dtypes", "left_out"):
        assert written["model"]["parameters"].pop(added) is None
    for added in ("trace_standard_error", "probes"):
        assert written["moments"].pop(added) is None
    assert written["batch"].pop("positions") is None
    for added in SETTINGS_OF_LOSSES:
        assert written["loss"].pop(added) is None
    for layer in written["layers"] or []:
        assert layer.pop("lambda_max") is None
    for added in (*("convergence", "floor", "rounding", "stopped_by", "derivation"), *ADDED_IN_1_5):
        assert written["enclosure"].pop(added) is None
    assert written == stored


def test_there_are_stored_reports() -> None:
    assert len(list(STORED.glob("*.json"))) == 2


@pytest.mark.parametrize("path", sorted(STORED.glob("*.json")), ids=lambda path: path.stem)
def test_the_bound_of_a_stored_report_of_schema_1_0_is_found_by_name(path: Path) -> None:
    report = wsb.Report.model_validate_json(path.read_text())
    (bound,) = report.named_bounds
    assert report.bounds is not None
    assert (bound.name, bound.kind, bound.failure_probability) == ("wolkowicz_styan", "deterministic", None)
    assert (bound.lambda_max, bound.lambda_min) == tuple(dict(report.bounds.wolkowicz_styan).values())


@pytest.mark.parametrize("chance", [None, 1e-6])
def test_the_bound_of_an_earlier_report_in_float32_is_not_called_certain(chance: float | None) -> None:
    report = analysed(dtype="float32", enclosure=chance is not None)
    (listed,) = report.named_bounds
    (found,) = report.model_copy(update={"bounds_list": None}).named_bounds
    assert (listed.kind, found.kind, found.failure_probability) == ("probabilistic", "probabilistic", chance)


def analysed(**options: object) -> wsb.Report:
    case = Golden("deep_tanh")
    return wsb.analyze(wsb.load_model(case.onnx()), wsb.Batch(case.x, case.y), wsb.Options(**options))


@pytest.mark.parametrize("moments", ["closed_form", "none"])
def test_both_ends_are_listed_by_product_and_hold_the_eigenvalues(moments: str) -> None:
    report = analysed(moments=moments, max_products=12)
    eigenvalues = Golden("deep_tanh").eigenvalues
    assert report.schema_version == "1.7"
    assert report.enclosure is not None
    rows = report.enclosure.convergence
    assert rows is not None
    assert [row.products for row in rows] == list(range(1, 13))
    for row in rows:
        assert row.lambda_max.lower <= eigenvalues[0] <= row.lambda_max.upper
        assert row.lambda_min.lower <= eigenvalues[-1] <= row.lambda_min.upper
    last = report.enclosure.lambda_max
    assert (rows[-1].lambda_max.lower, rows[-1].lambda_max.upper) == (last.lower, last.upper)


def test_long_runs_are_thinned_and_keep_their_last_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsb_engine.analysis.enclosure_part.CONVERGENCE_ROWS", 5)
    report = analysed(moments="none", max_products=12)
    assert report.enclosure is not None
    assert report.enclosure.convergence is not None
    assert [row.products for row in report.enclosure.convergence] == [3, 6, 9, 12]


def test_the_bound_of_a_report_before_schema_1_3_with_probes_is_that_of_the_norm() -> None:
    report = analysed(moments="probes", enclosure=False)
    (found,) = report.model_copy(update={"bounds_list": None}).named_bounds
    assert report.bounds_list is not None
    assert found == report.bounds_list[0].model_copy(update={"assumptions": []})
