"""Analyses with a policy: the verdict is made with the report, and does not change how the analysis ends."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import pytest
from support import policies
from support.service import Files, Service

import wsb_engine


# The worker of these tests answers every analysis with a loss of 0.5 and without any bounds.
def rule(**fields: Any) -> dict[str, Any]:
    return {"metric": "loss.value", **fields}


def policy(*rules: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"rule": list(rules), **more}


PASSING, FAILING = policy(rule(op="<=", limit=0.5)), policy(rule(op="<", limit=0.5))
NOT_RISEN = policy(rule(max_increase=0.0))


def post(service: Service, files: Files, *, wait: int = 60, **request: Any) -> Any:
    parts = {**files, "request": json.dumps(request).encode()}
    return service.client.post("/v1/analyses", files=parts, headers={"Prefer": f"wait={wait}"})


def analysed(service: Service, files: Files, **request: Any) -> dict[str, Any]:
    response = post(service, files, **request)
    assert response.status_code == 201, response.text
    result: dict[str, Any] = service.client.get(response.headers["location"]).json()
    return result


@pytest.mark.parametrize(("asked", "outcome"), [(PASSING, "pass"), (FAILING, "fail")])
def test_a_policy_gives_a_verdict_and_a_failed_one_is_no_failed_analysis(
    service: Service, files: Files, asked: dict[str, Any], outcome: str
) -> None:
    analysis = analysed(service, files, policy=asked)
    assert (analysis["state"], analysis["error"]) == ("succeeded", None)
    assert analysis["verdict"]["outcome"] == outcome
    assert analysis["verdict"]["rules"][0]["value"] == 0.5
    assert service.client.get(analysis["links"]["report"]).json()["loss"]["value"] == 0.5


def test_without_a_policy_there_is_no_verdict(service: Service, files: Files) -> None:
    assert analysed(service, files)["verdict"] is None


def test_a_report_that_was_there_already_is_judged_by_the_policy_of_each_request(
    service: Service, files: Files
) -> None:
    first = analysed(service, files, policy=PASSING)
    # The worker of these tests gives reports of no version, which are none to give again.
    version = f'"version":"{wsb_engine.__version__}"'
    service.sql("UPDATE reports SET body = replace(body, %s, %s)", '"version":"0"', version)
    second = analysed(service, files, policy=FAILING)
    assert (second["reused_from"], second["verdict"]["outcome"]) == (first["id"], "fail")


def test_an_analysis_is_a_baseline_by_its_identifier(service: Service, files: Files) -> None:
    base = analysed(service, files)
    analysis = analysed(service, files, policy=NOT_RISEN, baseline=base["id"], fresh=True)
    assert (analysis["verdict"]["outcome"], analysis["verdict"]["rules"][0]["baseline"]) == ("pass", 0.5)


def test_a_report_is_a_baseline_as_it_is(service: Service, files: Files) -> None:
    report = post(service, files).json()
    report["loss"]["value"] = 0.25
    analysis = analysed(service, files, policy=NOT_RISEN, baseline=report)
    assert analysis["verdict"]["rules"][0]["message"].endswith("it has risen by more than 0.")


def test_the_verdict_outlives_the_analysis_of_the_baseline(service: Service, files: Files) -> None:
    base = analysed(service, files)
    waiting = post(service, files, wait=0, policy=NOT_RISEN, baseline=base["id"], options={"output": "sleep:3"})
    assert waiting.status_code == 202
    assert service.client.delete(base["links"]["self"]).status_code == 204
    assert service.ended(waiting.json()["id"])["verdict"]["outcome"] == "pass"


def test_a_baseline_of_another_model_is_a_mismatch(service: Service, files: Files) -> None:
    base = analysed(service, files)
    report = service.client.get(base["links"]["report"]).json()
    report["model"]["parameters"]["count"] += 1
    verdict = analysed(service, files, policy=NOT_RISEN, baseline=report)["verdict"]
    assert (verdict["code"], verdict["baseline"]["differences"][0]["name"]) == ("baseline_mismatch", "parameters")


@pytest.mark.parametrize(
    ("request_part", "pointer", "told"),
    [
        ({"policy": policy()}, "/policy/rule", "at least 1"),
        ({"policy": policy(rule(op="<=", limit=1, sevrity="warn"))}, "/policy/rule/0", "did you mean 'severity'"),
        ({"policy": policy({**rule(op="<=", limit=1), "metric": "loss.valu"})}, "/policy/rule/0/metric", "has no"),
        ({"policy": NOT_RISEN}, "", "needs a baseline"),
        ({"baseline": str(uuid4())}, "", "there is none"),
        ({"policy": NOT_RISEN, "baseline": "last week"}, "/baseline/named", "pattern"),
        ({"policy": NOT_RISEN, "baseline": {"loss": 1}}, "/baseline/report/engine", "required"),
    ],
)
def test_a_bad_policy_or_baseline_is_refused_before_anything_is_queued(
    api: Service, files: Files, request_part: dict[str, Any], pointer: str, told: str
) -> None:
    response = post(api, files, wait=0, **request_part)
    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")
    assert any(error["pointer"] == pointer and told in error["detail"] for error in response.json()["errors"])
    assert api.client.get("/v1/analyses").json()["items"] == []


def test_a_baseline_that_does_not_exist_is_404(api: Service, files: Files) -> None:
    response = post(api, files, wait=0, policy=NOT_RISEN, baseline=str(uuid4()))
    assert (response.status_code, response.json()["code"]) == (404, "analysis_not_found")


def test_a_baseline_that_has_not_ended_is_409(api: Service, files: Files) -> None:
    base = post(api, files, wait=0).json()["id"]
    response = post(api, files, wait=0, policy=NOT_RISEN, baseline=base)
    assert (response.status_code, response.json()["code"]) == (409, "report_not_ready")


def told(report: dict[str, Any]) -> dict[str, Any]:
    """What the child of these tests has been told of the policy."""
    [message] = [warning["message"] for warning in report["warnings"] if warning["code"] == "terms"]
    result: dict[str, Any] = json.loads(message)
    return result


LIMITED = policy({"metric": "enclosure.lambda_max", "op": "<=", "limit": 50.0}, rule(op="<=", limit=0.5))


def test_the_child_learns_what_has_to_be_decided_and_nothing_else_of_policy_and_baseline(
    service: Service, files: Files
) -> None:
    report = post(service, files).json()
    report["enclosure"] = json.loads(policies.report((40.0, 41.0)).enclosure.model_dump_json())  # type: ignore[union-attr]
    rules = policy(*LIMITED["rule"], {"metric": "enclosure.lambda_max", "max_increase": 1.0})
    options = {"output": "terms", "stop": "decided"}
    gate = told(post(service, files, policy=rules, baseline=report, options=options).json())["gate"]
    assert [condition["rule"]["metric"] for condition in gate["conditions"]] == ["enclosure.lambda_max"] * 2
    assert [condition["baseline"] for condition in gate["conditions"]] == [None, {"lower": 40.0, "upper": 41.0}]


@pytest.mark.parametrize(
    ("options", "metric", "needs"),
    [
        ({}, "bounds_list.frobenius_norm.lambda_max.upper", ["moments"]),
        ({"moments": "none"}, "moments.trace", None),
        ({}, "enclosure.lambda_max", None),
    ],
)
def test_the_engine_is_asked_for_moments_that_a_rule_needs(
    service: Service, files: Files, options: dict[str, Any], metric: str, needs: list[str] | None
) -> None:
    rules = policy({"metric": metric, "op": "<=", "limit": 1.0})
    found = told(post(service, files, policy=rules, options={"output": "terms", **options}).json())
    assert found == {"needs": needs, "gate": None}


def test_to_stop_when_it_is_decided_takes_a_policy(api: Service, files: Files) -> None:
    response = post(api, files, wait=0, options={"stop": "decided"})
    problem = response.json()
    assert (response.status_code, problem["code"]) == (422, "policy_missing")
    assert problem["errors"][0]["pointer"] == "/options/stop"
    assert "Add a policy" in problem["advice"]
    assert api.client.get("/v1/analyses").json()["items"] == []


def test_a_report_that_stopped_when_it_was_decided_is_refused_as_a_baseline(service: Service, files: Files) -> None:
    report = post(service, files).json()
    enclosure = policies.report((40.0, 41.0)).enclosure
    assert enclosure is not None
    report["enclosure"] = json.loads(enclosure.model_copy(update={"stopped_by": "decided"}).model_dump_json())
    response = post(service, files, wait=0, policy=NOT_RISEN, baseline=report)
    assert (response.status_code, response.json()["code"]) == (422, "baseline_decided")
    assert "stop at gap" in response.json()["advice"]
    # Rules that compare nothing with it don't mind.
    assert post(service, files, policy=PASSING, baseline=report).status_code == 201


def test_a_stored_policy_that_is_not_valid_any_more_is_an_error_of_the_verdict(service: Service, files: Files) -> None:
    waiting = post(service, files, wait=0, policy=PASSING, options={"output": "sleep:3"}).json()["id"]
    service.sql("UPDATE analyses SET policy = '{}' WHERE id = %s", waiting)
    analysis = service.ended(waiting)
    assert (analysis["state"], analysis["verdict"]["code"]) == ("succeeded", "policy_outdated")
