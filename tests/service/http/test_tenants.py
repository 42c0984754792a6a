"""What one tenant has is not there for another, on whatever route."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import psycopg
import pytest
from safetensors.numpy import save
from support.client import connect
from support.outages import WAITING
from support.service import Service, StartService, until

from service.database.engine import lock_key
from service.keys import hash_key, new_key

STATE = save({"step": np.array(7.0)})
"""State of an optimizer."""
KEYS = {"ours": new_key(), "theirs": new_key()}
ENTRIES = ",".join(f"{name}:{hash_key(key)}" for name, key in KEYS.items())

NO_ID = {
    ("post", "/v1/models"),
    ("post", "/v1/batches"),
    ("post", "/v1/optimizer_states"),
    ("get", "/v1/models"),
    ("get", "/v1/batches"),
    ("get", "/v1/optimizer_states"),
    ("get", "/v1/analyses"),
    ("get", "/v1/baselines"),
    ("get", "/v1/badges"),
    ("post", "/v1/badges"),
    ("get", "/v1/webhooks"),
    ("post", "/v1/webhooks"),
    ("get", "/v1/series"),
    ("get", "/v1/capabilities"),
}
"""Routes of the interface that name nothing of anyone's; what they do for another tenant is tested on its own."""


@dataclass
class Tenants:
    """A service, a client of each tenant, and what the first one has there."""

    service: Service
    ours: httpx.Client
    theirs: httpx.Client
    ids: dict[str, str]
    """By the name of the path's parameter."""


def client(service: Service, tenant: str) -> httpx.Client:
    return connect(service.url, headers={"Authorization": f"Bearer {KEYS[tenant]}"}, timeout=30)


@pytest.fixture
def tenants(borrow_service: StartService, model_bytes: bytes, batch_bytes: bytes) -> Iterator[Tenants]:
    service = borrow_service(worker=False, api_keys=ENTRIES)
    with client(service, "ours") as ours, client(service, "theirs") as theirs:
        analysis = ours.post("/v1/analyses", files={"model": model_bytes, "batch": batch_bytes}).json()
        ids = {"model_id": analysis["model"], "batch_id": analysis["batch"], "analysis_id": analysis["id"]}
        ids["optimizer_state_id"] = ours.post("/v1/optimizer_states", content=STATE).json()["id"]
        ids["webhook_id"] = "11111111-1111-1111-1111-111111111111"
        service.sql(
            "INSERT INTO webhooks (id, tenant, url, events, secret) VALUES (%s, 'ours', 'https://x', '[]', '')",
            ids["webhook_id"],
        )
        ids["label"], ids["badge_id"] = "our-series", "11111111-1111-1111-1111-111111111111"
        service.sql("INSERT INTO badges VALUES (%s, 'ours', %s, '')", ids["badge_id"], ids["label"])
        ids["name"] = "our-baseline"
        service.sql("INSERT INTO baselines VALUES ('ours', %s, %s)", ids["name"], ids["analysis_id"])
        yield Tenants(service, ours, theirs, ids)


UNKNOWN = {
    "model_id": "sha256:" + "0" * 64,
    "batch_id": "sha256:" + "1" * 64,
    "optimizer_state_id": "sha256:" + "2" * 64,
    "analysis_id": "00000000-0000-0000-0000-000000000000",
    "webhook_id": "22222222-2222-2222-2222-222222222222",
    "label": "walk",
    "badge_id": "22222222-2222-2222-2222-222222222222",
    "name": "no-baseline",
}


def bodies(ids: dict[str, str]) -> dict[tuple[str, str], list[Any]]:
    """Requests whose body names something, by their route."""
    own_batch, own_model = {"batch": ids["batch_id"]}, {"model": ids["model_id"]}
    rule = {"rule": [{"metric": "loss.value", "op": "<=", "limit": 1.0}]}
    report = {"candidate": ids["analysis_id"], "baseline": ids["analysis_id"], "policy": rule}
    return {
        ("post", "/v1/analyses"): [{**own_model, **own_batch}],
        ("post", "/v1/comparisons"): [report, {**report, "candidate": ids["name"], "baseline": ids["name"]}],
        ("put", "/v1/baselines/{name}"): [{"analysis": ids["analysis_id"]}],
    }


def requests(specification: dict[str, Any], ids: dict[str, str]) -> Iterator[tuple[str, str, Any]]:
    """One request, or more, for each route that names something: method, path, and JSON body."""
    named = bodies(ids)
    for path, operations in specification["paths"].items():
        if not path.startswith("/v1/"):
            continue
        for method in operations:
            if "{" in path:
                [body] = named.get((method, path), [None])
                query = "?token=wsbb_unknown" if path.endswith("/badge.svg") else ""
                yield method, re.sub(r"\{(\w+)\}", lambda match: ids[match[1]], path) + query, body
            elif (method, path) not in NO_ID:
                for body in named[(method, path)]:
                    yield method, path, body


def answers(tenants: Tenants, ids: dict[str, str]) -> dict[tuple[str, str], tuple[int, dict[str, Any]]]:
    """What the other tenant is told on each route, with the identifiers taken out."""
    specification = tenants.service.client.get("/openapi.json").json()
    result = {}
    for number, (method, path, body) in enumerate(requests(specification, ids)):
        response = tenants.theirs.request(method, path, json=body)
        text = response.text
        for name, identifier in ids.items():
            text = text.replace(identifier, f"<{name}>")
            path = path.replace(identifier, f"<{name}>")
        headers = {name: value for name, value in response.headers.items() if name not in ("date", "x-request-id")}
        # The length differs with that of the identifiers, which have been taken out.
        headers.pop("content-length", None)
        result[(f"{number} {method}", path)] = (response.status_code, {"text": text, "headers": headers})
    return result


def test_on_every_route_what_another_tenant_has_is_answered_like_what_does_not_exist(tenants: Tenants) -> None:
    foreign = answers(tenants, tenants.ids)
    assert {status for status, _ in foreign.values()} == {404}, foreign
    assert foreign == answers(tenants, UNKNOWN)
    assert len(foreign) >= 11


def test_nothing_of_it_changed_and_its_owner_still_has_it(tenants: Tenants) -> None:
    before = tenants.ours.get(f"/v1/analyses/{tenants.ids['analysis_id']}").json()
    answers(tenants, tenants.ids)
    assert tenants.ours.get(f"/v1/analyses/{tenants.ids['analysis_id']}").json() == before
    assert before["state"] == "queued"
    assert tenants.ours.head(f"/v1/models/{tenants.ids['model_id']}").status_code == 200


def test_lists_show_nothing_of_another_tenant(tenants: Tenants) -> None:
    for path in ("/v1/analyses", "/v1/models", "/v1/batches"):
        assert tenants.theirs.get(path).json() == {"items": [], "next": None}
        assert len(tenants.ours.get(path).json()["items"]) == 1
    assert tenants.theirs.get("/v1/baselines").json() == {"items": []}
    assert len(tenants.ours.get("/v1/baselines").json()["items"]) == 1


def test_a_cursor_of_another_tenant_leads_to_nothing_of_theirs(
    tenants: Tenants, model_bytes: bytes, batch_bytes: bytes
) -> None:
    for _ in range(2):
        tenants.ours.post("/v1/analyses", files={"model": model_bytes, "batch": batch_bytes})
    following = tenants.ours.get("/v1/analyses?limit=1").json()["next"]
    assert tenants.theirs.get(following).json()["items"] == []


@pytest.mark.parametrize("kind", ["models", "batches"])
def test_content_that_another_tenant_has_is_new_to_this_one_and_stored_once(
    tenants: Tenants, model_bytes: bytes, batch_bytes: bytes, kind: str
) -> None:
    content = model_bytes if kind == "models" else batch_bytes
    before = len(tenants.service.stored())
    assert tenants.theirs.post(f"/v1/{kind}", content=content).status_code == 201
    assert tenants.theirs.post(f"/v1/{kind}", content=content).status_code == 200
    assert len(tenants.service.stored()) == before


def test_a_shared_file_goes_with_the_last_tenant_that_has_it(borrow_service: StartService, model_bytes: bytes) -> None:
    service = borrow_service(worker=False, api_keys=ENTRIES)
    with client(service, "ours") as ours, client(service, "theirs") as theirs:
        path = ours.post("/v1/models", content=model_bytes).headers["location"]
        theirs.post("/v1/models", content=model_bytes)
        assert ours.delete(path).status_code == 204
        assert (ours.head(path).status_code, theirs.head(path).status_code) == (404, 200)
        assert [file.read_bytes() for file in service.stored()] == [model_bytes]
        assert theirs.delete(path).status_code == 204
        assert service.stored() == []


def test_an_analysis_of_another_tenant_does_not_keep_a_file_from_being_deleted(
    tenants: Tenants, model_bytes: bytes
) -> None:
    path = tenants.theirs.post("/v1/models", content=model_bytes).headers["location"]
    assert tenants.theirs.delete(path).status_code == 204
    assert tenants.ours.delete(path).json()["code"] == "blob_in_use"
    assert hashlib.sha256(model_bytes).hexdigest() in {file.name for file in tenants.service.stored()}


def test_a_form_cannot_name_the_file_of_another_tenant(tenants: Tenants, batch_bytes: bytes) -> None:
    request = json.dumps({"model": tenants.ids["model_id"]}).encode()
    response = tenants.theirs.post("/v1/analyses", files={"batch": batch_bytes, "request": request})
    assert (response.status_code, response.json()["code"]) == (404, "blob_not_found")
    assert tenants.theirs.head(f"/v1/batches/{tenants.ids['batch_id']}").status_code == 404


def test_a_baseline_cannot_be_the_analysis_of_another_tenant(
    tenants: Tenants, model_bytes: bytes, batch_bytes: bytes
) -> None:
    policy = {"rule": [{"metric": "loss.value", "op": "<=", "limit": 1.0}]}
    for ids in (tenants.ids, UNKNOWN):
        request = json.dumps({"policy": policy, "baseline": ids["analysis_id"]}).encode()
        files = {"model": model_bytes, "batch": batch_bytes, "request": request}
        response = tenants.theirs.post("/v1/analyses", files=files)
        assert (response.status_code, response.json()["code"]) == (404, "analysis_not_found")


def test_one_tenant_cannot_fill_the_queue_for_another(
    start_service: StartService, model_bytes: bytes, batch_bytes: bytes
) -> None:
    service = start_service(worker=False, api_keys=ENTRIES, max_queue=3, max_queue_per_tenant=2)
    files = {"model": model_bytes, "batch": batch_bytes}
    with client(service, "ours") as ours, client(service, "theirs") as theirs:
        refused = [ours.post("/v1/analyses", files=files) for _ in range(3)][-1]
        assert (refused.status_code, refused.json()["code"]) == (429, "tenant_queue_full")
        assert refused.headers["retry-after"] == "5"
        assert theirs.post("/v1/analyses", files=files).status_code == 202
        full = theirs.post("/v1/analyses", files=files)
        assert (full.status_code, full.json()["code"]) == (429, "queue_full")


def test_one_tenant_cannot_fill_the_disk(start_service: StartService, model_bytes: bytes, batch_bytes: bytes) -> None:
    limit = len(model_bytes) + len(batch_bytes) - 1
    service = start_service(worker=False, api_keys=ENTRIES, max_stored_bytes_per_tenant=limit)
    with client(service, "ours") as ours, client(service, "theirs") as theirs:
        full = ours.post("/v1/analyses", files={"model": model_bytes, "batch": batch_bytes})
        assert (full.status_code, full.json()["code"]) == (507, "tenant_storage_full")
        assert ours.post("/v1/models", content=model_bytes).status_code == 201  # nothing of it was kept
        assert ours.post("/v1/models", content=model_bytes).status_code == 200
        assert ours.post("/v1/batches", content=batch_bytes).status_code == 507
        assert theirs.post("/v1/batches", content=batch_bytes).status_code == 201


def test_requests_of_one_tenant_that_wait_leave_room_for_another(
    start_service: StartService, model_bytes: bytes, batch_bytes: bytes
) -> None:
    service = start_service(worker=False, api_keys=ENTRIES, max_waiting_requests=2, max_wait_seconds=600)
    files = {"model": model_bytes, "batch": batch_bytes}

    def waits(tenant: str) -> Future[httpx.Response]:
        def post() -> httpx.Response:
            with client(service, tenant) as one:
                return one.post("/v1/analyses", files=files, headers={"Prefer": "wait=600"})

        return pool.submit(post)

    def used() -> tuple[int, int]:
        usage = ours.get("/v1/capabilities").json()["usage"]
        return usage["waiting_requests"], usage["left"]["waiting_requests"]

    with ThreadPoolExecutor(3) as pool, client(service, "ours") as ours:
        first = waits("ours")
        until(lambda: used() == (1, 0))
        answered = waits("ours").result(60)
        assert (answered.status_code, answered.headers["preference-applied"]) == (202, "wait=0")
        assert answered.headers["retry-after"] == "1"
        other = waits("theirs")
        until(lambda: service.sql("SELECT count(*) FROM analyses WHERE tenant = 'theirs'") == [(1,)])
        assert not first.done()
        service.loop.call_soon_threadsafe(service.stopping.set)
        assert {first.result(60).headers["preference-applied"], other.result(60).headers["preference-applied"]} == {
            "wait=600"
        }


@pytest.mark.slow
def test_requests_of_one_tenant_that_hold_connections_leave_some_for_another(
    start_service: StartService, model_bytes: bytes, batch_bytes: bytes
) -> None:
    limits = {"database_connections": 7, "database_reserved_connections": 2}
    service = start_service(worker=False, api_keys=ENTRIES, **limits)
    with client(service, "ours") as ours, client(service, "theirs") as theirs, ThreadPoolExecutor(20) as pool:
        names = {
            "model": ours.post("/v1/models", content=model_bytes).json()["id"],
            "batch": ours.post("/v1/batches", content=batch_bytes).json()["id"],
        }
        with psycopg.connect(str(service.settings.database_url), autocommit=True) as connection:
            connection.execute("SELECT pg_advisory_lock(%s)", [lock_key("queue")])
            posts = [pool.submit(ours.post, "/v1/analyses", json=names) for _ in range(20)]
            until(lambda: service.sql(WAITING) == [(5,)])
            assert theirs.get("/v1/analyses").status_code == 200
            assert not any(post.done() for post in posts)
        assert {post.result(60).status_code for post in posts} == {202}


@pytest.mark.slow
def test_the_analysis_of_a_tenant_runs_before_those_that_another_queued_earlier(
    start_service: StartService, model_bytes: bytes, batch_bytes: bytes
) -> None:
    api = start_service(worker=False, api_keys=ENTRIES)
    files = {"model": model_bytes, "batch": batch_bytes}
    with client(api, "ours") as ours, client(api, "theirs") as theirs:
        for priority in (0, 100, 100, 100):
            request = json.dumps({"priority": priority, "fresh": True, "options": {"output": "sleep:0.1"}}).encode()
            ours.post("/v1/analyses", files={**files, "request": request})
        late = theirs.post("/v1/analyses", files=files).json()["id"]
    start_service(api_keys=ENTRIES, small_jobs=1)
    until(lambda: api.sql("SELECT count(*) FROM analyses WHERE finished_at IS NULL") == [(0,)])
    order = [str(row[0]) for row in api.sql("SELECT id FROM analyses ORDER BY started_at")]
    assert order.index(late) <= 1


def test_what_a_service_without_keys_has_stored_is_the_tenant_defaults(
    start_service: StartService, model_bytes: bytes
) -> None:
    service = start_service(worker=False)
    path = service.client.post("/v1/models", content=model_bytes).headers["location"]
    key = new_key()
    entries = f"default:{hash_key(key)},{ENTRIES}"
    later = start_service(worker=False, api_keys=entries)
    assert later.client.get(path, headers={"Authorization": f"Bearer {key}"}).status_code == 200
    with client(later, "ours") as ours:
        assert ours.get(path).status_code == 404
