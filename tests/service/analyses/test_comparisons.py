"""Comparisons: a policy, and reports that are there already."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import pytest
from support.policies import report
from support.service import Service, StartService

from service.keys import hash_key, new_key
from service.settings import Settings

NOT_RISEN = {"rule": [{"metric": "enclosure.lambda_max", "max_relative_increase": 0.0}]}
BELOW = {"rule": [{"metric": "loss.value", "op": "<=", "limit": 0.5}]}


def inline(*lambda_max: float) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(report((lambda_max[0], lambda_max[1])).model_dump_json())
    return document


def compare(service: Service, **body: Any) -> Any:
    return service.client.post("/v1/comparisons", json=body)


def test_two_reports_are_compared(api: Service) -> None:
    worse = compare(api, candidate=inline(50, 51), baseline=inline(40, 41), policy=NOT_RISEN)
    assert (worse.status_code, worse.json()["verdict"]["outcome"]) == (200, "fail")
    better = compare(api, candidate=inline(30, 31), baseline=inline(40, 41), policy=NOT_RISEN)
    assert better.json()["verdict"]["outcome"] == "pass"
    either = compare(api, candidate=inline(40, 41), baseline=inline(40, 41), policy=NOT_RISEN)
    assert either.json()["verdict"]["code"] == "undecided"


def test_one_report_is_judged_alone(api: Service) -> None:
    assert compare(api, candidate=inline(40, 41), policy=BELOW).json()["verdict"]["outcome"] == "pass"


def test_without_a_baseline_an_increase_is_an_error_of_the_verdict(api: Service) -> None:
    verdict = compare(api, candidate=inline(40, 41), policy=NOT_RISEN).json()["verdict"]
    assert (verdict["outcome"], verdict["code"]) == ("error", "baseline_missing")


def test_analyses_are_compared_by_their_identifiers_with_the_learning_rate_of_the_candidate(
    service: Service, model_bytes: bytes, batch_bytes: bytes
) -> None:
    files = {"model": model_bytes, "batch": batch_bytes, "request": b'{"options": {"learning_rate": 0.5}}'}
    response = service.client.post("/v1/analyses", files=files, headers={"Prefer": "wait=60"})
    analysis = response.headers["location"].rsplit("/", 1)[1]
    # This server's reports have no enclosure, which is found out after the learning rate was.
    rules = [*BELOW["rule"], {"metric": "stability_ratio", "op": "<", "limit": 1, "on_missing": "pass"}]
    verdict = compare(service, candidate=analysis, baseline=analysis, policy={"rule": rules}).json()["verdict"]
    assert (verdict["outcome"], verdict["baseline"]["compatible"]) == ("pass", True)
    assert verdict["rules"][1]["message"] == "The report has no stability_ratio."


def test_the_learning_rate_is_that_of_the_request(api: Service) -> None:
    policy = {"rule": [{"metric": "stability_ratio", "op": "<", "limit": 1}], "learning_rate": 1e-9}
    verdict = compare(api, candidate=inline(40, 41), policy=policy, learning_rate=0.1).json()["verdict"]
    assert verdict["outcome"] == "fail"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "malformed_request"),
        (b"[" * 100_000, 400, "malformed_request"),
        (b"{}", 422, "invalid_request"),
        (b'{"candidate": 1, "policy": {"rule": []}}', 422, "invalid_request"),
        (b'{"candidate": "latest", "policy": {"rule": []}}', 422, "invalid_request"),
        (b" " * (Settings.model_fields["max_request_bytes"].default + 1), 413, "body_too_large"),
    ],
)
def test_a_bad_body_is_a_problem(api: Service, body: bytes, status: int, code: str) -> None:
    response = api.client.post("/v1/comparisons", content=body)
    assert (response.status_code, response.json()["code"]) == (status, code)


def test_an_unknown_analysis_is_404(api: Service) -> None:
    response = compare(api, candidate=str(uuid4()), policy=BELOW)
    assert (response.status_code, response.json()["code"]) == (404, "analysis_not_found")


@pytest.mark.parametrize(("cancelled", "code"), [(False, "report_not_ready"), (True, "no_report")])
def test_an_analysis_without_a_report_is_409(
    api: Service, model_bytes: bytes, batch_bytes: bytes, cancelled: bool, code: str
) -> None:
    analysis = api.client.post("/v1/analyses", files={"model": model_bytes, "batch": batch_bytes}).json()["id"]
    if cancelled:
        api.client.post(f"/v1/analyses/{analysis}/cancel")
    response = compare(api, candidate=analysis, policy=BELOW)
    assert (response.status_code, response.json()["code"]) == (409, code)


@pytest.mark.parametrize("place", ["candidate", "baseline"])
def test_the_analysis_of_another_tenant_is_404(
    start_service: StartService, model_bytes: bytes, batch_bytes: bytes, place: str
) -> None:
    ours, theirs = new_key(), new_key()
    service = start_service(worker=False, api_keys=f"ours:{hash_key(ours)},theirs:{hash_key(theirs)}")
    bearer = {key: {"Authorization": f"Bearer {key}"} for key in (ours, theirs)}
    files = {"model": model_bytes, "batch": batch_bytes}
    analysis = service.client.post("/v1/analyses", files=files, headers=bearer[theirs]).json()["id"]
    body = {"candidate": inline(40, 41), "policy": BELOW, place: analysis}
    assert service.client.post("/v1/comparisons", json=body, headers=bearer[ours]).status_code == 404
    assert service.client.post("/v1/comparisons", json=body, headers=bearer[theirs]).status_code == 409
    assert service.client.post("/v1/comparisons", json=body).status_code == 401
