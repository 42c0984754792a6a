"""Time from POST to report beyond the engine's own, over 30 calls against a real `wsb serve`.

    python benchmarks/http_overhead.py [--calls 30] [--url http://…]

Each call is one multipart POST with ``Prefer: wait`` of a 64-32-10 tanh network on 400 samples; the overhead is
the wall-clock time of the call less ``timings.total`` of its report.
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
from contextlib import contextmanager

import httpx
import numpy as np
from onnx import TensorProto, helper, numpy_helper


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=30)
    parser.add_argument("--url", help="of a running server; otherwise one is started")
    arguments = parser.parse_args()
    if arguments.url:
        measure(arguments.url, arguments.calls)
    else:
        with serving() as url:
            measure(url, arguments.calls)


def measure(url: str, calls: int) -> None:
    files = {"model": model(), "batch": batch()}
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
    # The first call fills caches of the server and the disk.
    overheads, totals = overheads[1:], totals[1:]
    print(f"calls                {calls}")
    print(f"engine, median       {statistics.median(totals) * 1000:8.1f} ms")
    print(f"overhead, median     {statistics.median(overheads) * 1000:8.1f} ms")
    print(f"overhead, worst      {max(overheads) * 1000:8.1f} ms")


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
def serving() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="wsb-benchmark-") as folder:
        command = [sys.executable, "-m", "service.cli", "serve", "--port", "0"]
        environment = {**os.environ, "WSB_DATA_DIR": folder, "WSB_LOG_LEVEL": "warning"}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            try:
                assert process.stdout is not None
                yield process.stdout.readline().split()[-1]
            finally:
                process.terminate()


def wait_until_ready(client: httpx.Client) -> None:
    deadline = time.monotonic() + 120
    while client.get("/readyz").status_code != 200:
        if time.monotonic() > deadline:
            raise SystemExit("the server did not become ready")
        time.sleep(0.1)


if __name__ == "__main__":
    main()
