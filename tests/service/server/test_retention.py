"""What is deleted: by hand, and by age."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.client import connect
from support.forms import full
from support.service import Files, Service, StartService, npz_batch, onnx_mlp, until

from service.context import Context
from service.keys import hash_key, new_key
from service.server.app import open_context
from service.server.retention import sweep

MONTH = timedelta(days=30)


def post(service: Service, files: Files, output: str = "", **headers: str) -> httpx.Response:
    form = {**files, "request": json.dumps({"options": {"output": output}}).encode()}
    return service.client.post("/v1/analyses", files=form, headers=headers)


def age(service: Service, *, but: str = "", tenant: str = "%") -> None:
    """Makes everything of a tenant, or of all, two months older, but for one analysis."""
    older = "UPDATE {} SET {column} = {column} - interval '60 days' WHERE tenant LIKE %s"
    service.sql(older.format("analyses", column="finished_at") + " AND id::text <> %s", tenant, but)
    service.sql(older.format("blobs", column="uploaded_at"), tenant)


def swept(service: Service) -> None:
    """Everything older than a month is swept."""

    async def run() -> None:
        async with open_context(service.settings, asyncio.Event()) as context:
            await sweep(context, datetime.now(UTC) - MONTH)

    asyncio.run(run())


def kept(service: Service) -> tuple[int, int, int, int]:
    """Analyses, reports, rows of blobs, files."""
    query = "SELECT (SELECT count(*) FROM analyses), (SELECT count(*) FROM reports), (SELECT count(*) FROM blobs)"
    analyses, reports, blobs = service.sql(query)[0]
    return analyses, reports, blobs, len(service.stored())


def test_an_analysis_that_has_ended_can_be_deleted_with_its_report(service: Service, files: Files) -> None:
    path = post(service, files, Prefer="wait=60").headers["location"]
    assert service.client.delete(path).status_code == 204
    assert service.client.delete(path).json()["code"] == "analysis_not_found"
    assert service.client.get(f"{path}/report").status_code == 404
    assert kept(service) == (0, 0, 2, 2)


@pytest.mark.parametrize("state", ["queued", "running", "cancelling"])
def test_a_live_analysis_cannot_be_deleted(api: Service, files: Files, state: str) -> None:
    path = post(api, files).headers["location"]
    api.sql("UPDATE analyses SET state = %s", state)
    response = api.client.delete(path)
    assert (response.status_code, response.json()["code"]) == (409, "analysis_live")
    assert api.client.get(path).json()["state"] == state


def test_what_is_old_goes_and_what_is_not_stays(service: Service, files: Files) -> None:
    post(service, files, Prefer="wait=60")
    young = post(service, {**files, "model": onnx_mlp(seed=5)}, Prefer="wait=60").headers["location"]
    failed = post(service, {"model": onnx_mlp(seed=6), "batch": npz_batch(seed=6)}, "fail", Prefer="wait=60")
    assert failed.status_code == 422
    age(service, but=young.rsplit("/", 1)[1])
    swept(service)
    assert [item["links"]["self"] for item in service.client.get("/v1/analyses").json()["items"]] == [young]
    # The batch is the young analysis's as well; files of the others are gone.
    names = {hashlib.sha256(content).hexdigest() for content in (onnx_mlp(seed=5), files["batch"])}
    assert {file.name for file in service.stored()} == names
    assert kept(service) == (1, 1, 2, 2)


@pytest.mark.slow
@pytest.mark.parametrize("state", ["queued", "running", "cancelling"])
def test_a_live_analysis_stays_with_its_files_however_old_it_is(api: Service, files: Files, state: str) -> None:
    post(api, files)
    age(api)
    api.sql("UPDATE analyses SET state = %s, created_at = now() - interval '1 year'", state)
    swept(api)
    assert kept(api) == (1, 0, 2, 2)


def test_a_file_that_was_sent_again_is_young(api: Service, files: Files) -> None:
    api.client.post("/v1/models", content=files["model"])
    api.client.post("/v1/batches", content=files["batch"])
    age(api)
    assert api.client.post("/v1/models", content=files["model"]).status_code == 200
    swept(api)
    assert [file.read_bytes() for file in api.stored()] == [files["model"]]


def test_a_file_that_another_tenant_has_too_stays_for_that_one(start_service: StartService, files: Files) -> None:
    keys = {name: new_key() for name in ("a", "b")}
    api = start_service(worker=False, api_keys=",".join(f"{name}:{hash_key(key)}" for name, key in keys.items()))
    codes = {}
    for key in keys.values():
        api.client.post("/v1/models", content=files["model"], headers={"Authorization": f"Bearer {key}"})
    age(api, tenant="a")
    swept(api)
    path = f"/v1/models/sha256:{hashlib.sha256(files['model']).hexdigest()}"
    for name, key in keys.items():
        codes[name] = api.client.head(path, headers={"Authorization": f"Bearer {key}"}).status_code
    assert codes == {"a": 404, "b": 200}
    assert len(api.stored()) == 1


@pytest.mark.slow
def test_more_than_a_batch_goes_in_one_sweep_and_files_in_use_hold_nothing_up(api: Service, files: Files) -> None:
    post(api, files)
    api.sql(
        "INSERT INTO analyses (id, tenant, model, batch, options, labels, priority, timeout_s, state, finished_at)"
        " SELECT gen_random_uuid(), 'default', n, n, '{}', '{}', 0, 1, 'cancelled', now()"
        " FROM generate_series(1, 250) AS n"
    )
    api.sql(
        "INSERT INTO blobs (tenant, kind, sha256, size, format)"
        " SELECT 'default', 'models', lpad(n::text, 64, '0'), 1, 'onnx' FROM generate_series(1, 150) AS n"
    )
    age(api)
    swept(api)
    assert kept(api) == (1, 0, 2, 2)


def test_without_the_setting_nothing_is_ever_deleted(service: Service, files: Files) -> None:
    assert service.settings.retention_days is None
    post(service, files, Prefer="wait=60")
    age(service)
    service.client.get("/readyz")
    assert kept(service) == (1, 1, 2, 2)


def test_a_running_service_sweeps_by_itself(start_service: StartService, files: Files) -> None:
    service = start_service(retention_days=30, retention_interval_seconds=0.05)
    post(service, files, Prefer="wait=60")
    age(service)
    until(lambda: kept(service) == (0, 0, 0, 0))
    assert service.client.get("/healthz").status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [1, full(6)])
def test_an_analysis_that_was_accepted_never_misses_its_files_while_everything_old_is_swept(
    start_service: StartService, files: Files, rounds: int
) -> None:
    # A tenth of a second is old: nearly every request meets a sweep somewhere.
    service = start_service(retention_days=0.1 / 86_400, retention_interval_seconds=0.001)
    contents = [{"model": onnx_mlp(seed=seed), "batch": npz_batch(seed=seed)} for seed in range(3)]

    def churn(number: int) -> list[tuple[int, str]]:
        sent = contents[number % 3]
        result = []
        with connect(service.url, timeout=60, headers={"Prefer": "wait=30"}) as client:
            for _ in range(rounds):
                ids = {
                    "model": client.post("/v1/models", content=sent["model"]).json()["id"],
                    "batch": client.post("/v1/batches", content=sent["batch"]).json()["id"],
                }
                for response in (client.post("/v1/analyses", json=ids), client.post("/v1/analyses", files=sent)):
                    result.append((response.status_code, str(response.json().get("code"))))
        return result

    with ThreadPoolExecutor(4) as pool:
        results = [item for answers in pool.map(churn, range(4)) for item in answers]
    # A file may be gone before the request that names it, and an analysis before its answer is read; no more.
    assert set(results) <= {(201, "None"), (404, "blob_not_found"), (404, "analysis_not_found")}
    assert (201, "None") in results
    until(lambda: kept(service) == (0, 0, 0, 0))


@asynccontextmanager
async def contexts(service: Service) -> AsyncIterator[tuple[Context, Context]]:
    async with (
        open_context(service.settings, asyncio.Event()) as one,
        open_context(service.settings, asyncio.Event()) as other,
    ):
        yield one, other


def test_two_processes_may_sweep_at_the_same_time(api: Service, files: Files) -> None:
    for seed in range(8):
        api.client.post("/v1/models", content=onnx_mlp(seed=seed))
    age(api)

    async def run() -> Any:
        async with contexts(api) as pair:
            await asyncio.gather(*(sweep(context, datetime.now(UTC) - MONTH) for context in pair))

    asyncio.run(run())
    assert kept(api) == (0, 0, 0, 0)


def test_a_folder_that_lost_its_files_is_swept_all_the_same(api: Service, files: Files, tmp_path: Path) -> None:
    api.client.post("/v1/models", content=files["model"])
    api.stored()[0].unlink()
    age(api)
    swept(api)
    assert kept(api) == (0, 0, 0, 0)
