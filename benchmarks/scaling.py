"""Measure the analyses per second of one worker and of two.

    python benchmarks/scaling.py [--analyses 24] [--rounds 3]

A Postgres, one API process and one or two workers run on this machine, each analysis on one thread. An analysis is
the dense spectrum of a 30-40-10 tanh network on 100 samples: about a second of arithmetic. All are queued first, and
timed from the first start to the last end according to the database. The two settings take turns;
the medians and their ratio are printed. The ratio is meaningful only on a machine with a spare core for each
worker, since everything else needs part of a core too.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import psycopg
import torch

from service.server.postgres import embedded_postgres

_SIZES, _SAMPLES = (30, 40, 10), 100
_SECONDS = 900.0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--analyses", type=int, default=24, help="in each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(arguments)
    content = files()
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(given.rounds):
        for workers, seen in rates.items():
            with serving(workers) as (url, database):
                seen.append(measured(url, database, content, given.analyses))
            print(f"{workers} worker{'s' * (workers > 1)}  {seen[-1]:6.3f} analyses per second", flush=True)
    one, two = (statistics.median(rates[workers]) for workers in (1, 2))
    print(f"median of one   {one:6.3f} analyses per second, {1 / one:.2f} s each")
    print(f"median of two   {two:6.3f} analyses per second")
    print(f"ratio           {two / one:6.2f} on {os.cpu_count()} cores")
    return 0


def files() -> dict[str, bytes]:
    torch.manual_seed(0)
    layers = [layer for i, o in itertools.pairwise(_SIZES) for layer in (torch.nn.Linear(i, o), torch.nn.Tanh())]
    model = torch.nn.Sequential(*layers[:-1]).eval()
    exported, batch = io.BytesIO(), io.BytesIO()
    torch.onnx.export(
        model, (torch.zeros(2, _SIZES[0]),), exported, dynamo=False, dynamic_axes={"x": {0: "n"}}, input_names=["x"]
    )
    random = np.random.default_rng(0)
    np.savez(batch, x=random.normal(size=(_SAMPLES, _SIZES[0])), y=random.integers(0, _SIZES[-1], _SAMPLES))
    return {"model": exported.getvalue(), "batch": batch.getvalue()}


def measured(url: str, database: str, content: dict[str, bytes], analyses: int) -> float:
    """Return analyses per second, from the first start to the last end."""
    with httpx.Client(base_url=url, timeout=60) as client:
        # The first analyses of each worker find cold caches.
        for seed in range(-4, analyses):
            wanted = {
                "options": {"seed": seed + 4, "spectrum": "dense"},
                "labels": {"counts": str(seed >= 0)},
                "fresh": True,
            }
            client.post("/v1/analyses", files={**content, "request": json.dumps(wanted).encode()}).raise_for_status()
    deadline = time.monotonic() + _SECONDS
    query = (
        "SELECT count(*) FILTER (WHERE state = 'succeeded'), count(*) FILTER (WHERE finished_at IS NOT NULL),"
        " extract(epoch FROM max(finished_at) - min(started_at)) FROM analyses WHERE labels->>'counts' = 'True'"
    )
    while time.monotonic() < deadline:
        with psycopg.connect(database) as connection:
            succeeded, ended, seconds = connection.execute(query).fetchall()[0]
        if ended == analyses:
            if succeeded != analyses:
                raise RuntimeError(f"{analyses - succeeded} analyses failed")
            return analyses / float(seconds)
        time.sleep(0.5)
    raise TimeoutError(f"{ended} of {analyses} analyses ended in {_SECONDS:g} s")


@contextmanager
def serving(workers: int) -> Iterator[tuple[str, str]]:
    """Run an API with a number of workers; yield its URL and that of its database."""
    with tempfile.TemporaryDirectory(prefix="wsb-scaling-") as name, embedded_postgres(Path(name) / "db") as database:
        environment = {
            **os.environ,
            "WSB_DATA_DIR": f"{name}/data",
            "WSB_DATABASE_URL": database,
            "WSB_JOB_THREADS": "1",
            "WSB_LOG_LEVEL": "error",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "service.cli.commands", "serve", "--port", "0", "--workers", str(workers)]
        server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        try:
            url = server.stdout.readline().split()[-1]
            wait_for_workers(url, workers)
            yield url, database
        finally:
            server.terminate()
            server.wait(60)
            server.stdout.close()


def wait_for_workers(url: str, workers: int) -> None:
    deadline = time.monotonic() + 120
    while httpx.get(f"{url}/v1/capabilities").json()["workers"] < workers:
        if time.monotonic() > deadline:
            raise TimeoutError("the workers did not start")
        time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main())
