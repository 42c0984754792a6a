from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
from support.client import connect
from support.forms import full
from support.service import DEADLINE, Service, StartService, npz_batch, until

KINDS = ["models", "batches"]


def pieces(content: bytes, size: int = 10_000) -> Iterator[bytes]:
    """Sent in chunks, without a Content-Length."""
    for start in range(0, len(content), size):
        yield content[start : start + size]


@pytest.fixture
def contents(model_bytes: bytes, batch_bytes: bytes) -> dict[str, bytes]:
    return {"models": model_bytes, "batches": batch_bytes}


@pytest.mark.parametrize(("kind", "form"), [("models", "onnx"), ("batches", "npz")])
def test_new_content_is_answered_201_with_its_hash(
    api: Service, contents: dict[str, bytes], kind: str, form: str
) -> None:
    response = api.client.post(f"/v1/{kind}", content=contents[kind])
    body = response.json()
    assert response.status_code == 201
    assert body["id"] == "sha256:" + hashlib.sha256(contents[kind]).hexdigest()
    assert (body["size"], body["format"]) == (len(contents[kind]), form)
    assert response.headers["location"] == f"/v1/{kind}/{body['id']}"


@pytest.mark.parametrize("kind", KINDS)
def test_known_content_is_answered_200_and_stored_once(api: Service, contents: dict[str, bytes], kind: str) -> None:
    first = api.client.post(f"/v1/{kind}", content=contents[kind])
    again = api.client.post(f"/v1/{kind}", content=pieces(contents[kind]))
    assert again.status_code == 200
    assert again.json() == first.json()
    assert len(api.stored()) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_stored_content_can_be_described_asked_for_and_deleted(
    api: Service, contents: dict[str, bytes], kind: str
) -> None:
    created = api.client.post(f"/v1/{kind}", content=contents[kind]).json()
    path = f"/v1/{kind}/{created['id']}"
    assert api.client.get(path).json() == created
    assert api.client.head(path).status_code == 200
    assert api.client.delete(path).status_code == 204
    assert api.client.head(path).status_code == 404
    assert api.client.delete(path).json()["code"] == "blob_not_found"
    assert api.stored() == []


def test_content_that_was_deleted_can_be_uploaded_again(api: Service, model_bytes: bytes) -> None:
    for _ in range(2):
        created = api.client.post("/v1/models", content=model_bytes)
        assert created.status_code == 201
        assert api.client.delete(created.headers["location"]).status_code == 204


def test_a_file_that_was_lost_is_put_back_by_the_next_upload(api: Service, model_bytes: bytes) -> None:
    api.client.post("/v1/models", content=model_bytes)
    api.stored()[0].unlink()
    assert api.client.post("/v1/models", content=model_bytes).status_code == 200
    assert [path.read_bytes() for path in api.stored()] == [model_bytes]


@pytest.mark.parametrize(
    "identifier", ["sha256:" + "0" * 64, "sha256:short", "nonsense", "sha256:%00", "..%2f..%2fetc"]
)
def test_an_identifier_of_nothing_is_not_found(api: Service, identifier: str) -> None:
    response = api.client.get(f"/v1/models/{identifier}")
    assert (response.status_code, response.headers["content-type"]) == (404, "application/problem+json")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"", 422, "empty_body"),
        (b"neither of them", 415, "unknown_format"),
        (b"PK\x03\x04 and then nothing", 422, "truncated_file"),
    ],
)
def test_bad_content_has_its_own_code_and_leaves_nothing(
    api: Service, kind: str, content: bytes, status: int, code: str
) -> None:
    response = api.client.post(f"/v1/{kind}", content=content)
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert api.leftovers() == []
    assert api.stored() == []


def test_a_compressed_body_is_refused(api: Service, model_bytes: bytes) -> None:
    response = api.client.post("/v1/models", content=model_bytes, headers={"Content-Encoding": "gzip"})
    assert (response.status_code, response.json()["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_above_the_limit_is_refused_and_leaves_nothing(start_service: StartService, announced: bool) -> None:
    service = start_service(worker=False, max_model_bytes=50_000)
    content = b"\x08" * 3_000_000
    response = service.client.post("/v1/models", content=content if announced else pieces(content))
    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")
    assert response.json()["details"] == {"limit": 50_000}
    assert service.leftovers() == []


def test_an_announced_body_above_the_limit_is_refused_before_it_is_sent(start_service: StartService) -> None:
    service = start_service(worker=False, max_model_bytes=50_000)
    with socket.create_connection((urlsplit(service.url).hostname, urlsplit(service.url).port)) as connection:
        head = "POST /v1/models HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\nExpect: 100-continue\r\n\r\n"
        connection.sendall(head.encode())
        connection.settimeout(DEADLINE)
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_a_client_that_goes_away_leaves_nothing(api: Service) -> None:
    connection = socket.create_connection((urlsplit(api.url).hostname, urlsplit(api.url).port))
    connection.sendall(b"POST /v1/models HTTP/1.1\r\nHost: x\r\nContent-Length: 90000\r\n\r\n" + b"x" * 10_000)
    until(api.leftovers)
    connection.close()
    until(lambda: not api.leftovers())
    assert api.client.get("/healthz").status_code == 200


def test_deleting_one_file_leaves_others(api: Service, model_bytes: bytes, batch_bytes: bytes) -> None:
    api.client.post("/v1/models", content=model_bytes)
    batch = api.client.post("/v1/batches", content=batch_bytes)
    assert api.client.delete(batch.headers["location"]).status_code == 204
    assert len(api.stored()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [3, full(10)])
def test_uploads_and_deletions_of_the_same_content_at_the_same_time_never_lose_its_file(
    api: Service, model_bytes: bytes, rounds: int
) -> None:
    path = f"/v1/models/sha256:{hashlib.sha256(model_bytes).hexdigest()}"

    def churn(_: int) -> list[int]:
        with connect(api.url, timeout=60) as client:
            codes = []
            for _ in range(rounds):
                codes.append(client.post("/v1/models", content=model_bytes).status_code)
                codes.append(client.delete(path).status_code)
            return codes

    with ThreadPoolExecutor(8) as pool:
        codes = {code for result in pool.map(churn, range(8)) for code in result}
    assert codes <= {200, 201, 204, 404}
    known = api.client.head(path).status_code == 200
    assert len(api.stored()) == known
    api.client.post("/v1/models", content=model_bytes)
    assert [file.read_bytes() for file in api.stored()] == [model_bytes]


def test_stored_files_are_listed_newest_first_on_pages_that_follow_each_other(api: Service, model_bytes: bytes) -> None:
    sent = [api.client.post("/v1/batches", content=npz_batch(seed=seed)).json() for seed in range(5)]
    api.client.post("/v1/models", content=model_bytes)
    # Two that were stored at the same moment are on one page or the other.
    api.sql("UPDATE blobs SET created_at = '2026-01-01' WHERE sha256 = ANY(%s)", [each["id"][7:] for each in sent[1:3]])
    api.client.post("/v1/batches", content=npz_batch(seed=0))  # sent again, which changes no order
    listed = api.client.get("/v1/batches").json()
    assert [item["id"] for item in listed["items"][:3]] == [sent[i]["id"] for i in (4, 3, 0)]
    for limit in (1, 2):
        seen, path = [], f"/v1/batches?limit={limit}"
        while path is not None:
            page = api.client.get(path).json()
            seen, path = [*seen, *page["items"]], page["next"]
        assert seen == listed["items"]
    assert [item["format"] for item in api.client.get("/v1/models").json()["items"]] == ["onnx"]
    for query in ("after=x", "after=1-" + "0" * 63, "limit=0"):
        assert api.client.get(f"/v1/models?{query}").json()["code"] == "invalid_request"
