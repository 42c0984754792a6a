"""What a tenant waits for a small analysis while another one takes all that it can get."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psycopg
import pytest
from support.served import Served, served
from support.service import npz_batch, onnx_mlp

from service.keys import hash_key, new_key

ROUNDS = 20
DURATIONS = (
    "SELECT extract(epoch FROM finished_at - started_at)::float FROM analyses"
    " WHERE tenant = 'greedy' AND state = 'succeeded' ORDER BY 1"
)


def waited(server: Served, key: str, *, first: int) -> list[float]:
    """Seconds that each of some analyses takes from the request to the report."""
    found = []
    for seed in range(first, first + ROUNDS):
        request = json.dumps({"options": {"seed": seed}, "fresh": True}).encode()
        files = {"model": onnx_mlp(), "batch": npz_batch(), "request": request}
        headers = {"Authorization": f"Bearer {key}", "Prefer": "wait=60"}
        started = time.monotonic()
        response = httpx.post(f"{server.url}/v1/analyses", files=files, headers=headers, timeout=90)
        found.append(time.monotonic() - started)
        assert response.status_code == 201, response.text
    return found


def p95(values: list[float]) -> float:
    return statistics.quantiles(values, n=20, method="inclusive")[-1]


@pytest.mark.slow
def test_a_small_analysis_takes_at_most_three_times_as_long_and_one_analysis_of_a_greedy_tenant(
    tmp_path: Path, say: Callable[[str], None]
) -> None:
    keys = {name: new_key() for name in ("modest", "greedy")}
    entries = ",".join(f"{name}:{hash_key(key)}" for name, key in keys.items())
    files = {"model": onnx_mlp((64, 32, 10)), "batch": npz_batch(features=64, classes=10, samples=200)}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    settings = {"WSB_API_KEYS": entries, "WSB_MAX_QUEUE_PER_TENANT": "600", "WSB_JOB_THREADS": "1"}
    with served(**settings, OMP_NUM_THREADS="1") as server:
        alone = waited(server, keys["modest"], first=0)
        say(f"alone: p50 {statistics.median(alone):.3f} s, p95 {p95(alone):.3f} s")
        greedy = [sys.executable, str(Path(__file__).with_name("greedy.py")), server.url, keys["greedy"]]
        paths = [str(tmp_path / name) for name in files]
        with subprocess.Popen([*greedy, *paths], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            beside = waited(server, keys["modest"], first=ROUNDS)
            process.stdin.close()
        database = f"postgresql://postgres:@/postgres?host={server.folder}/postgres"
        with psycopg.connect(database) as connection:
            took = [seconds for (seconds,) in connection.execute(DURATIONS)]
    say(f"beside it: p50 {statistics.median(beside):.3f} s, p95 {p95(beside):.3f} s")
    say(f"its analyses: {len(took)}, p50 {statistics.median(took):.3f} s, p95 {p95(took):.3f} s")
    assert p95(beside) <= 3 * p95(alone) + p95(took)
