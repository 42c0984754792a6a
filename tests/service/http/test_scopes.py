"""What a key allows, until when, and what the log says of changes."""

from __future__ import annotations

import hashlib
import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs
from support.service import Files, Service, StartService, until

from service.http.security import is_change, scope_of
from service.keys import SCOPES, ApiKey, entry, hash_key, new_key, parse_keys

KEYS = {scope: new_key() for scope in ("submit", "read", "admin", "all")}


def entries(**expires: Any) -> str:
    keys = [
        ApiKey("ci", hash_key(key), SCOPES if name == "all" else frozenset({name}), expires.get(name))  # type: ignore[arg-type]
        for name, key in KEYS.items()
    ]
    return ",".join(map(entry, keys))


def with_key(service: Service, name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {KEYS[name]}"}


@pytest.fixture
def scoped(borrow_service: StartService) -> Service:
    return borrow_service(worker=False, api_keys=entries())


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("GET", "/v1/analyses", "read"),
        ("HEAD", "/v1/models/sha256:0", "read"),
        ("POST", "/v1/comparisons", "read"),
        ("POST", "/v1/models", "submit"),
        ("POST", "/v1/analyses", "submit"),
        ("POST", "/analyses", "submit"),
        ("POST", "/v1/analyses/1/cancel", "submit"),
        ("DELETE", "/v1/models/sha256:0", "admin"),
        ("POST", "/analyses/1/delete", "admin"),
        ("GET", "/metrics", "admin"),
        ("PUT", "/v1/baselines/main", "submit"),
        ("POST", "/v1/webhooks", "admin"),
        ("POST", "/v1/badges", "admin"),
        ("GET", "/v1/webhooks", "read"),
    ],
)
def test_every_request_needs_one_scope(scoped: Service, method: str, path: str, scope: str) -> None:
    assert scope_of(method, path) == scope
    for name in KEYS:
        response = scoped.client.request(method, path, headers=with_key(scoped, name))
        refused = response.status_code == 403
        assert refused == (name not in (scope, "all"))
        if refused and method != "HEAD":
            assert response.json()["code"] == "scope_missing"
            assert f"--scopes {scope}" in response.json()["advice"]


def test_reading_changes_nothing() -> None:
    assert not is_change("GET", "/v1/analyses")
    assert not is_change("POST", "/v1/comparisons")
    assert is_change("POST", "/v1/analyses")


def test_things_of_another_tenant_stay_unknown_to_a_key_without_the_scope_for_them(
    start_service: StartService, model_bytes: bytes
) -> None:
    other = new_key()
    service = start_service(worker=False, api_keys=f"{entries()},{entry(ApiKey('other', hash_key(other)))}")
    path = f"/v1/models/sha256:{hashlib.sha256(model_bytes).hexdigest()}"
    sent = service.client.post("/v1/models", content=model_bytes, headers={"Authorization": f"Bearer {other}"})
    assert sent.status_code == 201
    assert service.client.get(path, headers=with_key(service, "read")).status_code == 404
    assert service.client.delete(path, headers=with_key(service, "admin")).status_code == 404
    assert service.client.delete(path, headers=with_key(service, "read")).status_code == 403


def test_a_key_is_accepted_until_the_end_of_its_last_day(start_service: StartService) -> None:
    today = datetime.now(UTC).date()
    days = {"read": today - timedelta(days=1), "all": today}
    service = start_service(worker=False, api_keys=entries(**days))
    response = service.client.get("/v1/analyses", headers=with_key(service, "read"))
    assert (response.status_code, response.json()["code"]) == (401, "unauthorized")
    assert str(days["read"]) in response.json()["detail"]
    assert service.client.get("/v1/analyses", headers=with_key(service, "all")).status_code == 200


@pytest.mark.parametrize("name", ["read", "all"])
def test_a_session_allows_what_its_key_does(scoped: Service, name: str) -> None:
    signed_in = scoped.client.post("/sign-in", data={"key": KEYS[name]})
    assert signed_in.status_code == 303
    assert scoped.client.get("/v1/analyses").status_code == 200
    assert scoped.client.get("/metrics").status_code == (403 if name == "read" else 200)


@pytest.mark.parametrize(
    ("text", "scopes", "expires"),
    [
        ("", SCOPES, None),
        (":read", {"read"}, None),
        (":READ+submit:2027-01-31", {"read", "submit"}, "2027-01-31"),
        ("::2027-01-31", SCOPES, "2027-01-31"),
    ],
)
def test_entries_are_written_as_they_are_read(text: str, scopes: set[str], expires: str | None) -> None:
    (key,) = parse_keys(f"ci:{'0' * 64}{text}")
    assert (key.scopes, None if key.expires is None else str(key.expires)) == (scopes, expires)
    assert parse_keys(entry(key)) == (key,)


@pytest.mark.parametrize("text", [":write", ":read+", ":read:31.1.2027", ":read:2027-01-31:x"])
def test_an_unknown_scope_or_date_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="entry 1 is not NAME:HASH"):
        parse_keys(f"ci:{'0' * 64}{text}")


def test_each_change_leaves_a_line_that_says_who_made_it(scoped: Service, files: Files) -> None:
    with capture_logs() as lines:
        created = scoped.client.post("/v1/analyses", files=files, headers=with_key(scoped, "submit"))
        identifier = created.json()["id"]
        scoped.client.get(f"/v1/analyses/{identifier}", headers=with_key(scoped, "read"))
        scoped.client.delete(f"/v1/analyses/{identifier}", headers=with_key(scoped, "read"))
        scoped.client.post(f"/v1/analyses/{identifier}/cancel", headers=with_key(scoped, "submit"))
        scoped.client.delete(f"/v1/analyses/{identifier}", headers=with_key(scoped, "admin"))
        until(lambda: len([line for line in lines if line["event"] == "request"]) == 5)
    changes = [line for line in lines if line["event"] == "change"]
    assert [line["operation"] for line in changes] == ["create_analysis", "cancel_analysis", "delete_analysis"]
    assert [line["key"] for line in changes] == [hash_key(KEYS[name])[:12] for name in ("submit", "submit", "admin")]
    assert {line["analysis"] for line in changes} == {identifier}
    assert {line["client"] for line in changes} == {"127.0.0.1"}


def test_the_line_of_a_change_names_what_was_created_and_who_has_signed_in(scoped: Service, files: Files) -> None:
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        uploaded = scoped.client.post("/v1/models", content=files["model"], headers=with_key(scoped, "submit"))
        scoped.client.post("/sign-in", data={"key": "wrong"})
        scoped.client.post("/sign-in", data={"key": KEYS["read"]})
        until(lambda: len([line for line in lines if line["event"] == "request"]) == 3)
    changes = [line for line in lines if line["event"] == "change"]
    assert [(line["operation"], line["key"], line["tenant"]) for line in changes] == [
        ("upload_model", hash_key(KEYS["submit"])[:12], "ci"),
        ("sign_in", hash_key(KEYS["read"])[:12], "ci"),
    ]
    assert changes[0]["resource"] == uploaded.headers["location"]


def changes(lines: Any, count: int) -> list[Any]:
    """Lines about changes, once there are so many."""
    until(lambda: len([line for line in lines if line["event"] == "change"]) >= count)
    return [line for line in lines if line["event"] == "change"]


def test_signing_out_leaves_a_line(scoped: Service) -> None:
    scoped.client.post("/sign-in", data={"key": KEYS["read"]})
    csrf = re.search(r'name="csrf" value="(\w+)"', scoped.client.get("/").text)
    assert csrf is not None
    with capture_logs() as lines:
        assert scoped.client.post("/sign-out", data={"csrf": csrf[1]}).status_code == 303
    assert [(line["operation"], line["key"]) for line in changes(lines, 1)] == [
        ("sign_out", hash_key(KEYS["read"])[:12])
    ]


def test_a_change_leaves_a_line_however_its_request_ends(service: Service, files: Files) -> None:
    request = json.dumps({"options": {"output": "crash"}}).encode()
    with capture_logs() as lines:
        failed = service.client.post("/v1/analyses", files={**files, "request": request}, headers={"Prefer": "wait=60"})
        kept = service.client.post("/analyses", files={"model": files["model"]}, data={"priority": "x"})
    assert (failed.status_code, kept.status_code) == (500, 422)
    submitted, stored = changes(lines, 2)
    assert submitted["analysis"] == failed.json()["analysis"]
    assert submitted["files"] == [f"sha256:{hashlib.sha256(files[name]).hexdigest()}" for name in ("model", "batch")]
    assert stored["resource"] == f"/v1/models/sha256:{hashlib.sha256(files['model']).hexdigest()}"


def test_what_changes_nothing_leaves_no_line(api: Service, files: Files) -> None:
    key = {"Idempotency-Key": "once"}
    with capture_logs() as lines:
        address = api.client.post("/v1/analyses", files=files, headers=key).headers["location"]
        for _ in range(2):
            assert api.client.post("/v1/analyses", files=files, headers=key).status_code == 202
            assert api.client.post(f"{address}/cancel").status_code == 202
        until(lambda: len([line for line in lines if line["event"] == "request"]) == 5)
    assert [line["operation"] for line in changes(lines, 2)] == ["create_analysis", "cancel_analysis"]


def test_the_capabilities_say_what_the_tenant_uses(scoped: Service, files: Files) -> None:
    scoped.client.post("/v1/analyses", files=files, headers=with_key(scoped, "submit"))
    usage = scoped.client.get("/v1/capabilities", headers=with_key(scoped, "read")).json()["usage"]
    assert usage == {
        "tenant": "ci",
        "scopes": ["read"],
        "expires": None,
        "queued_analyses": 1,
        "running_analyses": 0,
        "models": 1,
        "batches": 1,
        "stored_bytes": sum(map(len, files.values())),
        "uploads": 0,
        "event_streams": 0,
        "waiting_requests": 0,
        "left": {
            "weight": 1,
            "queued_analyses": 199,
            "uploads": 64,
            "event_streams": 1000,
            "waiting_requests": 200,
        },
    }
