"""Webhooks from registration to the receiver."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import pytest
from support.client import connect
from support.receiver import SECRET, Message, Receiver, receiver
from support.service import Files, Service, StartService, running_service, submit, until

from service.keys import hash_key, new_key
from service.settings import Settings

AT_ONCE = {"webhooks_private": True, "webhook_retry_seconds": (0.01,) * 20}


@pytest.fixture
def there() -> Iterator[Receiver]:
    with receiver() as found:
        yield found


def register(service: Service, url: str, **fields: Any) -> Any:
    return service.client.post("/v1/webhooks", json={"url": url, "secret": SECRET, **fields})


def is_signed(message: Message) -> bool:
    """Whether a receiver that knows the secret accepts the message."""
    given = message.headers
    signed = f"{given['webhook-id']}.{given['webhook-timestamp']}.".encode() + message.body
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    return given["webhook-signature"] == f"v1,{expected}" and abs(time.time() - int(given["webhook-timestamp"])) < 300


def test_each_end_is_told_once_and_signed(start_service: StartService, there: Receiver, files: Files) -> None:
    service = start_service(**AT_ONCE)
    made = register(service, there.url)
    assert made.status_code == 201
    assert SECRET not in made.text + service.client.get("/v1/webhooks").text
    assert service.client.get(made.headers["location"]).json() == made.json()
    register(service, there.url, events=["analysis.failed"])
    analyses = {command: submit(service, files, command) for command in ("", "fail", "sleep:60")}
    service.client.post(f"/v1/analyses/{analyses['sleep:60']}/cancel")
    until(lambda: len(there.received) == 4)
    until(lambda: service.sql("SELECT count(*) FROM deliveries") == [(0,)])
    assert all(map(is_signed, there.received))
    assert len({message.headers["webhook-id"] for message in there.received}) == 4
    assert {message.headers["host"] for message in there.received} == {urlsplit(there.url).netloc}
    bodies = {(body["type"], body["data"]["id"]): body for body in (json.loads(each.body) for each in there.received)}
    assert bodies.keys() == {
        ("analysis.succeeded", analyses[""]),
        ("analysis.failed", analyses["fail"]),
        ("analysis.cancelled", analyses["sleep:60"]),
    }
    succeeded = bodies[("analysis.succeeded", analyses[""])]
    path = f"/v1/analyses/{analyses['']}"
    assert succeeded["data"] == {
        "id": analyses[""],
        "state": "succeeded",
        "error": None,
        "verdict": None,
        "lambda_max": None,
        "links": {"self": path, "report": f"{path}/report"},
    }
    assert datetime.fromisoformat(succeeded["timestamp"]).tzinfo is not None
    assert bodies[("analysis.failed", analyses["fail"])]["data"]["error"] == "unsupported_operator"


@pytest.mark.slow
def test_with_a_key_the_database_does_not_tell_the_secret(
    start_service: StartService, there: Receiver, files: Files
) -> None:
    service = start_service(worker=False, webhooks_key="k" * 32, **AT_ONCE)
    for _ in range(2):
        register(service, there.url)
    stored = [row[0] for row in service.sql("SELECT secret FROM webhooks")]
    assert len({*stored, SECRET}) == 3
    assert not any(SECRET in secret for secret in stored)
    service.client.post(f"/v1/analyses/{submit(service, files)}/cancel")
    until(lambda: len(there.received) == 2)
    assert all(map(is_signed, there.received))


@pytest.mark.slow
def test_a_failure_is_retried_with_the_same_identifier_and_redirections_are_not_followed(
    start_service: StartService, there: Receiver, files: Files
) -> None:
    service = start_service(**AT_ONCE)
    answers = {1: (500, {}), 2: (302, {"Location": there.url + "&elsewhere"})}
    there.answer = lambda number: answers.get(number, (200, {}))
    register(service, there.url)
    submit(service, files)
    until(lambda: service.sql("SELECT count(*) FROM deliveries") == [(0,)] and len(there.received) == 3)
    assert len({message.headers["webhook-id"] for message in there.received}) == 1
    assert all(map(is_signed, there.received))
    assert service.client.get("/v1/webhooks").json()["items"][0]["failures"] == 0


@pytest.mark.slow
def test_nothing_is_lost_over_a_restart(database_url: str, tmp_path: Any, there: Receiver, files: Files) -> None:
    values: dict[str, Any] = {
        "database_url": database_url,
        "data_dir": tmp_path / "data",
        "poll_seconds": 0.2,
        **AT_ONCE,
    }
    there.answer = lambda number: (503, {})
    with running_service(Settings(_env_file=None, **values), worker=False) as service:
        register(service, there.url)
        service.client.post(f"/v1/analyses/{submit(service, files)}/cancel")
        until(lambda: there.received)
    there.answer = lambda number: (200, {})
    with running_service(Settings(_env_file=None, **values), worker=False) as service:
        # What was under way when the first one stopped is left alone for a while, as if it still ran.
        service.sql("UPDATE deliveries SET leased_until = NULL, due_at = now()")
        until(lambda: service.sql("SELECT count(*) FROM deliveries") == [(0,)])
    assert len({message.headers["webhook-id"] for message in there.received}) == 1


@pytest.mark.slow
def test_a_receiver_that_always_fails_or_is_gone_is_disabled(
    start_service: StartService, there: Receiver, files: Files
) -> None:
    service = start_service(worker=False, webhook_max_failures=3, **AT_ONCE)
    there.answer = lambda number: (500, {})
    register(service, there.url)
    service.client.post(f"/v1/analyses/{submit(service, files)}/cancel")
    until(lambda: service.client.get("/v1/webhooks").json()["items"][0]["disabled_at"])
    assert len(there.received) == 3
    there.answer = lambda number: (410, {})
    register(service, there.url)
    service.client.post(f"/v1/analyses/{submit(service, files)}/cancel")
    until(lambda: all(each["disabled_at"] for each in service.client.get("/v1/webhooks").json()["items"]))
    assert len(there.received) == 4
    assert service.sql("SELECT count(*) FROM deliveries") == [(0,)]


@pytest.mark.slow
def test_after_the_last_retry_a_delivery_is_given_up(
    start_service: StartService, there: Receiver, files: Files
) -> None:
    service = start_service(worker=False, webhooks_private=True, webhook_retry_seconds=(0.01,))
    there.answer = lambda number: (500, {})
    register(service, there.url)
    service.client.post(f"/v1/analyses/{submit(service, files)}/cancel")
    until(lambda: service.sql("SELECT count(*) FROM deliveries") == [(0,)])
    assert len(there.received) == 2
    assert service.client.get("/v1/webhooks").json()["items"][0]["disabled_at"] is None


def test_a_receiver_that_hangs_holds_up_no_other(start_service: StartService, there: Receiver, files: Files) -> None:
    service = start_service(worker=False, webhook_deliveries=2, webhook_seconds=1, **AT_ONCE)
    release = threading.Event()
    with receiver() as hanging:

        def hang(number: int) -> tuple[int, dict[str, str]]:
            release.wait(10)
            return 200, {}

        hanging.answer = hang
        register(service, hanging.url)
        register(service, there.url)
        for _ in range(2):
            service.client.post(f"/v1/analyses/{submit(service, files)}/cancel")
        # On a busy machine an attempt may take too long, and be repeated.
        until(lambda: len({message.headers["webhook-id"] for message in there.received}) == 2)
        until(lambda: service.client.get("/v1/webhooks").json()["items"][0]["failures"])
        release.set()


def test_nothing_is_sent_to_loopback_unless_it_is_allowed(
    start_service: StartService, there: Receiver, files: Files
) -> None:
    service = start_service(worker=False, webhook_retry_seconds=(0.01,))
    for url in (there.url, there.url.replace("http:", "https:"), "https://169.254.169.254/latest", "https://[::1]/"):
        refused = register(service, url)
        assert (refused.status_code, refused.json()["code"]) == (422, "webhook_refused")
        assert refused.json()["errors"][0]["pointer"] == "/url"
    # One that was registered while it was allowed, or whose name leads there now.
    service.sql(
        "INSERT INTO webhooks (id, tenant, url, events, secret) VALUES (gen_random_uuid(), 'default', %s, %s, %s)",
        there.url.replace("http:", "https:"),
        '["analysis.cancelled"]',
        SECRET,
    )
    service.client.post(f"/v1/analyses/{submit(service, files)}/cancel")
    until(lambda: service.client.get("/v1/webhooks").json()["items"][0]["failures"] == 2)
    assert there.received == []


def test_an_invalid_request_is_told_without_its_secret(api: Service) -> None:
    for pointer, fields in {
        "/secret": {"secret": "whsec_c2hvcnQ="},
        "/events/0": {"events": ["analysis.paused"]},
        "/more": {"more": 1},
    }.items():
        refused = register(api, "https://1.1.1.1/", **fields)
        assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request")
        assert refused.json()["errors"][0]["pointer"] == pointer
        assert str(fields.get("secret", SECRET)) not in refused.text


def test_webhooks_need_an_administrator_are_limited_and_belong_to_a_tenant(start_service: StartService) -> None:
    keys = {"ours": new_key(), "theirs": new_key(), "submit": new_key()}
    entries = ",".join(f"{name}:{hash_key(key)}" for name, key in keys.items() if name != "submit")
    entries += f",ours:{hash_key(keys['submit'])}:submit+read"
    service = start_service(worker=False, api_keys=entries, max_webhooks=1, webhooks_private=True)
    body = {"url": "http://127.0.0.1:9/", "secret": SECRET}

    def ask(name: str, method: str, path: str = "/v1/webhooks", json: Any = None) -> Any:
        with connect(service.url, headers={"Authorization": f"Bearer {keys[name]}"}) as client:
            return client.request(method, path, json=json)

    assert ask("submit", "POST", json=body).json()["code"] == "scope_missing"
    path = ask("ours", "POST", json=body).headers["location"]
    assert ask("ours", "POST", json=body).json()["code"] == "webhooks_full"
    assert ask("submit", "GET", path).status_code == 200
    assert ask("theirs", "GET").json() == {"items": []}
    assert {ask("theirs", method, path).json()["code"] for method in ("GET", "DELETE")} == {"webhook_not_found"}
    assert ask("ours", "DELETE", path).status_code == 204
    assert ask("ours", "GET").json() == {"items": []}
