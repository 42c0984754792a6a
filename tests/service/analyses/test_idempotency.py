"""Idempotency-Key: a request that is sent again is the same analysis."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from support.client import connect
from support.service import Files, Service, StartService, npz_batch, onnx_mlp

from service.keys import hash_key, new_key


def post(service: Service, files: Files, key: str, *, wait: int | None = None, **content: Any) -> httpx.Response:
    headers = {"Idempotency-Key": key} | ({} if wait is None else {"Prefer": f"wait={wait}"})
    form = {**files, "request": json.dumps(content).encode()} if content else files
    return service.client.post("/v1/analyses", files=form, headers=headers)


def test_the_same_request_with_the_same_key_is_the_same_analysis(api: Service, files: Files) -> None:
    first, again = (post(api, files, "once") for _ in range(2))
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.json() == first.json()
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert api.sql("SELECT count(*) FROM analyses") == [(1,)]


def test_files_and_their_identifiers_are_the_same_request(api: Service, files: Files) -> None:
    first = post(api, files, "once", labels={"run": "a"}).json()
    body = {"model": first["model"], "batch": first["batch"], "labels": {"run": "a"}}
    again = api.client.post("/v1/analyses", json=body, headers={"Idempotency-Key": "once"})
    assert (again.json()["id"], again.headers["idempotency-replayed"]) == (first["id"], "true")


def test_other_keys_and_no_key_are_other_analyses(api: Service, files: Files) -> None:
    identifiers = {post(api, files, key).json()["id"] for key in ("a", "b", "A")}
    identifiers.add(api.client.post("/v1/analyses", files=files).json()["id"])
    assert len(identifiers) == 4


@pytest.mark.parametrize(
    "change",
    [
        {"labels": {"run": "b"}},
        {"options": {"seed": 1}},
        {"priority": 1},
        {"timeout_s": 5},
        {"fresh": True},
        "model",
        "batch",
    ],
)
def test_another_request_with_the_same_key_is_refused_and_leaves_nothing(
    api: Service, files: Files, change: Any
) -> None:
    first = post(api, files, "once").json()
    other = {"model": onnx_mlp(seed=9), "batch": npz_batch(seed=9)}
    stored = len(api.stored())
    response = (
        post(api, {**files, change: other[change]}, "once")
        if isinstance(change, str)
        else post(api, files, "once", **change)
    )
    assert (response.status_code, response.json()["code"]) == (422, "idempotency_mismatch")
    assert response.json()["analysis"] == first["id"]
    assert api.sql("SELECT count(*) FROM analyses") == [(1,)]
    assert len(api.stored()) == stored
    assert api.leftovers() == []


@pytest.mark.parametrize("same", [True, False])
def test_requests_with_one_key_at_the_same_time_make_one_analysis(api: Service, files: Files, same: bool) -> None:
    def send(number: int) -> httpx.Response:
        with connect(api.url, timeout=60) as client:
            labels = {"n": "0" if same else str(number)}
            form = {**files, "request": json.dumps({"labels": labels}).encode()}
            return client.post("/v1/analyses", files=form, headers={"Idempotency-Key": "once"})

    with ThreadPoolExecutor(12) as pool:
        responses = list(pool.map(send, range(12)))
    accepted = [response.json()["id"] for response in responses if response.status_code == 202]
    assert len(set(accepted)) == 1
    assert len(accepted) == (12 if same else 1)
    assert {response.status_code for response in responses} <= {202, 422}
    assert api.sql("SELECT count(*) FROM analyses") == [(1,)]
    assert api.sql("SELECT count(*) FROM procrastinate_jobs") == [(1,)]


def test_what_has_ended_is_answered_with_its_end(service: Service, files: Files) -> None:
    first, again = (post(service, files, "good", wait=60) for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.content == first.content
    assert again.headers["location"] == first.headers["location"]
    failed, failed_again = (post(service, files, "bad", wait=60, options={"output": "fail"}) for _ in range(2))
    assert (failed.status_code, failed_again.status_code) == (422, 422)
    assert failed_again.json() == failed.json()
    assert failed_again.headers["idempotency-replayed"] == "true"


def test_a_replay_needs_no_file_any_more(service: Service, files: Files) -> None:
    first = post(service, files, "once", wait=60)
    analysis = service.client.get(first.headers["location"]).json()
    service.client.delete(f"/v1/models/{analysis['model']}")
    body = {"model": analysis["model"], "batch": analysis["batch"]}
    headers = {"Idempotency-Key": "once", "Prefer": "wait=60"}
    again = service.client.post("/v1/analyses", json=body, headers=headers)
    assert (again.status_code, again.content) == (201, first.content)


def test_a_request_that_was_refused_leaves_its_key_free(start_service: StartService, files: Files) -> None:
    api = start_service(worker=False, job_seconds=10)
    assert post(api, files, "once", timeout_s=11).status_code == 422
    assert post(api, files, "once", timeout_s=9).status_code == 202


def test_a_key_goes_with_its_analysis(service: Service, files: Files) -> None:
    first = post(service, files, "once", wait=60)
    assert service.client.delete(first.headers["location"]).status_code == 204
    again = post(service, files, "once", wait=60)
    assert again.status_code == 201
    assert again.headers["location"] != first.headers["location"]


def test_a_key_is_its_tenants_own(start_service: StartService, files: Files) -> None:
    keys = {name: new_key() for name in ("a", "b")}
    api = start_service(worker=False, api_keys=",".join(f"{name}:{hash_key(key)}" for name, key in keys.items()))
    identifiers = set()
    for key in keys.values():
        headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": "once"}
        response = api.client.post("/v1/analyses", files=files, headers=headers)
        identifiers.add(response.json()["id"])
        assert "idempotency-replayed" not in response.headers
    assert len(identifiers) == 2


@pytest.mark.parametrize("key", ["x", "x" * 255, '"quoted"', "!~"])
def test_a_key_of_visible_characters_is_taken(api: Service, files: Files, key: str) -> None:
    assert post(api, files, key).status_code == 202


@pytest.mark.parametrize("key", [b"", b"x" * 256, b"a b", b"a\tb", b"\xc3\xbc"])
def test_any_other_key_is_refused_before_the_body_is_read(api: Service, key: bytes) -> None:
    headers = {b"Idempotency-Key": key, b"Content-Type": b"application/json"}
    response = api.client.post("/v1/analyses", content=b"not even JSON", headers=headers)
    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")
    assert response.json()["errors"][0]["pointer"] == "/header/idempotency-key"
