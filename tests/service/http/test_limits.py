"""Limits of time, number and room: what a client runs into that is slow, or one of too many."""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from support.service import DEADLINE, Service, StartService, until

from service.keys import hash_key, new_key
from service.storage import store
from service.storage.folder import FolderStore
from service.storage.store import InsufficientStorageError


class Connection:
    """A connection that says byte by byte what it is told to."""

    def __init__(self, service: Service) -> None:
        address = urlsplit(service.url)
        self.socket = socket.create_connection((str(address.hostname), int(address.port or 0)), timeout=DEADLINE)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def post(self, path: str, length: int, *headers: str) -> None:
        head = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {length}", *headers]
        self.send("\r\n".join([*head, "", ""]).encode())

    def trickle(self) -> None:
        """A byte now and then, until there is an answer or the end."""
        deadline = time.monotonic() + DEADLINE
        while not select.select([self.socket], [], [], 0.02)[0]:
            assert time.monotonic() < deadline, "the server did not lose its patience"
            try:
                self.send(b"x")
            except (BrokenPipeError, ConnectionResetError):
                return

    def rest(self) -> bytes:
        """All that comes until the server closes."""
        received = b""
        try:
            while data := self.socket.recv(65536):
                received += data
        except ConnectionResetError:
            pass
        return received

    def answer(self) -> tuple[int, dict[str, str], Any]:
        """Status, headers and body of the one answer after which the server closes."""
        head, _, body = self.rest().partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        return int(first.split()[1]), headers, json.loads(body)


@pytest.fixture
def connections() -> Iterator[list[Connection]]:
    opened: list[Connection] = []
    yield opened
    for connection in opened:
        connection.socket.close()


def connect(service: Service, connections: list[Connection]) -> Connection:
    connections.append(Connection(service))
    return connections[-1]


def form(model: bytes) -> dict[str, Any]:
    return {"files": {"model": model, "batch": model}}


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/v1/models", "/v1/batches", "/v1/analyses"])
def test_one_upload_too_many_is_refused_and_there_is_room_again_when_another_ends(
    start_service: StartService, connections: list[Connection], model_bytes: bytes, path: str
) -> None:
    api = start_service(worker=False, max_uploads=1)
    first = connect(api, connections)
    first.post("/v1/models", len(model_bytes), "Connection: close")
    first.send(model_bytes[:10])
    until(api.leftovers)
    content: dict[str, Any] = form(model_bytes) if path == "/v1/analyses" else {"content": model_bytes}
    refused = api.client.post(path, **content)
    assert (refused.status_code, refused.json()["code"]) == (503, "too_many_uploads")
    assert refused.headers["retry-after"] == "5"
    first.send(model_bytes[10:])
    assert first.answer()[0] == 201
    assert api.client.post("/v1/models", content=model_bytes).status_code == 200


def test_an_upload_too_many_is_refused_before_its_body_is_sent(
    start_service: StartService, connections: list[Connection]
) -> None:
    api = start_service(worker=False, max_uploads=1)
    connect(api, connections).post("/v1/models", 100)
    until(api.leftovers)
    second = connect(api, connections)
    second.post("/v1/models", 100, "Expect: 100-continue", "Connection: close")
    assert second.answer()[0] == 503


def test_slow_uploads_of_one_tenant_leave_room_for_another(
    start_service: StartService, connections: list[Connection], model_bytes: bytes
) -> None:
    keys = {name: new_key() for name in ("slow", "other")}
    settings = ",".join(f"{name}:{hash_key(key)}" for name, key in keys.items())
    api = start_service(worker=False, max_uploads=4, api_keys=settings)
    headers = {name: {"Authorization": f"Bearer {key}"} for name, key in keys.items()}
    for count in (1, 2):
        connect(api, connections).post("/v1/models", 100, f"Authorization: Bearer {keys['slow']}")
        until(lambda: len(api.leftovers()) == count)  # noqa: B023
    refused = api.client.post("/v1/models", content=model_bytes, headers=headers["slow"])
    assert (refused.status_code, refused.json()["code"]) == (503, "too_many_uploads")
    assert api.client.post("/v1/models", content=model_bytes, headers=headers["other"]).status_code == 201


def test_an_upload_whose_client_goes_away_makes_room(
    start_service: StartService, connections: list[Connection], model_bytes: bytes
) -> None:
    api = start_service(worker=False, max_uploads=1)
    first = connect(api, connections)
    first.post("/v1/models", 100)
    until(api.leftovers)
    first.socket.close()
    until(lambda: api.client.post("/v1/models", content=model_bytes).status_code == 201)


def test_a_request_that_stores_nothing_is_no_upload(start_service: StartService, connections: list[Connection]) -> None:
    api = start_service(worker=False, max_uploads=1)
    connect(api, connections).post("/v1/models", 100)
    until(api.leftovers)
    body = {"model": "sha256:0", "batch": "sha256:0"}
    assert api.client.post("/v1/analyses", json=body).json()["code"] == "blob_not_found"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/v1/models", ()),
        ("/v1/analyses", ("Content-Type: application/json",)),
        ("/v1/analyses", ("Content-Type: multipart/form-data; boundary=b",)),
    ],
)
@pytest.mark.parametrize("silent", [True, False])
def test_a_body_that_comes_too_slowly_is_ended(
    start_service: StartService, connections: list[Connection], path: str, headers: tuple[str, ...], silent: bool
) -> None:
    api = start_service(worker=False, upload_idle_seconds=0.3, upload_min_bytes_per_second=100_000)
    connection = connect(api, connections)
    connection.post(path, 50_000, *headers)
    connection.send(b"--b\r\n" if "multipart" in str(headers) else b"[1,")
    if not silent:
        connection.trickle()
    status, answered, problem = connection.answer()
    assert (status, problem["code"], answered["connection"]) == (408, "upload_too_slow", "close")
    assert api.leftovers() == []


def test_a_slow_body_that_keeps_the_least_rate_is_taken(
    start_service: StartService, connections: list[Connection], model_bytes: bytes
) -> None:
    api = start_service(worker=False, upload_idle_seconds=1, upload_min_bytes_per_second=1)
    connection = connect(api, connections)
    connection.post("/v1/models", len(model_bytes), "Connection: close")
    started = time.monotonic()
    piece = -(-len(model_bytes) // 20)
    for start in range(0, len(model_bytes), piece):
        connection.send(model_bytes[start : start + piece])
        time.sleep(0.06)  # the client's own slowness is what is tested
    assert time.monotonic() - started > 1
    assert connection.answer()[0] == 201


def test_a_client_that_does_not_take_its_response_is_cut_off(
    start_service: StartService, connections: list[Connection]
) -> None:
    api = start_service(worker=False, download_idle_seconds=0.2)
    stuck = connect(api, connections)
    with suppress(ConnectionError):  # which is what the client sees in the end
        for _ in range(1000):  # as many as the buffers between them hold, and more
            stuck.send(b"GET /static/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n")
        stuck.socket.settimeout(DEADLINE)
        until(lambda: stuck.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
    assert api.client.get("/healthz").status_code == 200


def test_a_client_that_takes_its_response_slowly_gets_all_of_it(
    start_service: StartService, connections: list[Connection]
) -> None:
    api = start_service(worker=False, download_idle_seconds=0.1, download_min_bytes_per_second=1)
    path = "/static/swagger-ui-bundle.js"
    slow = connect(api, connections)
    slow.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode() * 7)
    slow.send(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    received = 0
    while data := slow.socket.recv(1 << 20):
        received += len(data)
        time.sleep(0.02)  # the client's own slowness is what is tested
    assert received > 8 * len(api.client.get(path).content)


def test_a_connection_too_many_is_refused(start_service: StartService, connections: list[Connection]) -> None:
    api = start_service(worker=False, max_connections=2)
    for _ in range(2):
        connect(api, connections).send(b"GET")
    status, headers, problem = connect(api, connections).answer()
    assert (status, problem["code"], headers["connection"]) == (503, "too_many_connections", "close")


@pytest.mark.slow
@pytest.mark.parametrize("before", [b"", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_a_head_that_does_not_come_in_time_closes_the_connection(
    start_service: StartService, connections: list[Connection], before: bytes
) -> None:
    api = start_service(worker=False, request_head_seconds=0.3, keep_alive_seconds=1)
    silent, trickling = connect(api, connections), connect(api, connections)
    for connection in (silent, trickling):
        connection.send(before)
    trickling.send(before + b"GET /healthz HTTP/1.1\r\nX-Header: ")
    if before:
        until(lambda: trickling.socket.recv(65536, socket.MSG_PEEK).count(b'{"status":"ok"}') == 2)
        trickling.socket.recv(65536)
    trickling.trickle()
    assert trickling.rest() == b""
    assert silent.rest().count(b"HTTP/1.1") == (1 if before else 0)


def test_a_connection_stays_open_between_requests_for_as_long_as_is_set(
    start_service: StartService, connections: list[Connection]
) -> None:
    request = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    short, long = (connect(start_service(worker=False, keep_alive_seconds=n), connections) for n in (1, 60))
    for connection in (short, long):
        connection.send(request)
    assert short.rest().count(b"HTTP/1.1 200 ") == 1
    long.send(request)
    until(lambda: long.socket.recv(65536, socket.MSG_PEEK).count(b"HTTP/1.1 200 ") == 2)


def test_the_time_for_the_head_does_not_end_what_comes_after_it(
    start_service: StartService, connections: list[Connection], model_bytes: bytes, batch_bytes: bytes
) -> None:
    api = start_service(worker=False, request_head_seconds=0.5, max_wait_seconds=1)
    connection = connect(api, connections)
    connection.post("/v1/models", len(model_bytes))
    connection.send(model_bytes[:10])
    assert not select.select([connection.socket], [], [], 0.8)[0]
    connection.send(model_bytes[10:])
    assert connection.socket.recv(65536).startswith(b"HTTP/1.1 201 ")
    files = {"model": model_bytes, "batch": batch_bytes}
    assert api.client.post("/v1/analyses", files=files, headers={"Prefer": "wait=1"}).status_code == 202


def test_a_disk_without_room_is_507_before_the_body_is_sent(
    start_service: StartService, connections: list[Connection]
) -> None:
    api = start_service(worker=False, min_free_bytes=1 << 60)
    connection = connect(api, connections)
    connection.post("/v1/models", 100, "Expect: 100-continue", "Connection: close")
    status, _, problem = connection.answer()
    assert (status, problem["code"]) == (507, "insufficient_storage")


def free_bytes(monkeypatch: pytest.MonkeyPatch, *values: int) -> None:
    left = iter(values)

    class Usage:
        @property
        def free(self) -> int:
            return next(left)

    monkeypatch.setattr(store.shutil, "disk_usage", lambda _: Usage())


def test_what_an_upload_announces_must_leave_the_room_that_is_kept_free(
    start_service: StartService, monkeypatch: pytest.MonkeyPatch, model_bytes: bytes
) -> None:
    size = len(model_bytes)
    api = start_service(worker=False, min_free_bytes=1000)
    free_bytes(monkeypatch, 999 + size, 1000 + size)
    assert api.client.post("/v1/models", content=model_bytes).status_code == 507
    assert api.client.post("/v1/models", content=model_bytes).status_code == 201


def test_a_disk_that_fills_up_ends_an_upload_of_unknown_length(
    start_service: StartService, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = start_service(worker=False, min_free_bytes=1000)
    mebibyte = b"x" * (1 << 20)
    free_bytes(monkeypatch, 1 << 40, 1 << 40, 1000)
    response = api.client.post("/v1/models", content=(mebibyte for _ in range(40)))
    assert (response.status_code, response.json()["code"]) == (507, "insufficient_storage")
    assert api.leftovers() == []


@pytest.mark.parametrize("path", ["/v1/models", "/v1/analyses"])
def test_a_full_disk_is_507_and_leaves_nothing(
    start_service: StartService, monkeypatch: pytest.MonkeyPatch, model_bytes: bytes, path: str
) -> None:
    api = start_service(worker=False)
    make = tempfile.mkstemp

    def full(**where: Any) -> tuple[int, str]:
        descriptor, name = make(**where)
        os.close(descriptor)
        return os.open("/dev/full", os.O_WRONLY), name

    monkeypatch.setattr(store.tempfile, "mkstemp", full)
    content: dict[str, Any] = form(model_bytes) if path == "/v1/analyses" else {"content": model_bytes}
    response = api.client.post(path, **content)
    assert (response.status_code, response.json()["code"]) == (507, "insufficient_storage")
    assert api.leftovers() == []
    assert api.stored() == []


def test_a_disk_that_is_full_when_an_upload_is_put_in_its_place_is_507(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store.os, "fsync", full)
    with FolderStore(tmp_path) as blobs, blobs.receive("models") as upload:
        upload.write(b"content")
        with pytest.raises(InsufficientStorageError):
            blobs._keep(upload, None)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "header"),
    [({"max_part_header_bytes": 100}, "X-Long: " + "y" * 200), ({"max_part_headers": 2}, "A: 1\r\nB: 2")],
)
def test_the_headers_of_a_part_are_limited(start_service: StartService, setting: dict[str, int], header: str) -> None:
    api = start_service(worker=False, **setting)
    body = f'--b\r\nContent-Disposition: form-data; name="model"\r\n{header}\r\n\r\nx\r\n--b--\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    response = api.client.post("/v1/analyses", content=body.encode(), headers=headers)
    assert (response.status_code, response.json()["code"]) == (400, "malformed_request")


@pytest.mark.parametrize("opening", ["[", '{"model":', '{"options":{"a":'])
@pytest.mark.parametrize("as_part", [True, False])
def test_json_of_a_hundred_thousand_levels_is_malformed_at_once(api: Service, opening: str, as_part: bool) -> None:
    body = opening.encode() + b"[" * 100_000
    started = time.process_time()  # the server is this process
    if as_part:
        response = api.client.post("/v1/analyses", files={"request": body})
    else:
        response = api.client.post("/v1/analyses", content=body, headers={"Content-Type": "application/json"})
    assert (response.status_code, response.json()["code"]) == (400, "malformed_request")
    assert "more than 20000 lists and objects" in response.json()["detail"]
    assert time.process_time() - started < 5
