from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from support.objects import Bucket, bucket
from support.service import Files, Service, StartService, submit, until

from service.storage.bucket import ObjectStore
from service.storage.store import BlobMissingError, StorageUnavailableError


@pytest.fixture
def objects(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    with bucket() as found:
        for name, value in found.environment.items():
            monkeypatch.setenv(name, value)
        yield found


@pytest.fixture
def api(start_service: StartService, objects: Bucket) -> Service:
    return start_service(worker=False, blob_url=objects.url, storage_patience_seconds=0.3)


def start_worker(start_service: StartService, objects: Bucket) -> Service:
    return start_service(blob_url=objects.url, storage_patience_seconds=0.3)


def test_an_analysis_is_made_of_files_in_a_bucket(
    start_service: StartService, objects: Bucket, api: Service, files: Files
) -> None:
    analysis = submit(api, files)
    digests = {kind: hashlib.sha256(content).hexdigest() for kind, content in files.items()}
    folders = {"model": "models", "batch": "batches"}
    assert sorted(objects.names()) == sorted(
        f"{folders[kind]}/{digest[:2]}/{digest}" for kind, digest in digests.items()
    )
    start_worker(start_service, objects)
    assert api.ended(analysis)["state"] == "succeeded"
    assert api.leftovers() == []


@pytest.mark.slow
def test_a_file_that_is_deleted_goes_from_the_bucket(api: Service, objects: Bucket, model_bytes: bytes) -> None:
    stored = api.client.post("/v1/models", content=model_bytes).json()
    assert len(objects.names()) == 1
    assert api.client.delete(f"/v1/models/{stored['id']}").status_code == 204
    assert objects.names() == []


def test_while_the_store_is_away_nothing_is_accepted(api: Service, objects: Bucket, files: Files) -> None:
    objects.stop()
    for path, request in (("/v1/models", {"content": files["model"]}), ("/v1/analyses", {"files": files})):
        response = api.client.post(path, **request)
        assert (response.status_code, response.json()["code"]) == (503, "storage_unavailable")
        assert response.headers["retry-after"] == "5"
    assert api.sql("SELECT (SELECT count(*) FROM blobs), (SELECT count(*) FROM analyses)") == [(0, 0)]
    assert api.leftovers() == []


def test_while_the_store_is_away_the_service_is_not_ready(api: Service, objects: Bucket) -> None:
    objects.stop()
    found = api.client.get("/readyz").json()
    assert found["details"] == {"missing": "storage"}
    assert found["checks"]["storage"] == "The object store of models and batches is unavailable at the moment."
    objects.start()
    assert api.client.get("/readyz").json()["checks"]["storage"] == "ok"


@pytest.mark.slow
def test_a_file_is_deleted_for_its_tenant_while_the_store_is_away(
    api: Service, objects: Bucket, model_bytes: bytes
) -> None:
    stored = api.client.post("/v1/models", content=model_bytes).json()
    objects.stop()
    assert api.client.delete(f"/v1/models/{stored['id']}").status_code == 204
    assert api.client.get(f"/v1/models/{stored['id']}").status_code == 404


@pytest.fixture
def stuck(start_service: StartService, objects: Bucket, files: Files) -> tuple[Service, str]:
    """An analysis whose worker has found the store away more than once."""
    service = start_worker(start_service, objects)
    occupied = submit(service, files, "sleep:10")
    analysis = submit(service, files)
    # Once it tells of progress, it has its files, so that only the other one needs the store.
    until(lambda: service.client.get(f"/v1/analyses/{occupied}").json()["progress"])
    objects.stop()
    service.ended(occupied)
    seen = "SELECT count(*) FROM procrastinate_events WHERE type = 'deferred_for_retry'"
    until(lambda: service.sql(seen)[0][0] > 1)
    return service, analysis


@pytest.mark.slow
def test_an_analysis_waits_for_a_store_that_is_away_and_no_attempt_is_counted(
    stuck: tuple[Service, str], objects: Bucket
) -> None:
    service, analysis = stuck
    objects.start()
    ended = service.ended(analysis)
    assert (ended["state"], ended["attempts"]) == ("succeeded", 1)


@pytest.mark.slow
def test_an_analysis_that_waits_for_the_store_can_be_cancelled(stuck: tuple[Service, str]) -> None:
    service, analysis = stuck
    service.client.post(f"/v1/analyses/{analysis}/cancel")
    assert service.ended(analysis)["state"] == "cancelled"


@pytest.mark.slow
def test_a_file_that_was_changed_in_the_bucket_is_told_at_once_and_mended_by_sending_it_again(
    start_service: StartService, objects: Bucket, api: Service, files: Files
) -> None:
    first = submit(api, files)
    for name in objects.names():
        objects.overwrite(name, b"something else")
    start_worker(start_service, objects)
    ended = api.ended(first)
    assert (ended["state"], ended["error"]["code"], ended["attempts"]) == ("failed", "blob_corrupt", 1)
    assert "Upload it again" in ended["error"]["advice"]
    assert api.ended(submit(api, files))["state"] == "succeeded"


@pytest.mark.slow
def test_a_file_that_is_gone_from_the_bucket_is_told(
    start_service: StartService, objects: Bucket, api: Service, files: Files
) -> None:
    analysis = submit(api, files)
    for name in objects.names():
        objects.client.delete_object(Bucket=objects.name, Key=f"some/prefix/{name}")
    start_worker(start_service, objects)
    assert api.ended(analysis)["error"]["code"] == "blob_missing"


def test_a_bucket_that_is_gone_is_an_outage_and_not_a_missing_file(objects: Bucket, tmp_path: Path) -> None:
    blobs = ObjectStore(f"s3://{objects.name}-not", tmp_path / "blobs", patience_seconds=0.3)
    with pytest.raises(StorageUnavailableError):
        asyncio.run(blobs.copy("models", "00" * 32, tmp_path / "copy"))
    with pytest.raises(StorageUnavailableError):
        asyncio.run(blobs.probe())
    with pytest.raises(BlobMissingError):
        asyncio.run(ObjectStore(objects.url, tmp_path / "blobs").copy("models", "00" * 32, tmp_path / "copy"))


_THROUGH = """
import asyncio, resource, sys
from pathlib import Path
from service.storage.bucket import ObjectStore
url, size, piece = sys.argv[1], int(sys.argv[2]), bytes(1 << 20)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
async def through():
    before = peak()
    with ObjectStore(url, Path("blobs")) as blobs, blobs.receive("batches") as upload:
        while upload.size < size:
            upload.write(piece)
        await blobs.keep(upload)
        await blobs.copy("batches", upload.sha256, Path("copy"))
    print(Path("copy").stat().st_size, peak() - before)
asyncio.run(through())
"""


@pytest.mark.slow
def test_a_large_file_takes_little_memory_on_its_way_in_and_out(objects: Bucket, tmp_path: Path) -> None:
    size = 256 << 20
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", _THROUGH, objects.url, str(size)]
    ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    copied, grown = map(int, ended.stdout.split())
    assert copied == size
    assert grown < size // 2


class _Failing(BaseHTTPRequestHandler):
    """Answers 503 so many times, and then that it is done."""

    left = 0
    seen = 0

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        type(self).seen += 1
        self.send_response(503 if type(self).seen <= type(self).left else 200)
        self.send_header("ETag", '"0"')
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def failing(objects: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Failing]]:
    handler = type("Handler", (_Failing,), {})
    server = HTTPServer(("127.0.0.1", 0), handler)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield handler
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_store_that_fails_for_a_moment_is_asked_again(failing: type[_Failing], tmp_path: Path) -> None:
    failing.left = 3
    asyncio.run(ObjectStore("s3://bucket", tmp_path, patience_seconds=20).probe())
    assert failing.seen == 4


def test_a_store_that_keeps_failing_is_given_up_when_patience_ends(failing: type[_Failing], tmp_path: Path) -> None:
    failing.left = 1_000_000
    started = time.monotonic()
    with pytest.raises(StorageUnavailableError):
        asyncio.run(ObjectStore("s3://bucket", tmp_path, patience_seconds=1).probe())
    assert time.monotonic() - started > 0.5
    assert failing.seen > 1


@pytest.mark.slow
def test_every_error_of_the_store_is_declared(api: Service) -> None:
    paths = api.client.get("/openapi.json").json()["paths"]
    for path in ("/v1/models", "/v1/batches", "/v1/analyses"):
        assert "storage_unavailable" in paths[path]["post"]["responses"]["503"]["x-codes"]
