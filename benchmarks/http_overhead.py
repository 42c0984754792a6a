"""Measure the time from POST to report beyond the engine's, over 30 calls to a real `wsb serve`.

    python benchmarks/http_overhead.py [--calls 30] [--url http://…]

Each call is one multipart POST with ``Prefer: wait`` of a 64-32-10 tanh network on 400 samples; the overhead is
the wall-clock time of the call minus ``timings.total`` of its report.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import httpx
import numpy as np
import psutil
from harness import Row, duration, show
from onnx import TensorProto, helper, numpy_helper

CALLS = 30
TARGET = 0.060


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=CALLS)
    parser.add_argument("--url", help="URL of a running server; by default one is started")
    arguments = parser.parse_args()
    return int(not show(rows(calls=arguments.calls, url=arguments.url)))


def rows(*, calls: int = CALLS, url: str | None = None) -> Iterator[Row]:
    with nullcontext((url, None)) if url else serving() as (address, _):
        overheads, totals = measure(address, calls)
    yield Row(
        f"POST to report beyond the engine, {calls} calls",
        f"{duration(overheads)}, in addition to the engine's {duration(totals)}",
        f"at most {TARGET * 1e3:g} ms",
        statistics.median(overheads) <= TARGET,
    )


def measure(url: str, calls: int) -> tuple[list[float], list[float]]:
    """Return for each call the seconds beyond the engine's, and the engine's."""
    # Without fresh, all but the first would be answered with the first report.
    files = {"model": model(), "batch": batch(), "request": b'{"fresh": true}'}
    overheads, totals = [], []
    with httpx.Client(base_url=url, timeout=120) as client:
        wait_until_ready(client)
        for _ in range(calls + 1):
            started = time.perf_counter()
            response = client.post("/v1/analyses", files=files, headers={"Prefer": "wait=60"})
            wall = time.perf_counter() - started
            if response.status_code != 201:
                raise SystemExit(f"{response.status_code}: {response.text}")
            totals.append(response.json()["timings"]["total"])
            overheads.append(wall - totals[-1])
    # The first call fills the caches of the server and the disk.
    return overheads[1:], totals[1:]


def model() -> bytes:
    random = np.random.default_rng(0)
    arrays = {
        "w0": random.normal(size=(64, 32)) / 8,
        "b0": np.zeros(32),
        "w1": random.normal(size=(32, 10)) / 6,
        "b1": np.zeros(10),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w0", "b0"], ["h"]),
        helper.make_node("Tanh", ["h"], ["a"]),
        helper.make_node("Gemm", ["a", "w1", "b1"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10).SerializeToString()


def batch() -> bytes:
    random = np.random.default_rng(1)
    buffer = io.BytesIO()
    np.savez(buffer, x=random.normal(size=(400, 64)).astype(np.float32), y=random.integers(0, 10, 400))
    return buffer.getvalue()


@contextmanager
def serving(**settings: str) -> Iterator[tuple[str, psutil.Popen]]:
    """Run a server in a temporary folder with default settings except those given; yield its address and process."""
    with tempfile.TemporaryDirectory(prefix="wsb-benchmark-") as folder:
        environment = {**os.environ, "WSB_DATA_DIR": folder, "WSB_LOG_LEVEL": "warning", **settings}
        command = [sys.executable, "-m", "service.cli.commands", "serve", "--port", "0"]
        with psutil.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            try:
                yield process.stdout.readline().split()[-1], process
            finally:
                process.terminate()
                process.wait(60)


def wait_until_ready(client: httpx.Client) -> None:
    deadline = time.monotonic() + 120
    while client.get("/readyz").status_code != 200:
        if time.monotonic() > deadline:
            raise SystemExit("the server did not become ready")
        time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main())
