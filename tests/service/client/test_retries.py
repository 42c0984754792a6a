"""What the client does while a server is busy, away, or loses what it had."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from support.external import combined, external_mlp
from support.forms import full
from support.scripted import Kind, Scripted, called, problem, stream

from service.client import asynchronous, blocking, connection, retries
from service.client.effects import Reply
from service.client.retries import delay, retry_after
from wsb import AsyncClient, Client, ClientError

ID = "7b0f5c1e-52cf-4c3e-9d5b-0f8a1b5b7a55"
EVENTS, GET, POST = f"GET /v1/analyses/{ID}/events", f"GET /v1/analyses/{ID}", "POST /v1/analyses"
MODEL, BATCH = b"model", b"batch"
BOTH = pytest.mark.parametrize("kind", ["blocking", "asynchronous"])
EITHER = pytest.mark.parametrize("kind", [full("blocking"), "asynchronous"])


def named(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def analysis(state: str = "queued", **fields: Any) -> dict[str, Any]:
    finished = datetime.now(UTC).isoformat() if state in ("succeeded", "failed") else None
    empty = dict.fromkeys(("error", "verdict", "reused_from", "progress"))
    known = {"id": ID, "state": state, "model": named(MODEL), "batch": named(BATCH), "labels": {}, **empty}
    return {**known, "created_at": datetime.now(UTC).isoformat(), "finished_at": finished, **fields}


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that clients have waited, which they do not really wait."""
    found: list[float] = []

    async def sleep(seconds: float) -> None:
        found.append(seconds)

    # Only for the client: servers of other tests live on in this process.
    monkeypatch.setattr(blocking, "time", SimpleNamespace(sleep=found.append))
    monkeypatch.setattr(asynchronous, "asyncio", SimpleNamespace(sleep=sleep, to_thread=asyncio.to_thread))
    return found


@pytest.fixture
def server() -> Scripted:
    """Has no files, takes any, and queues the analysis."""
    scripted = Scripted()
    scripted.on("POST /v1/models", httpx.Response(201, json={"id": named(MODEL)}))
    scripted.on("POST /v1/batches", httpx.Response(201, json={"id": named(BATCH)}))
    scripted.on(POST, httpx.Response(202, json=analysis()))
    return scripted


@BOTH
def test_a_busy_or_lost_server_is_asked_again_for_the_same_analysis(
    server: Scripted, pauses: list[float], kind: Kind
) -> None:
    busy = problem(429, "queue_full", **{"retry-after": "7"})
    server.on(POST, busy, httpx.ReadError("lost"), problem(503, "database_unavailable"), *server._answers[POST])
    assert str(called(kind, server, "submit", MODEL, BATCH).id) == ID
    posts = server.requests(POST)
    assert len(posts) == 4
    assert len({post.headers["idempotency-key"] for post in posts}) == 1
    assert [request.content for request in server.requests("POST /v1/models")] == [MODEL]
    first, *others = pauses
    assert 7 < first < 7.2
    assert len(others) == 2
    assert all(0.5 <= other <= 4 for other in others)


@EITHER
def test_what_a_call_is_given_is_what_the_server_gets(server: Scripted, kind: Kind) -> None:
    settings = {
        "labels": {"run": "a"},
        "name": "mine",
        "priority": 3,
        "timeout_s": 7.5,
        "fresh": True,
        "baseline": "main",
    }
    rules = {"rule": [{"metric": "loss.value", "op": "<=", "limit": 1}]}
    called(kind, server, "submit", MODEL, BATCH, {"seed": 4}, rules, **settings)
    expected = {"model": named(MODEL), "batch": named(BATCH), "options": {"seed": 4}, "policy": rules, **settings}
    assert json.loads(server.requests(POST)[0].content) == expected


def test_both_clients_have_the_same_methods_with_the_same_parameters() -> None:
    def methods(client: type) -> dict[str, dict[str, Any]]:
        found = {name: value for name, value in vars(client).items() if not name.startswith("_") and callable(value)}
        return {
            name.removeprefix("a") if name == "aclose" else name: dict(inspect.signature(value).parameters)
            for name, value in found.items()
        }

    assert methods(Client) == methods(AsyncClient)
    own = inspect.signature(Client).parameters.keys()
    assert own == inspect.signature(AsyncClient).parameters.keys()


def test_two_analyses_have_keys_of_their_own_unless_one_is_given(server: Scripted) -> None:
    for key in (None, None, "mine"):
        called("blocking", server, "submit", MODEL, BATCH, idempotency_key=key)
    keys = [request.headers["idempotency-key"] for request in server.requests(POST)]
    assert len(set(keys)) == 3
    assert keys[2] == "mine"


@pytest.mark.parametrize("code", ["queue_full", full("tenant_queue_full")])
def test_a_server_that_stays_busy_is_given_up_within_the_limit(
    server: Scripted, pauses: list[float], code: str
) -> None:
    server.on(POST, problem(429, code, **{"retry-after": "100"}))
    with pytest.raises(ClientError, match="Not so") as caught:
        called("blocking", server, "submit", MODEL, BATCH)
    assert (caught.value.code, caught.value.status, pauses) == (code, 429, [])
    server.on(POST, problem(429, code, **{"retry-after": "9"}))
    with pytest.raises(ClientError, match="Not so"):
        called("blocking", server, "submit", MODEL, BATCH, within=5)
    assert pauses == []


def test_a_busy_server_may_be_given_more_time_than_one_that_is_away(server: Scripted, pauses: list[float]) -> None:
    busy = problem(429, "queue_full", **{"retry-after": "90"})
    seen: list[dict[str, Any]] = []
    with (
        httpx.Client(transport=httpx.MockTransport(server.sync)) as http,
        Client("http://there", http=http, busy_seconds=100) as client,
    ):
        server.on(POST, busy, busy, httpx.Response(202, json=analysis()))
        assert str(client.submit(MODEL, BATCH, progress=seen.append).id) == ID
        assert [pause // 1 for pause in pauses] == [90, 90]
        assert [message for message in seen if message["phase"] == "busy"] == 2 * [
            {"phase": "busy", "reason": "Not so."}
        ]
        server.on(POST, problem(429, "queue_full", **{"retry-after": "101"}))
        with pytest.raises(ClientError, match="Not so") as caught:
            client.submit(MODEL, BATCH)
        assert caught.value.retry_after == 101
        server.on(POST, problem(503, "database_unavailable", **{"retry-after": "61"}))
        with pytest.raises(ClientError, match="Not so"):
            client.submit(MODEL, BATCH)
    assert len(pauses) == 2


def test_the_time_that_a_server_was_busy_does_not_count_once_it_is_away(
    server: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: list[float] = []
    monkeypatch.setattr(blocking, "time", SimpleNamespace(sleep=passed.append))
    monkeypatch.setattr(retries, "time", SimpleNamespace(monotonic=lambda: sum(passed)))
    busy = problem(429, "queue_full", **{"retry-after": "90"})
    server.on(POST, busy, busy, httpx.ReadError("lost"), httpx.Response(202, json=analysis()))
    with (
        httpx.Client(transport=httpx.MockTransport(server.sync)) as http,
        Client("http://there", http=http, busy_seconds=1000) as client,
    ):
        assert str(client.submit(MODEL, BATCH).id) == ID
    assert len(passed) == 3


@EITHER
def test_a_server_that_has_never_answered_is_not_waited_for(pauses: list[float], kind: Kind) -> None:
    server = Scripted()
    server.on(GET, httpx.ConnectError("connection refused"))
    with pytest.raises(ClientError, match="http://there can't be reached: connection refused") as caught:
        called(kind, server, "get", ID)
    assert (caught.value.code, caught.value.status, pauses) == ("unreachable", None, [])


def test_an_error_is_told_at_once_with_all_that_the_problem_says(server: Scripted, pauses: list[float]) -> None:
    body = {
        "detail": "The request has invalid values.",
        "code": "invalid_request",
        "advice": "Send others.",
        "errors": [{"pointer": "/options/seed", "detail": "Too small"}],
        "analysis": ID,
        "details": {"limit": 3},
    }
    server.on(POST, httpx.Response(422, json=body))
    with pytest.raises(ClientError) as caught:
        called("blocking", server, "submit", MODEL, BATCH)
    error = caught.value
    assert (error.code, error.status, error.detail) == ("invalid_request", 422, body["detail"])
    assert (error.advice, error.analysis, error.details) == ("Send others.", ID, {"limit": 3})
    assert [(item.pointer, item.detail) for item in error.errors] == [("/options/seed", "Too small")]
    assert str(error).splitlines() == [body["detail"], "/options/seed: Too small [invalid_request]", "Send others."]
    assert pauses == []


def test_an_answer_that_is_no_problem_is_an_error_all_the_same(server: Scripted) -> None:
    server.on(POST, httpx.Response(403, text="<h1>Forbidden</h1>"))
    with pytest.raises(ClientError, match="The server answered 403") as caught:
        called("blocking", server, "submit", MODEL, BATCH)
    assert caught.value.code == "http_403"
    server.on(GET, httpx.Response(200, text="<h1>Welcome</h1>"))
    with pytest.raises(ClientError, match="can't be read"):
        called("blocking", server, "get", ID)


@EITHER
def test_files_that_a_server_loses_are_sent_after_all(server: Scripted, kind: Kind, tmp_path: Path) -> None:
    model, data = external_mlp("m.onnx.data", "part/second.bin")
    for name, content in {"m.onnx": model, **data}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    identifier = combined(model, data)
    here = httpx.Response(200, json={"id": identifier})
    server.on(f"GET /v1/models/{identifier}", here, problem(404, "blob_not_found"))
    server.on("POST /v1/models", httpx.Response(201, json={"id": identifier}))
    server.on(POST, problem(404, "blob_not_found"), httpx.Response(202, json=analysis()))
    called(kind, server, "submit", tmp_path / "m.onnx", BATCH)
    [sent] = server.requests("POST /v1/models")
    assert all(content in sent.content for content in [model, *data.values()])
    assert b'name="model_data"; filename="part/second.bin"' in sent.content
    assert len(server.requests(POST)) == 2


@EITHER
def test_the_progress_of_a_large_upload_is_told(server: Scripted, kind: Kind, tmp_path: Path) -> None:
    large = bytes(5 << 20)
    (tmp_path / "batch").write_bytes(large)
    server.on("POST /v1/batches", httpx.Response(201, json={"id": named(large)}))
    seen: list[dict[str, Any]] = []
    called(kind, server, "submit", MODEL, tmp_path / "batch", progress=seen.append)
    fractions = [message["fraction"] for message in seen]
    assert len(fractions) == 5
    assert fractions == sorted(fractions)
    assert 0.9 < fractions[-1] <= 1
    assert server.requests("POST /v1/batches")[0].headers["content-length"] == str(5 << 20)


@BOTH
def test_a_broken_stream_is_resumed_after_the_last_event(server: Scripted, pauses: list[float], kind: Kind) -> None:
    first = stream("retry: 2000", ": hello", "event: state", f'data: {{"id": "{ID}"}}', "id: 4", "", "event: prog")
    rest = stream("event: end", 'data: {"state": "succeeded"}', "id: 5", "", complete=True)
    server.on(EVENTS, first, rest)
    events = called(kind, server, "events", ID)
    assert [(event.name, event.id, event.data) for event in events] == [
        ("state", "4", {"id": ID}),
        ("end", "5", {"state": "succeeded"}),
    ]
    assert [request.headers.get("last-event-id") for request in server.seen] == [None, "4"]
    assert len(pauses) == 1


@pytest.mark.parametrize(
    "refusal",
    [
        problem(503, "too_many_streams"),
        full(httpx.ConnectError("refused")),
        httpx.Response(200, text="a proxy's page"),
    ],
)
@BOTH
def test_without_streams_the_client_polls(server: Scripted, pauses: list[float], kind: Kind, refusal: Any) -> None:
    server.on("GET /v1/capabilities", httpx.Response(200, json={}))
    states = [httpx.Response(200, json=analysis("running"), headers={"etag": '"2-x"'}), httpx.Response(304)]
    ended = httpx.Response(200, json=analysis("succeeded"), headers={"etag": '"3-x"'})
    server.on(GET, *states, ended)
    server.on(EVENTS, stream(": hello"), refusal)
    found = called(kind, server, "wait", ID)
    assert found.state == "succeeded"
    assert [request.headers.get("if-none-match") for request in server.requests(GET)] == [None, '"2-x"', '"2-x"', None]
    assert len(server.requests(EVENTS)) == 2


def test_a_request_takes_no_longer_than_the_call_may(server: Scripted) -> None:
    called("blocking", server, "submit", MODEL, BATCH, within=5)
    called("blocking", server, "submit", MODEL, BATCH)
    first, second = (request.extensions["timeout"]["read"] for request in server.requests(POST))
    assert first <= 5 < second


def test_waiting_ends_with_the_time_that_it_has(server: Scripted) -> None:
    server.on(EVENTS, stream(": hello", ": hello", complete=True))
    server.on(GET, httpx.Response(200, json=analysis("running")))
    with pytest.raises(ClientError) as caught:
        called("blocking", server, "wait", ID, within=0.2)
    assert (caught.value.code, caught.value.analysis) == ("deadline_exceeded", ID)


@EITHER
def test_an_analysis_without_a_report_is_an_error_with_its_code(server: Scripted, kind: Kind) -> None:
    error = {"code": "unsupported_operator", "message": "node 3", "advice": "Export again.", "details": {"node": 3}}
    server.on(EVENTS, stream("event: end", 'data: {"state": "failed"}', "id: 3", "", complete=True))
    server.on(GET, httpx.Response(200, json=analysis("failed", error=error)))
    with pytest.raises(ClientError) as caught:
        called(kind, server, "analyze", MODEL, BATCH)
    found = caught.value
    assert (found.code, found.state, found.status, found.analysis) == ("unsupported_operator", "failed", None, ID)
    assert (found.detail, found.advice, found.details) == ("node 3", "Export again.", {"node": 3})


def test_pauses_grow_and_differ_between_clients() -> None:
    assert len({delay(3) for _ in range(20)}) > 10
    assert all(1.0 <= delay(3) <= 2.0 for _ in range(20))
    assert all(10.0 <= delay(40) <= 20.0 for _ in range(20))


def test_the_server_may_say_when_by_a_date() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    found = [retry_after(Reply(429, {"retry-after": text})) for text in (later, "3", "soon")]
    assert found[0] is not None
    assert 28 < found[0] <= 30
    assert found[1:] == [3.0, None]


@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_without_httpx_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch, client: type) -> None:
    monkeypatch.setattr(connection, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"needs httpx, which is not installed: pip install httpx\.$"):
        client("http://there")


def test_a_key_that_is_none_is_refused_and_not_repeated() -> None:
    with pytest.raises(ValueError, match="characters that no key has") as caught:
        Client("http://there", "secret\nkey")
    assert "secret" not in str(caught.value)
