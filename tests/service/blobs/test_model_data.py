"""Models that keep their weights in further files: what is stored, what is refused, and what is deleted with them."""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import pytest
from support.client import connect
from support.external import DATA, combined, external_mlp, form, sha256
from support.forms import full
from support.objects import Bucket, bucket
from support.service import Service, StartService, onnx_mlp, until

from service.keys import hash_key, new_key
from service.server.app import open_context
from service.server.retention import sweep

MODEL, FILES = external_mlp()
PATH = f"/v1/models/{combined(MODEL, FILES)}"


def rows(api: Service) -> int:
    return int(api.sql("SELECT count(*) FROM blobs")[0][0])


def raw(*parts: tuple[bytes, bytes], end: bytes = b"--b--\r\n") -> dict[str, object]:
    """A multipart request, from the disposition and content of each part."""
    body = b"".join(b"--b\r\nContent-Disposition: " + head + b"\r\n\r\n" + content + b"\r\n" for head, content in parts)
    return {"content": body + end, "headers": {"Content-Type": "multipart/form-data; boundary=b"}}


def named(name: bytes) -> tuple[bytes, bytes]:
    return b'form-data; name="model_data"; filename="' + name + b'"', b"x"


WITH_MODEL = (b'form-data; name="model"; filename="m.onnx"', MODEL)


def test_a_model_and_its_data_files_are_one_model(api: Service) -> None:
    created = api.client.post("/v1/models", files=form(MODEL, FILES))
    body = created.json()
    assert created.status_code == 201
    assert created.headers["location"] == PATH
    assert (body["id"], body["format"]) == (combined(MODEL, FILES), "onnx")
    assert body["size"] == len(MODEL) + len(FILES[DATA])
    assert body["files"] == [
        {"name": "model", "size": len(MODEL), "sha256": sha256(MODEL)},
        {"name": DATA, "size": len(FILES[DATA]), "sha256": sha256(FILES[DATA])},
    ]
    assert api.client.get(PATH).json() == body
    assert api.client.head(PATH).status_code == 200
    assert sorted(path.read_bytes() for path in api.stored()) == sorted([MODEL, FILES[DATA]])
    assert api.leftovers() == []


def test_a_model_of_one_file_has_the_same_identifier_in_either_form(api: Service) -> None:
    plain = onnx_mlp()
    created = api.client.post("/v1/models", content=plain)
    again = api.client.post("/v1/models", files=form(plain, {}))
    assert (created.status_code, again.status_code) == (201, 200)
    assert again.json() == created.json()
    assert again.json()["files"] == [{"name": "model", "size": len(plain), "sha256": sha256(plain)}]
    assert len(api.stored()) == 1


def test_parts_may_come_in_any_order_and_again(api: Service) -> None:
    model, data = external_mlp("b/second.bin", "a first.bin", "dritte-Größe.bin")
    parts = form(model, data)
    statuses = [api.client.post("/v1/models", files=order).status_code for order in (parts, parts[::-1], parts)]
    assert statuses == [201, 200, 200]
    found = api.client.get(f"/v1/models/{combined(model, data)}").json()["files"]
    assert [file["name"] for file in found] == ["model", "a first.bin", "b/second.bin", "dritte-Größe.bin"]
    assert (rows(api), len(api.stored())) == (1, 4)


def test_the_same_file_under_other_names_is_another_model(api: Service) -> None:
    first = api.client.post("/v1/models", files=form(MODEL, FILES)).json()
    second = api.client.post("/v1/models", files=form(MODEL, {"other.data": FILES[DATA]})).json()
    assert first["id"] != second["id"]
    assert api.client.delete(f"/v1/models/{second['id']}").status_code == 204
    assert api.client.get(PATH).status_code == 200
    assert sorted(path.read_bytes() for path in api.stored()) == sorted([MODEL, FILES[DATA]])


def test_two_data_files_may_have_the_same_content_or_none(api: Service) -> None:
    data = {"a": b"same", "b": b"same", "c": b""}
    created = api.client.post("/v1/models", files=form(MODEL, data))
    assert (created.status_code, created.json()["id"]) == (201, combined(MODEL, data))
    assert api.client.delete(created.headers["location"]).status_code == 204
    assert api.stored() == []


def test_a_deleted_model_takes_its_data_files_along(api: Service) -> None:
    for _ in range(2):
        assert api.client.post("/v1/models", files=form(MODEL, FILES)).status_code == 201
        assert api.client.delete(PATH).status_code == 204
        assert api.client.head(PATH).status_code == 404
    assert api.stored() == []
    assert not list((api.settings.blob_dir / "models").glob("*/*"))


def test_a_data_file_that_was_lost_is_put_back_by_the_next_upload(api: Service) -> None:
    api.client.post("/v1/models", files=form(MODEL, FILES))
    [lost] = [path for path in api.stored() if path.read_bytes() == FILES[DATA]]
    lost.unlink()
    assert api.client.post("/v1/models", files=form(MODEL, FILES)).status_code == 200
    assert lost.read_bytes() == FILES[DATA]


@pytest.mark.parametrize(
    ("name", "code"),
    [
        (b"", "invalid_file_name"),
        (b"../m.data", "invalid_file_name"),
        (b"a/../m.data", "invalid_file_name"),
        (b"a/..", "invalid_file_name"),
        (b".", "invalid_file_name"),
        (b"/etc/passwd", "invalid_file_name"),
        (b"a//b", "invalid_file_name"),
        (b"a/", "invalid_file_name"),
        (b"./a", "invalid_file_name"),
        (b"a\\b", "invalid_file_name"),
        (b"a\tb", "invalid_file_name"),
        (b"a\x00b", "invalid_file_name"),
        (b"a\x7fb", "invalid_file_name"),
        (b"\xff\xfe", "invalid_file_name"),
        (b"n" * 256, "invalid_file_name"),
        ("ü".encode() * 128, "invalid_file_name"),
    ],
)
def test_a_name_that_is_no_plain_relative_path_is_refused(api: Service, name: bytes, code: str) -> None:
    for path in ("/v1/models", "/v1/analyses"):
        response = api.client.post(path, **raw(WITH_MODEL, named(name)))
        assert (response.status_code, response.json()["code"]) == (422, code)
        assert "filename=model.onnx.data" in response.json()["advice"]
    assert (rows(api), api.stored(), api.leftovers()) == (0, [], [])


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        ([WITH_MODEL, (b'form-data; name="model_data"', b"x")], "invalid_file_name"),
        ([WITH_MODEL, named(b"a"), named(b"a")], "duplicate_part"),
        ([WITH_MODEL, named(b"a"), named(b"a/b")], "invalid_file_name"),
        ([named(b"a/b/c"), named(b"a/b"), WITH_MODEL], "invalid_file_name"),
        ([named(b"a")], "missing_part"),
        ([], "missing_part"),
        ([WITH_MODEL, WITH_MODEL], "duplicate_part"),
        ([WITH_MODEL, (b'form-data; name="batch"', b"x")], "unexpected_part"),
    ],
)
def test_other_forms_that_are_no_model_are_refused(api: Service, parts: list[tuple[bytes, bytes]], code: str) -> None:
    response = api.client.post("/v1/models", **raw(*parts))
    assert response.json()["code"] == code
    assert (rows(api), api.stored(), api.leftovers()) == (0, [], [])


def test_data_files_are_not_sent_with_a_model_that_is_named(api: Service, batch_bytes: bytes) -> None:
    identifier = api.client.post("/v1/models", files=form(MODEL, FILES)).json()["id"]
    request = json.dumps({"model": identifier}).encode()
    parts = [*form(MODEL, FILES, batch=batch_bytes, request=request)[1:]]
    response = api.client.post("/v1/analyses", files=parts)
    assert (response.status_code, response.json()["code"]) == (422, "missing_part")
    assert DATA in response.json()["detail"]


def test_batches_have_no_data_files(api: Service, batch_bytes: bytes) -> None:
    response = api.client.post("/v1/batches", files=[("batch", ("b.npz", batch_bytes)), ("model_data", ("a", b"x"))])
    assert (response.status_code, response.json()["code"]) == (415, "unknown_format")


def test_the_number_of_data_files_is_limited(start_service: StartService) -> None:
    api = start_service(worker=False, max_model_data_files=3)
    for count, status, code in ((3, 201, None), (4, 422, "too_many_parts")):
        data = {f"{index}.bin": b"x" for index in range(count)}
        response = api.client.post("/v1/models", files=form(MODEL, data))
        assert (response.status_code, response.json().get("code")) == (status, code)
    assert (rows(api), api.leftovers()) == (1, [])


@pytest.mark.slow
@pytest.mark.parametrize("count", [300, full(1000)])
def test_many_small_files_do_not_hold_as_many_descriptors(api: Service, count: int) -> None:
    data = {f"tensor.{index}.weight": b"%d" % index for index in range(count)}
    before = len(os.listdir("/proc/self/fd"))
    most = 0
    with ThreadPoolExecutor() as pool:
        response = pool.submit(api.client.post, "/v1/models", files=form(MODEL, data))
        while not response.done():
            most = max(most, len(os.listdir("/proc/self/fd")))
            time.sleep(0.01)
    assert (response.result().status_code, len(api.stored())) == (201, count + 1)
    assert most - before < 100


@pytest.mark.parametrize(
    ("limits", "refused"),
    [
        ({"max_model_bytes": 40_000}, f"data file '{DATA}'"),
        ({"max_model_bytes": 90_000, "max_model_total_bytes": 90_000}, "model with its data files"),
    ],
)
def test_a_part_or_a_whole_that_is_too_large_is_refused_and_leaves_nothing(
    start_service: StartService, limits: dict[str, int], refused: str
) -> None:
    api = start_service(worker=False, **limits)
    data = {"small": b"x" * 30_000, DATA: b"x" * 80_000}
    response = api.client.post("/v1/models", files=form(MODEL, data))
    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")
    assert response.json()["detail"].startswith(f"The {refused} is larger than")
    assert (rows(api), api.stored(), api.leftovers()) == (0, [], [])


def test_room_on_the_disk_is_checked_for_all_files(start_service: StartService) -> None:
    api = start_service(worker=False, min_free_bytes=1 << 60)
    response = api.client.post("/v1/models", files=form(MODEL, FILES))
    assert (response.status_code, response.json()["code"]) == (507, "insufficient_storage")


def test_a_client_that_leaves_between_two_files_leaves_nothing(api: Service) -> None:
    connection = socket.create_connection((urlsplit(api.url).hostname, urlsplit(api.url).port))
    request = raw(WITH_MODEL, named(b"a"), named(b"b"), end=b"")["content"]
    head = b"POST /v1/models HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    connection.sendall(head + b"Content-Length: 9000000\r\n\r\n" + request + b"--b\r\n")
    until(lambda: len(api.leftovers()) == 3)
    connection.close()
    until(lambda: not api.leftovers())
    assert (rows(api), api.stored()) == (0, [])


@pytest.mark.slow
def test_uploads_and_deletions_at_the_same_time_never_lose_a_file(api: Service) -> None:
    def churn(seed: int) -> list[int]:
        order = random.Random(seed)
        with connect(api.url, timeout=120) as client:
            codes = []
            for _ in range(8):
                if order.random() < 0.5:
                    codes.append(client.post("/v1/models", files=form(MODEL, FILES)).status_code)
                else:
                    codes.append(client.delete(PATH).status_code)
            codes.append(client.post("/v1/models", files=form(MODEL, FILES)).status_code)
        return codes

    with ThreadPoolExecutor(4) as pool:
        codes = {code for found in pool.map(churn, range(4)) for code in found}
    assert codes <= {200, 201, 204, 404}
    assert sorted(path.read_bytes() for path in api.stored()) == sorted([MODEL, FILES[DATA]])
    assert rows(api) == 1


def test_tenants_share_the_files_until_the_last_deletes_them(start_service: StartService) -> None:
    keys = {name: new_key() for name in ("ann", "bob")}
    api = start_service(worker=False, api_keys=",".join(f"{name}:{hash_key(key)}" for name, key in keys.items()))
    ann, bob = ({"Authorization": f"Bearer {key}"} for key in keys.values())
    for headers in (ann, bob):
        assert api.client.get(PATH, headers=headers).status_code == 404
        assert api.client.post("/v1/models", files=form(MODEL, FILES), headers=headers).status_code == 201
    assert (rows(api), len(api.stored())) == (2, 2)
    assert api.client.delete(PATH, headers=ann).status_code == 204
    assert api.client.get(PATH, headers=ann).status_code == 404
    assert (api.client.get(PATH, headers=bob).status_code, len(api.stored())) == (200, 2)
    assert api.client.delete(PATH, headers=bob).status_code == 204
    assert api.stored() == []


def test_what_an_analysis_needs_is_not_deleted(api: Service, batch_bytes: bytes) -> None:
    analysis = api.client.post("/v1/analyses", files=form(MODEL, FILES, batch=batch_bytes)).json()
    assert analysis["model"] == combined(MODEL, FILES)
    assert api.client.delete(PATH).json()["code"] == "blob_in_use"
    assert len(api.stored()) == 3
    api.client.post(f"/v1/analyses/{analysis['id']}/cancel")
    assert api.client.delete(PATH).status_code == 204
    assert [path.read_bytes() for path in api.stored()] == [batch_bytes]


def test_retention_deletes_every_file_of_an_unused_model(api: Service) -> None:
    async def run() -> None:
        async with open_context(api.settings, asyncio.Event()) as context:
            await sweep(context, datetime.now(UTC) - timedelta(days=30))

    api.client.post("/v1/models", files=form(MODEL, FILES))
    asyncio.run(run())
    assert (rows(api), len(api.stored())) == (1, 2)
    api.sql("UPDATE blobs SET uploaded_at = uploaded_at - interval '60 days'")
    asyncio.run(run())
    assert (rows(api), api.stored()) == (0, [])


@pytest.fixture
def objects(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    with bucket() as found:
        for name, value in found.environment.items():
            monkeypatch.setenv(name, value)
        yield found


@pytest.mark.slow
def test_a_bucket_holds_every_file_until_the_model_is_deleted(start_service: StartService, objects: Bucket) -> None:
    api = start_service(worker=False, blob_url=objects.url, storage_patience_seconds=0.3)
    assert api.client.post("/v1/models", files=form(MODEL, FILES)).status_code == 201
    digest = combined(MODEL, FILES).removeprefix("sha256:")
    assert sorted(objects.names()) == sorted(
        f"models/{digest[:2]}/{digest}/{sha256(content)}" for content in (MODEL, FILES[DATA])
    )
    assert api.client.delete(PATH).status_code == 204
    assert objects.names() == []


def test_a_data_file_that_is_lost_or_damaged_is_named(service: Service, batch_bytes: bytes) -> None:
    service.client.post("/v1/models", files=form(MODEL, FILES))
    [path] = [path for path in service.stored() if path.read_bytes() == FILES[DATA]]
    for code, spoil in (("blob_corrupt", lambda: path.write_bytes(b"damaged")), ("blob_missing", path.unlink)):
        spoil()
        request = {"model": combined(MODEL, FILES), "fresh": True}
        parts = [("batch", ("b.npz", batch_bytes)), ("request", ("request", json.dumps(request).encode()))]
        ended = service.ended(service.client.post("/v1/analyses", files=parts).json()["id"])
        assert ended["error"]["code"] == code
        assert f"data file {DATA!r}" in ended["error"]["message"]
    assert service.leftovers() == []


def test_the_memory_that_an_analysis_needs_includes_the_data_files(
    start_service: StartService, api: Service, batch_bytes: bytes
) -> None:
    analysis = api.client.post("/v1/analyses", files=form(MODEL, FILES, batch=batch_bytes)).json()["id"]
    [(size,)] = api.sql("SELECT size FROM blobs WHERE kind = 'models'")
    assert size == len(MODEL) + len(FILES[DATA])
    api.sql("UPDATE blobs SET size = %s WHERE kind = 'models'", 256 << 20)
    start_service(job_memory_bytes=256 << 20)
    assert api.ended(analysis)["error"]["code"] == "out_of_memory"


@pytest.mark.slow
@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_a_worker_hands_every_file_to_the_analysis(
    start_service: StartService, objects: Bucket, batch_bytes: bytes, place: str
) -> None:
    service = start_service(blob_url=objects.url if place == "bucket" else None)
    model, data = external_mlp("m.onnx.data", "a/b/c.bin")
    analysis = service.client.post("/v1/analyses", files=form(model, data, batch=batch_bytes)).json()["id"]
    assert service.ended(analysis)["state"] == "succeeded"
    # The analysis of these tests counts the bytes of the model's files.
    report = service.client.get(f"/v1/analyses/{analysis}/report").json()
    assert report["model"]["parameters"]["count"] == len(model) + sum(map(len, data.values()))
    assert service.leftovers() == []
