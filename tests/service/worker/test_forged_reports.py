"""What a child under an attacker's control hands over costs the worker, the totals and the API a bounded amount."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError
from support.service import Files, Service, submit, until

from service.rendering.registry import RENDERINGS
from service.sandbox.job import JobLimits
from service.worker import runner
from wsb_engine.report import Report

FEW, MANY = 1001, 100_001
WARNING = {"code": "x", "message": "y"}
SPECTRUM = {"method": "dense", "residuals": None, "upper_bounds": None, "density": None}


def forged(service: Service, files: Files, fields: dict[str, Any]) -> dict[str, Any]:
    return service.ended(submit(service, files, f"forge:{json.dumps(fields)}"))


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"warnings": [WARNING] * FEW}, id="warnings"),
        pytest.param({"warnings": [{**WARNING, "message": "y" * 70_000}]}, id="message", marks=pytest.mark.slow),
        pytest.param({"blocks": [[0.0]] * FEW}, id="blocks", marks=pytest.mark.slow),
        pytest.param({"timings": {str(number): 0.0 for number in range(65)}}, id="timings", marks=pytest.mark.slow),
        pytest.param({"spectrum": {**SPECTRUM, "eigenvalues": [0] * MANY}}, id="eigenvalues"),
    ],
)
def test_lists_and_texts_of_a_report_are_limited(fields: dict[str, Any]) -> None:
    report = json.loads(largest_report())
    with pytest.raises(ValidationError, match=r"too_long|at most"):
        Report.model_validate({**report, **fields})


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"timings": {"total": -1.0}}, id="negative time"),
        pytest.param({"batch": {"sha256": None, "samples": 2**70, "classes": 2}}, id="count"),
    ],
)
def test_a_report_beyond_the_limits_of_its_schema_is_invalid(
    service: Service, files: Files, fields: dict[str, Any]
) -> None:
    ended = forged(service, files, fields)
    assert (ended["state"], ended["error"]["code"], ended["attempts"]) == ("failed", "invalid_report", 1)


def test_what_is_wrong_with_a_forged_report_takes_no_more_room_than_the_report() -> None:
    result = json.dumps({"warnings": [{}] * 20_000})
    with pytest.raises(ValidationError) as caught:
        runner._checked(SimpleNamespace(result=result, seconds=1.0))  # type: ignore[arg-type]
    missing = [error for error in caught.value.errors() if len(error["loc"]) == 1]
    assert len({id(error["input"]) for error in missing}) == 1  # the report itself, not a copy for each error
    assert len(runner._told(caught.value)) < 10_000


@pytest.mark.slow
def test_timings_add_no_more_to_the_totals_than_the_time_that_passed(service: Service, files: Files) -> None:
    ended = forged(service, files, {"timings": {"total": 1e308, "loss": 1e308}})
    assert ended["state"] == "succeeded"
    rows = service.sql("SELECT metric, seconds FROM totals WHERE metric IN ('phase', 'duration')")
    assert len(rows) == 2
    assert all(0 < seconds < 600 for _, seconds in rows)


def test_progress_has_known_fields_only(service: Service, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[set[str]] = []
    monkeypatch.setattr(runner, "progress_document", lambda latest: kept.append(set(latest)))
    told = {"phase": "loss", "fraction": 0.5, **{f"field{number}": number for number in range(20)}}
    service.ended(submit(service, files, f"tell:1:{json.dumps(told)}"))
    until(lambda: bool(kept))
    assert {"phase", "fraction"} == set().union(*kept)


def largest_report() -> str:
    """About the longest report that a frame holds, with as much as possible of what renderings show."""
    tensor = {"name": "n" * 50, "shape": [10, 10], "count": 100}
    interval = {"lower": -1.0, "upper": 1.0}
    layer = {"name": "l" * 20, "parameters": 1, "trace": 1.0, "frobenius_squared": 1.0, "wolkowicz_styan_upper": 1.0}
    certified = {**interval, "relative_gap": None, "kind": "deterministic", "failure_probability": None}
    bound = {"name": "b", "assumptions": ["a" * 1000], "kind": "deterministic", "failure_probability": None}
    step = {"products": 1, "lambda_max": interval, "lambda_min": interval}
    check = {"name": "c", "passed": False, "value": 1.0, "tolerance": 1.0}
    numbers = [0.1 + 1e-9 * number for number in range(100_000)]
    parameters = {"count": 1, "tensors": [tensor] * 20_000, "tied": ["t"] * 1000}
    engine = {"version": "0", "torch": "0", "device": "cpu", "dtype": "float64", "seed": 0}
    model = {"format": "onnx", "sha256": None, "architecture": "mlp", "parameters": parameters, "activations": []}
    model |= {"smooth": True, "nonsmooth_operators": ["o" * 1000] * 1000, "head": "none", "parity": None}
    density = {"grid": numbers, "values": numbers, "sigma": 1.0, "mean": 0, "mean_error": 0, "second_moment": 0}
    spectrum = {**SPECTRUM, "eigenvalues": numbers, "density": {**density, "second_moment_error": 0}}
    enclosure = {"lambda_max": certified, "lambda_min": certified, "hessian_vector_products": 1, "rounding_slack": 0}
    shares = [{"row": 1, "share": 0.1}] * 1000
    return json.dumps(
        {
            "schema_version": "1.7",
            "engine": engine,
            "model": model,
            "batch": {"sha256": None, "samples": 1, "classes": 2},
            "loss": {"kind": "cross_entropy", "value": 0.5, "gradient_norm": 0.1, "accuracy": 1.0},
            "moments": None,
            "bounds": None,
            "bounds_list": [{**bound, "lambda_max": interval, "lambda_min": interval}] * 1000,
            "enclosure": {**enclosure, "convergence": [step] * 1000},
            "spectrum": spectrum,
            "layers": [layer] * 20_000,
            "blocks": None,
            "orthogonality": {"coherence": 0.5, "cross_sample_share": 0.1, "sample_shares": shares},
            "checks": [check] * 1000,
            "warnings": [{**WARNING, "message": "m" * 1000}] * 1000,
            "timings": {"total": 0.0},
            "citations": [{"key": "k", "reference": "r" * 1000, "url": "u", "supports": ["s"] * 100}] * 100,
        }
    )


@pytest.mark.slow
def test_the_largest_report_is_rendered_in_moments() -> None:
    text = largest_report()
    assert JobLimits.frame_bytes / 2 < len(text) < JobLimits.frame_bytes
    report, started = Report.model_validate_json(text), time.process_time()
    sizes = [len(rendering.render(report, None)) for rendering in RENDERINGS]
    assert max(sizes) < 4 << 20
    assert time.process_time() - started < 10
