"""/v1/series over a real socket."""

from __future__ import annotations

import csv
import io
import json
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

import httpx
import pytest
from support.client import connect
from support.policies import report
from support.service import Service, StartService, npz_batch, onnx_mlp

from service.keys import hash_key, new_key
from wsb_engine.report import Check, Density, Moments, Report, SpectrumResult

KEYS = {"ours": new_key(), "theirs": new_key()}
FILES = {"model": onnx_mlp(), "batch": npz_batch()}


def stored(service: Service, labels: dict[str, str], found: Report | None = None, **more: Any) -> str:
    """Identifier of an analysis with a report."""
    request = {"labels": labels, "fresh": True, **more}
    form = {**FILES, "request": json.dumps(request).encode()}
    analysis: str = service.client.post("/v1/analyses", files=form).json()["id"]
    service.ended(analysis)
    body = (found or report()).model_dump_json()
    service.sql("UPDATE reports SET body = %s WHERE analysis = %s", body, analysis)
    return analysis


def spectrum(*values: float, density: Density | None = None) -> SpectrumResult:
    return SpectrumResult(method="dense", eigenvalues=list(values), residuals=None, upper_bounds=None, density=density)


def get(service: Service, path: str, **parameters: Any) -> httpx.Response:
    return service.client.get(f"/v1/series{path}", params=parameters)


def test_a_series_is_in_the_order_of_its_epochs_with_what_each_report_says(service: Service) -> None:
    last = stored(service, {"run": "digits", "epoch": "10"}, report(spectrum=spectrum(41.0, 2.0, -1.0)))
    stored(service, {"run": "digits", "epoch": "2"}, report(None, moments=None), options={"learning_rate": 0.5})
    stored(service, {"run": "other", "epoch": "3"})
    found = get(service, "/run:digits", top=2)
    assert found.status_code == 200
    document = found.json()
    assert (document["label"], document["complete"], document["unreadable"]) == ("run:digits", True, 0)
    first, second = document["checkpoints"]
    assert [(each["kind"], each["position"], each["number"]) for each in (first, second)] == [
        ("epoch", "2", 2.0),
        ("epoch", "10", 10.0),
    ]
    assert first["lambda_max"] == {
        "value": None,
        "lower": 5.0,
        "upper": 45.0,
        "by": "wolkowicz_styan",
        "failure_probability": None,
    }
    assert (first["trace"], first["stability_limit"], first["eigenvalues"]) == (None, 4.0, [])
    assert (second["lambda_max"]["value"], second["lambda_max"]["by"]) == (40.5, "enclosure")
    assert (second["trace"]["value"], second["loss"]["value"], second["accuracy"]["value"]) == (60.0, 0.5, 0.75)
    assert (second["eigenvalues"], second["analysis"], second["reliable"]) == ([41.0, 2.0], last, True)


def test_a_label_of_any_value_is_a_series_too_and_one_without_reports_is_not(service: Service) -> None:
    stored(service, {"run": "a/b", "epoch": "1"})
    stored(service, {"run": "c", "epoch": "2"})
    assert len(get(service, "/run").json()["checkpoints"]) == 2
    for path in (f"/{quote('run:a/b', safe='')}", "/run:a/b"):
        assert len(get(service, path).json()["checkpoints"]) == 1
    for form in ("", ".csv", ".svg"):
        missing = get(service, f"/run:none{form}")
        assert (missing.status_code, missing.json()["code"]) == (404, "series_not_found")
        assert "GET /v1/series" in missing.json()["advice"]
        assert get(service, f"/a%20b{form}").json()["code"] == "invalid_request"


@pytest.mark.slow
def test_runs_are_listed_with_their_checkpoints_the_newest_first(start_service: StartService) -> None:
    service = start_service(max_series_listed=2)
    for run, epoch in (("first", 1), ("second", 1), ("first", 2), ("third", 1)):
        stored(service, {"run": run, "epoch": str(epoch)})
    stored(service, {"branch": "main"})
    found = get(service, "").json()
    assert found == {
        "items": [{"label": "run:third", "checkpoints": 1}, {"label": "run:first", "checkpoints": 2}],
        "complete": False,
    }


def test_a_table_holds_several_series(service: Service) -> None:
    for run in ("a", "b"):
        stored(service, {"run": run, "epoch": "1"}, report(spectrum=spectrum(3.0, 2.0)))
    response = get(service, "/run:a.csv", also="run:b", quantity=["loss", "eigenvalues"], top=1)
    assert response.headers["content-type"] == "text/csv; charset=utf-8; header=present"
    rows = list(csv.DictReader(io.StringIO(response.text, newline="")))
    assert [(row["run"], row["step"], row["quantity"], row["value"]) for row in rows] == [
        ("a", "1", "loss", "0.5"),
        ("a", "1", "eigenvalue_1", "3.0"),
        ("b", "1", "loss", "0.5"),
        ("b", "1", "eigenvalue_1", "3.0"),
    ]


def test_a_plot_is_a_picture_that_can_load_and_run_nothing(service: Service) -> None:
    density = Density(
        grid=[0.0, 1.0], values=[1.0, 0.5], sigma=0.1, mean=0.5, mean_error=0.0, second_moment=1.0,
        second_moment_error=0.0,
    )  # fmt: skip
    for run in ("a", "b"):
        stored(service, {"run": run, "epoch": "1"}, report(spectrum=spectrum(3.0, 2.0, density=density)))
    asked = {"quantity": "eigenvalues", "also": "run:b", "log": ["x", "y"], "x": "order", "top": 2}
    for parameters in ({}, asked, {"quantity": "spectrum"}, {"quantity": "density", "log": "y"}):
        response = get(service, "/run:a.svg", **parameters)
        assert (response.status_code, response.headers["content-type"]) == (200, "image/svg+xml")
        assert response.headers["content-security-policy"] == "default-src 'none'; style-src 'unsafe-inline'"
        assert ElementTree.fromstring(response.text).tag.endswith("svg")  # noqa: S314 - ours
    twice = get(service, "/run:a.svg", quantity="spectrum", also="run:b")
    assert (twice.status_code, twice.json()["errors"][0]["pointer"]) == (422, "/query/also")


def test_what_no_report_has_is_said_in_the_picture(service: Service) -> None:
    stored(service, {"run": "a", "epoch": "1"})
    assert "No checkpoint has this number." in get(service, "/run:a.svg", quantity="density").text
    left_out = get(service, "/run:a.svg", quantity="lambda_min", log="y").text
    assert "1 number." in left_out


@pytest.mark.slow
def test_series_are_cut_to_the_newest_points(start_service: StartService) -> None:
    service = start_service(max_series_points=2)
    for epoch in (1, 2, 3):
        stored(service, {"run": "a", "epoch": str(epoch)})
    found = get(service, "/run:a").json()
    assert ([each["position"] for each in found["checkpoints"]], found["complete"]) == (["2", "3"], False)


@pytest.mark.slow
def test_series_are_cut_to_the_newest_reports_that_fit(start_service: StartService) -> None:
    size = len(report().model_dump_json())
    service = start_service(max_series_report_bytes=2 * size + 10)
    for epoch in (1, 2, 3):
        stored(service, {"run": "a", "epoch": str(epoch)})
    found = get(service, "/run:a").json()
    assert ([each["position"] for each in found["checkpoints"]], found["complete"]) == (["2", "3"], False)
    # Two series share it, and each has its newest report at least.
    stored(service, {"run": "b", "epoch": "1"})
    table = get(service, "/run:a.csv", also="run:b", quantity="loss").text
    assert [line.split(",")[:2] for line in table.splitlines()[1:]] == [["a", "3"], ["b", "1"]]


def test_more_series_than_the_limit_are_refused(start_service: StartService) -> None:
    service = start_service(max_series_runs=2, worker=False)
    refused = get(service, "/run:a.csv", also=["run:b", "run:c"])
    assert (refused.status_code, refused.json()["errors"]) == (
        422,
        [{"pointer": "/query/also", "detail": "At most 2 series go together, not 3."}],
    )
    assert get(service, "/run:a.csv", also=["run:a", "run:b"]).status_code == 404  # each counts once


@pytest.mark.parametrize(
    "parameters", [{"quantity": "sharpness"}, {"log": "z"}, {"x": "time"}, {"top": 21}, {"also": "a b"}], ids=str
)
def test_what_makes_no_sense_is_named(api: Service, parameters: dict[str, Any]) -> None:
    refused = get(api, "/run:a.svg", **parameters)
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request")
    assert next(iter(parameters)) in refused.json()["errors"][0]["pointer"]


def test_reports_that_cannot_be_read_are_counted_and_failed_checks_shown(service: Service) -> None:
    old = stored(service, {"run": "a", "epoch": "1"})
    failed = [Check(name="parity", passed=False, value=0.5, tolerance=1e-3)]
    stored(service, {"run": "a", "epoch": "2"}, report(checks=failed))
    service.sql("UPDATE reports SET body = '{}' WHERE analysis = %s", old)
    found = get(service, "/run:a").json()
    assert (len(found["checkpoints"]), found["unreadable"]) == (1, 1)
    assert found["checkpoints"][0]["reliable"] is False


def test_an_estimated_trace_is_a_number_without_ends(service: Service) -> None:
    probes = Moments(
        method="probes", exact=False, trace=5.0, frobenius_squared=9.0, failure_probability=1e-6,
        trace_standard_error=0.1,
    )  # fmt: skip
    stored(service, {"run": "a", "epoch": "1"}, report(moments=probes))
    [checkpoint] = get(service, "/run:a").json()["checkpoints"]
    assert checkpoint["trace"] == {
        "value": 5.0, "lower": None, "upper": None, "by": "probes", "failure_probability": None
    }  # fmt: skip


@pytest.mark.slow
def test_series_of_other_tenants_are_not_there(start_service: StartService) -> None:
    entries = ",".join(f"{name}:{hash_key(key)}" for name, key in KEYS.items())
    service = start_service(api_keys=entries)
    service.client.headers["Authorization"] = f"Bearer {KEYS['ours']}"
    stored(service, {"run": "a", "epoch": "1"})
    assert get(service, "/run:a").status_code == 200
    with connect(service.url, headers={"Authorization": f"Bearer {KEYS['theirs']}"}, timeout=60) as theirs:
        assert theirs.get("/v1/series").json()["items"] == []
        for path in ("/v1/series/run:a", "/v1/series/run:a.csv", "/v1/series/run:a.svg"):
            assert theirs.get(path).json()["code"] == "series_not_found"
    with connect(service.url, timeout=60) as nobody:
        for path in ("", "/run:a", "/run:a.csv", "/run:a.svg", "/run:a.svg?x=/badge.svg"):
            assert nobody.get(f"/v1/series{path}").status_code == 401
