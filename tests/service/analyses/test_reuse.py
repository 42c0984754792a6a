"""An equal analysis is answered with the report that is there already."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from support.forms import full
from support.service import Files, Service, StartService, npz_batch, onnx_mlp

from service.keys import hash_key, new_key


def post(service: Service, files: Files, *, wait: bool = True, output: str = "genuine", **content: Any) -> Any:
    options = {"output": output, **content.pop("options", {})}
    form = {**files, "request": json.dumps({"options": options, **content}).encode()}
    headers = {"Prefer": "wait=60"} if wait else {}
    return service.client.post("/v1/analyses", files=form, headers=headers)


def resource(service: Service, response: httpx.Response) -> Any:
    return service.client.get(response.headers["location"]).json()


def test_an_equal_request_has_the_report_at_once_and_says_whose_it_is(service: Service, files: Files) -> None:
    first, again = post(service, files), post(service, files, labels={"run": "b"}, priority=3)
    assert (first.status_code, again.status_code) == (201, 201)
    assert (again.content, again.headers["etag"]) == (first.content, first.headers["etag"])
    original, copy = resource(service, first), resource(service, again)
    assert original["reused_from"] is None
    assert copy["id"] != original["id"]
    assert (copy["state"], copy["reused_from"], copy["attempts"]) == ("succeeded", original["id"], 0)
    assert (copy["labels"], copy["priority"]) == ({"run": "b"}, 3)
    assert copy["finished_at"] is not None
    assert service.client.get(copy["links"]["report"]).content == first.content


def test_without_prefer_the_answer_is_202_with_an_analysis_that_has_ended(service: Service, files: Files) -> None:
    post(service, files)
    response = post(service, files, wait=False)
    assert (response.status_code, response.json()["state"]) == (202, "succeeded")
    assert "retry-after" not in response.headers
    assert service.client.get(response.json()["links"]["report"]).status_code == 200


def test_nothing_is_queued_for_it(service: Service, files: Files) -> None:
    post(service, files)
    post(service, files)
    assert service.sql("SELECT attempts, job_id IS NULL FROM analyses ORDER BY sequence") == [(1, False), (0, True)]


def test_the_copy_of_a_copy_names_the_analysis_that_made_the_report(service: Service, files: Files) -> None:
    first = resource(service, post(service, files))
    post(service, files)
    assert resource(service, post(service, files))["reused_from"] == first["id"]


def test_the_copy_stays_when_the_original_is_deleted(service: Service, files: Files) -> None:
    first, again = post(service, files), post(service, files)
    assert service.client.delete(first.headers["location"]).status_code == 204
    assert service.client.get(again.headers["content-location"]).content == first.content


def test_fresh_has_the_report_made_again(service: Service, files: Files) -> None:
    post(service, files)
    assert resource(service, post(service, files, fresh=True))["reused_from"] is None


@pytest.mark.parametrize(
    "change", ["model", "batch", {"seed": 1}, full({"spectrum": "dense"}), full({"device": "cpu"}), {"time_limit": 9.0}]
)
def test_other_inputs_are_another_analysis(service: Service, files: Files, change: Any) -> None:
    post(service, files)
    other = {"model": onnx_mlp(seed=9), "batch": npz_batch(seed=9)}
    response = (
        post(service, {**files, change: other[change]})
        if isinstance(change, str)
        else post(service, files, options=change)
    )
    assert resource(service, response)["reused_from"] is None


def test_a_default_that_is_spelled_out_is_no_difference(service: Service, files: Files) -> None:
    post(service, files)
    response = post(service, files, options={"spectrum": "none", "seed": 0, "parameters": ["*"]})
    assert resource(service, response)["reused_from"] is not None


@pytest.mark.parametrize("output", ["", "genuine:time_limit", "fail"])
def test_reports_of_another_engine_partial_ones_and_failures_are_not_reused(
    service: Service, files: Files, output: str
) -> None:
    post(service, files, output=output)
    assert resource(service, post(service, files, output=output))["reused_from"] is None


def test_a_report_with_another_warning_is_reused(service: Service, files: Files) -> None:
    post(service, files, output="genuine:enclosure_open")
    assert resource(service, post(service, files, output="genuine:enclosure_open"))["reused_from"] is not None


def test_a_report_from_a_kind_of_device_that_no_worker_has_is_not_reused(service: Service, files: Files) -> None:
    post(service, files)
    service.sql("""UPDATE reports SET body = replace(body, '"device":"cpu"', '"device":"cuda:0"')""")
    assert resource(service, post(service, files))["reused_from"] is None


def test_a_full_queue_does_not_keep_a_report_from_being_reused(start_service: StartService, files: Files) -> None:
    service = start_service()
    post(service, files)
    full = start_service(worker=False, max_queue=1)
    full.sql(
        "INSERT INTO analyses (id, tenant, model, batch, options, labels, priority, timeout_s, state)"
        " VALUES (gen_random_uuid(), 'default', '', '', '{}', '{}', 0, 1, 'queued')"
    )
    assert post(full, files, fresh=True).json()["code"] == "queue_full"
    assert post(full, files).status_code == 201


def test_the_copy_has_the_verdict_of_its_own_policy(service: Service, files: Files) -> None:
    first = post(service, files)
    policy = {"rule": [{"metric": "loss.value", "op": "<=", "limit": 0.1}]}
    again = resource(service, post(service, files, policy=policy))
    assert again["reused_from"] == first.headers["location"].rsplit("/", 1)[1]
    assert again["verdict"]["outcome"] == "fail"
    assert resource(service, first)["verdict"] is None


def gated(limit: float) -> dict[str, Any]:
    return {"policy": {"rule": [{"metric": "enclosure.lambda_max", "op": "<=", "limit": limit}]}}


def test_a_report_that_stopped_when_it_was_decided_answers_the_same_question_only(
    service: Service, files: Files
) -> None:
    first = post(service, files, options={"stop": "decided"}, **gated(50.0))
    assert first.status_code == 201
    for options, asked in [({}, gated(50.0)), ({"stop": "decided"}, gated(51.0))]:
        assert resource(service, post(service, files, options=options, **asked))["reused_from"] is None
    again = post(service, files, options={"stop": "decided"}, **gated(50.0))
    assert resource(service, again)["reused_from"] == resource(service, first)["id"]


def test_a_report_that_may_lack_moments_does_not_answer_a_policy_that_needs_them(
    service: Service, files: Files
) -> None:
    post(service, files)
    rules = {"rule": [{"metric": "moments.trace", "op": "<=", "limit": 1.0}]}
    assert resource(service, post(service, files, policy=rules))["reused_from"] is None
    assert resource(service, post(service, files, policy=rules))["reused_from"] is not None


def test_the_report_of_another_tenant_is_not_reused(start_service: StartService, files: Files) -> None:
    keys = {name: new_key() for name in ("a", "b")}
    service = start_service(api_keys=",".join(f"{name}:{hash_key(key)}" for name, key in keys.items()))
    for key in keys.values():
        service.client.headers["Authorization"] = f"Bearer {key}"
        response = post(service, files)
        assert response.status_code == 201
        assert resource(service, response)["reused_from"] is None
