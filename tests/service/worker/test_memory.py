from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.service import Files, Service, StartService, npz_batch, onnx_mlp, submit, until

from service.worker.memory import MAPPED_FROM, least_bytes
from wsb_engine.sources import batch_file

MIB = 1 << 20
SMALL, LARGE = 256 * MIB, 4096 * MIB


def submit_large(api: Service, files: Files, **options: str) -> str:
    """An analysis that waits, of a model that the database says is as large as a small worker's memory."""
    analysis = submit(api, files, **options)
    api.sql("UPDATE blobs SET size = %s WHERE kind = 'models'", SMALL)
    return analysis


def add_worker(api: Service, memory_bytes: int, device: str = "cpu") -> None:
    """The row of a worker that stays alive."""
    api.sql(
        "INSERT INTO workers (id, host, process, device, engine_version, protections, memory_bytes, seen_at)"
        " VALUES (gen_random_uuid(), 'elsewhere', 1, %s, '0', '[]', %s, now() + interval '1 hour')",
        device,
        memory_bytes,
    )


def times_left(api: Service) -> int:
    """How often workers have left an analysis to others."""
    return int(api.sql("SELECT count(*) FROM procrastinate_events WHERE type = 'deferred_for_retry'")[0][0])


@pytest.mark.slow
def test_an_analysis_that_fits_into_no_worker_fails_before_it_is_started(
    start_service: StartService, api: Service, files: Files
) -> None:
    analysis = submit_large(api, files)
    add_worker(api, 2 * SMALL)
    start_service(job_memory_bytes=SMALL)
    ended = api.ended(analysis)
    assert (ended["state"], ended["error"]["code"], ended["attempts"]) == ("failed", "out_of_memory", 0)
    assert ended["error"]["details"]["limit_bytes"] == SMALL
    assert ended["error"]["details"]["needed_bytes"] > 2 * SMALL


@pytest.mark.parametrize(("size", "needed"), [(MAPPED_FROM - 1, MAPPED_FROM - 1), (MAPPED_FROM, 0)])
def test_a_batch_that_may_stay_in_its_file_needs_no_memory(size: int, needed: int) -> None:
    assert MAPPED_FROM == batch_file.MAPPED_FROM
    assert least_bytes(0, size, doubles=False) == needed


@pytest.mark.slow
def test_an_analysis_is_left_to_a_worker_that_it_fits_into(
    start_service: StartService, api: Service, files: Files
) -> None:
    analysis = submit_large(api, files)
    add_worker(api, LARGE)
    start_service(job_memory_bytes=SMALL)
    until(lambda: times_left(api) > 1)
    found = api.client.get(f"/v1/analyses/{analysis}").json()
    assert (found["state"], found["attempts"], found["started_at"]) == ("queued", 0, None)
    start_service(job_memory_bytes=LARGE)
    # Both workers reach for it each second, until the larger one is first.
    until(lambda: api.client.get(f"/v1/analyses/{analysis}").json()["state"] == "succeeded")


@pytest.mark.slow
def test_when_the_only_worker_that_it_fits_into_is_lost_it_is_told(
    start_service: StartService, api: Service, files: Files
) -> None:
    analysis = submit_large(api, files)
    add_worker(api, LARGE)
    start_service(job_memory_bytes=SMALL)
    until(lambda: times_left(api) > 0)
    api.sql("UPDATE workers SET seen_at = now() - interval '1 minute' WHERE host = 'elsewhere'")
    assert api.ended(analysis)["error"]["code"] == "out_of_memory"


@pytest.mark.slow
def test_a_larger_worker_of_a_device_that_was_not_asked_for_is_no_help(
    start_service: StartService, api: Service, files: Files
) -> None:
    analysis = submit_large(api, files, device="cpu")
    add_worker(api, LARGE, device="cuda:0")
    start_service(job_memory_bytes=SMALL)
    assert api.ended(analysis)["error"]["code"] == "out_of_memory"


def test_an_analysis_that_waits_for_a_larger_worker_can_be_cancelled(
    start_service: StartService, api: Service, files: Files
) -> None:
    analysis = submit_large(api, files)
    add_worker(api, LARGE)
    start_service(job_memory_bytes=SMALL)
    until(lambda: times_left(api) > 0)
    api.client.post(f"/v1/analyses/{analysis}/cancel")
    assert api.ended(analysis)["state"] == "cancelled"


_GROWTH = """
import sys
import torch, wsb_engine as wsb, wsb_engine.analysis.analyze, wsb_engine.formats.onnx
# Not ru_maxrss, which a process inherits from the one that has started it.
status = lambda: dict(line.split(":", 1) for line in open("/proc/self/status"))
peak = lambda: int(status()["VmHWM"].split()[0]) * 1024
before, options = peak(), wsb.Options(moments="none", enclosure=False, dtype=sys.argv[1])
wsb.analyze(wsb.load_model("model"), wsb.load_batch("batch"), options)
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_least_analysis_takes_more_than_is_asked_for(tmp_path: Path, dtype: str) -> None:
    # In float64 already, which is the file that grows least.
    model = onnx_mlp((2000, 2000, 3))
    batch = npz_batch(features=2000)
    (tmp_path / "model").write_bytes(model)
    (tmp_path / "batch").write_bytes(batch)
    assert len(model) > 2000 * 2000 * np.dtype(np.float64).itemsize
    command = [sys.executable, "-c", _GROWTH, dtype]
    grown = int(subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout)
    assert grown > least_bytes(len(model), len(batch), doubles=dtype == "float64") > len(model)
