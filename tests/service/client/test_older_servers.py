"""Both clients against a server of an earlier version, which refuses fields that it does not know."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.scripted import Kind, Scripted, called

from service.client.errors import OlderServerWarning
from wsb import ClientError, Options

ID = "7b0f5c1e-52cf-4c3e-9d5b-0f8a1b5b7a55"
DIGEST = f"sha256:{'0' * 64}"
POST = "POST /v1/analyses"
BOTH = pytest.mark.parametrize("kind", ["blocking", "asynchronous"])


class Older(Scripted):
    """Knows the fields of the first version, and some options."""

    fields = frozenset({"model", "batch", "options", "policy", "labels", "priority", "timeout_s", "fresh"})

    def __init__(self, *unknown_options: str) -> None:
        super().__init__()
        self.unknown_options = unknown_options
        self.on(POST, self.judge)
        self.on("GET /v1/capabilities", httpx.Response(200, json={"engine": {"version": "0.0.7"}}))

    def judge(self, request: httpx.Request) -> httpx.Response:
        wanted = json.loads(request.content)
        unknown = [f"/{name}" for name in wanted if name not in self.fields]
        unknown += [f"/options/{name}" for name in self.unknown_options if name in wanted["options"]]
        if unknown:
            errors = [{"pointer": pointer, "detail": "Extra inputs are not permitted"} for pointer in unknown]
            return httpx.Response(422, json={"detail": "Invalid values.", "code": "invalid_request", "errors": errors})
        empty = dict.fromkeys(("error", "verdict", "reused_from", "finished_at"))
        known = {"id": ID, "state": "queued", "model": DIGEST, "batch": DIGEST, "labels": {}, **empty}
        return httpx.Response(202, json={**known, "created_at": "2026-11-29T12:00:00Z"})

    def taken(self) -> dict[str, Any]:
        """The last request for an analysis."""
        document: dict[str, Any] = json.loads(self.requests(POST)[-1].content)
        return document


@BOTH
def test_names_that_a_server_does_not_know_are_left_out_with_a_warning(kind: Kind, tmp_path: Path) -> None:
    server = Older()
    (tmp_path / "model.onnx").write_bytes(b"model")
    digest = hashlib.sha256(b"model").hexdigest()
    server.on("POST /v1/models", httpx.Response(201, json={"id": f"sha256:{digest}"}))
    with pytest.warns(OlderServerWarning, match=r"version 0\.0\.7.*name, model_name.*the server is older"):
        called(kind, server, "submit", tmp_path / "model.onnx", DIGEST, name="epoch 3", labels={"run": "a"})
    assert server.taken().keys() == {"model", "batch", "options", "labels"}
    assert len({request.headers["idempotency-key"] for request in server.requests(POST)}) == 1


def test_options_that_a_server_does_not_know_are_left_out_if_they_are_not_set() -> None:
    server = Older("basis", "stop")
    with pytest.warns(OlderServerWarning, match=r"options\.basis, options\.stop"):
        called("blocking", server, "submit", DIGEST, DIGEST, Options(seed=3))
    options = server.taken()["options"]
    assert options["seed"] == 3
    assert not {"basis", "stop"} & options.keys()


@BOTH
def test_an_option_that_changes_the_report_is_not_left_out_and_the_error_says_that_the_server_is_older(
    kind: Kind,
) -> None:
    server = Older("basis")
    with pytest.raises(ClientError, match=r"version 0\.0\.7\) does not know options\.basis") as caught:
        called(kind, server, "submit", DIGEST, DIGEST, Options(basis="three_vectors"))
    assert (caught.value.code, caught.value.status) == ("invalid_request", 422)
    assert "Upgrade the server" in caught.value.advice
    assert len(server.requests(POST)) == 1


def test_a_misspelt_option_is_the_error_of_the_server_whatever_its_version() -> None:
    server = Older("sead")
    with pytest.raises(ClientError, match=r"^Invalid values\.\n/options/sead: Extra inputs are not permitted"):
        called("blocking", server, "submit", DIGEST, DIGEST, {"sead": 1})


def test_a_server_that_does_not_tell_its_version_is_named_without_it() -> None:
    server = Older()
    server.on("GET /v1/capabilities", httpx.Response(404))
    with pytest.warns(OlderServerWarning, match="^The server does not know name,"):
        called("blocking", server, "submit", DIGEST, DIGEST, name="mine")
