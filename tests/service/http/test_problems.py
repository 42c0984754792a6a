"""Bad requests: each has its own code, is a problem document, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from support.service import Service, StartService

from service.errors import every_error
from service.server.app import create_app
from service.settings import Settings

TWO_FILES = (('form-data; name="model"', b"x"), ('form-data; name="batch"', b"x"))
UNKNOWN = "sha256:" + "0" * 64


def is_problem(response: httpx.Response, status: int, code: str) -> None:
    problem = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert (response.status_code, problem["code"]) == (status, code), problem
    assert problem["status"] == status
    assert problem["type"] == f"/problems/{code}"
    assert problem["title"]
    assert problem["detail"]


@pytest.mark.parametrize(
    ("content", "status", "code", "pointer"),
    [
        (b"", 400, "malformed_request", None),
        (b"{", 400, "malformed_request", None),
        (b"\xff\xfe", 400, "malformed_request", None),
        (b"[]", 422, "invalid_request", ""),
        (b"{}", 422, "invalid_request", "/model"),
        ({"model": UNKNOWN, "batch": 3}, 422, "invalid_request", "/batch"),
        ({"model": UNKNOWN, "batch": UNKNOWN, "extra": 1}, 422, "invalid_request", "/extra"),
        ({"model": UNKNOWN, "batch": UNKNOWN, "options": {"top": 0}}, 422, "invalid_request", "/options/top"),
        ({"model": UNKNOWN, "batch": UNKNOWN, "options": {"speed": 1}}, 422, "invalid_request", "/options/speed"),
        ({"model": UNKNOWN, "batch": UNKNOWN, "priority": 1000}, 422, "invalid_request", "/priority"),
        ({"model": UNKNOWN, "batch": UNKNOWN, "timeout_s": -1}, 422, "invalid_request", "/timeout_s"),
        ({"model": UNKNOWN, "batch": UNKNOWN, "labels": {"a b": "c"}}, 422, "invalid_request", "/labels/a b/[key]"),
        ({"model": UNKNOWN, "batch": UNKNOWN, "labels": {"a": "\x00"}}, 422, "invalid_request", "/labels/a"),
        ({"model": UNKNOWN, "batch": UNKNOWN, "labels": {"a/b": 3}}, 422, "invalid_request", "/labels/a~1b"),
        ({"model": UNKNOWN, "batch": UNKNOWN}, 404, "blob_not_found", None),
        ({"model": "nonsense", "batch": UNKNOWN}, 404, "blob_not_found", None),
    ],
)
def test_bad_json_says_what_is_wrong_and_where(
    api: Service, content: Any, status: int, code: str, pointer: str | None
) -> None:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    response = api.client.post("/v1/analyses", content=body, headers={"Content-Type": "application/json"})
    is_problem(response, status, code)
    assert pointer is None or response.json()["errors"][0]["pointer"] == pointer


def test_a_time_limit_above_the_services_own_is_refused(
    start_service: StartService, model_bytes: bytes, batch_bytes: bytes
) -> None:
    api = start_service(worker=False, job_seconds=10)
    files = {"model": model_bytes, "batch": batch_bytes, "request": b'{"timeout_s": 11}'}
    response = api.client.post("/v1/analyses", files=files)
    is_problem(response, 422, "invalid_request")
    assert response.json()["errors"] == [{"pointer": "/timeout_s", "detail": "The service's limit is 10 seconds."}]


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_body_of_another_type_is_415(api: Service, media_type: str) -> None:
    response = api.client.post("/v1/analyses", content=b"x", headers={"Content-Type": media_type})
    is_problem(response, 415, "unsupported_media_type")


def form(*parts: tuple[str, bytes], boundary: str = "frontier", end: str = "--frontier--\r\n") -> bytes:
    body = b""
    for disposition, content in parts:
        body += f"--{boundary}\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + content + b"\r\n"
    return body + end.encode()


def named(name: str) -> str:
    return f'form-data; name="{name}"; filename="f"'


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "malformed_request"),
        (b"no boundary at all", 400, "malformed_request"),
        (form((named("model"), b"x"), end=""), 400, "malformed_request"),
        (form(("attachment", b"x")), 400, "malformed_request"),
        (form(("form-data", b"x")), 400, "malformed_request"),
        (form(), 422, "missing_part"),
        (form((named("model"), b"x")), 422, "missing_part"),
        (form((named("model"), b"x"), (named("model"), b"x")), 422, "duplicate_part"),
        (form((named("weights"), b"x")), 422, "unexpected_part"),
        (form((named("../../etc/passwd"), b"x")), 422, "unexpected_part"),
        (form((named("model"), b""), (named("batch"), b"x")), 422, "empty_body"),
        (form((named("model"), b"hello"), (named("batch"), b"x")), 415, "unknown_format"),
        (form((named("request"), b"{"), (named("model"), b"x")), 400, "malformed_request"),
        (form((named("request"), b'{"options": {"top": 0}}')), 422, "invalid_request"),
        (
            form((named("request"), b'{"model": "m"}'), (named("model"), b"x"), (named("batch"), b"x")),
            422,
            "duplicate_part",
        ),
        (form((f"{named('model')}\r\nX-Long: {'y' * 70_000}", b"x")), 400, "malformed_request"),
        (form((named("model") + "".join(f"\r\nX-{i}: y" for i in range(100)), b"x")), 400, "malformed_request"),
    ],
)
def test_a_bad_form_has_its_own_code_and_leaves_nothing(api: Service, body: bytes, status: int, code: str) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=frontier"}
    is_problem(api.client.post("/v1/analyses", content=body, headers=headers), status, code)
    assert api.leftovers() == []
    assert api.stored() == []
    assert api.sql("SELECT count(*) FROM analyses") == [(0,)]


def test_a_form_without_a_boundary_is_malformed(api: Service) -> None:
    headers = {"Content-Type": "multipart/form-data"}
    is_problem(api.client.post("/v1/analyses", content=b"x", headers=headers), 400, "malformed_request")


@pytest.mark.parametrize(
    ("part", "limit"), [("model", "max_model_bytes"), ("batch", "max_batch_bytes"), ("request", "max_request_bytes")]
)
def test_a_part_above_its_limit_is_413_and_leaves_nothing(start_service: StartService, part: str, limit: str) -> None:
    api = start_service(worker=False, **{limit: 2000})
    response = api.client.post("/v1/analyses", files={part: b"x" * 2001})
    is_problem(response, 413, "body_too_large")
    assert api.leftovers() == []


def test_a_body_above_all_limits_together_is_413(start_service: StartService) -> None:
    api = start_service(worker=False, max_model_bytes=2000, max_batch_bytes=2000, max_request_bytes=2000)
    is_problem(api.client.post("/v1/analyses", files={"model": b"x" * 1_000_000}), 413, "body_too_large")


def test_a_json_body_above_the_limit_is_413(start_service: StartService) -> None:
    api = start_service(worker=False, max_request_bytes=2000)
    response = api.client.post("/v1/analyses", content=b" " * 2001, headers={"Content-Type": "application/json"})
    is_problem(response, 413, "body_too_large")


@pytest.mark.parametrize("path", ["/v2/models", "/v1/analyses/x/y/z", "/v1/%2e%2e"])
def test_an_unknown_path_is_not_found(api: Service, path: str) -> None:
    is_problem(api.client.get(path), 404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/v1/models", "GET, POST"),
        ("DELETE", "/v1/analyses", "GET, POST"),
        ("OPTIONS", "/v1/models/sha256:0", "DELETE, GET, HEAD"),
        ("POST", "/healthz", "GET"),
    ],
)
def test_a_method_that_is_not_answered_is_405_with_all_that_are(
    api: Service, method: str, path: str, allowed: str
) -> None:
    response = api.client.request(method, path)
    is_problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == allowed


def test_a_failure_of_our_own_is_a_500_without_a_trace() -> None:
    app = create_app(Settings(_env_file=None))

    @app.get("/broken")
    async def broken() -> None:
        raise ValueError("secret detail")

    async def get() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.get("/broken")

    response = asyncio.run(get())
    is_problem(response, 500, "internal_error")
    assert "secret" not in response.text
    assert response.headers["x-request-id"] in response.json()["advice"]


def test_every_answer_has_a_request_id_the_clients_own_if_it_is_plain(api: Service) -> None:
    assert api.client.get("/healthz", headers={"X-Request-ID": "my-id.1"}).headers["x-request-id"] == "my-id.1"
    assert len(api.client.get("/healthz", headers={"X-Request-ID": "a b"}).headers["x-request-id"]) == 32


def test_no_two_errors_share_a_code() -> None:
    codes = [error.code for error in every_error()]
    assert len(codes) == len(set(codes))
