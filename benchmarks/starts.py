"""Time processes from their start until `wsb serve` is ready, `wsb analyze` is done, `wsb --help` is printed.

    python benchmarks/starts.py

The files of the programs are in the disk cache; each run is a separate process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median

import httpx
from harness import Row, duration, show
from http_overhead import batch, model

REPEATS = 5
WSB = (sys.executable, "-m", "service.cli.commands")


def rows() -> Iterator[Row]:
    with tempfile.TemporaryDirectory(prefix="wsb-benchmark-") as name:
        folder = Path(name)
        environment = {**os.environ, "WSB_DATA_DIR": str(folder / "data"), "WSB_LOG_LEVEL": "warning"}
        # Modules are compiled once, as in an installed package.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        # The first start creates the database.
        first = ready(environment)
        starts = [ready(environment) for _ in range(REPEATS)]
        yield _row("wsb serve, to /readyz", starts, 5.0, f" (the very first {first:.1f} s)")
        (folder / "model.onnx").write_bytes(model())
        (folder / "batch.npz").write_bytes(batch())
        analyze = (*WSB, "analyze", str(folder / "model.onnx"), str(folder / "batch.npz"), "--json", "-")
        imports = median(run((sys.executable, "-c", "import torch"), environment) for _ in range(REPEATS))
        run(analyze, environment)
        whole = [run(analyze, environment) for _ in range(REPEATS)]
        yield _row("wsb analyze, 64-32-10, N = 400", whole, 4.0, f", a process that imports torch {imports:.2f} s")
    yield _row("wsb --help", [run((*WSB, "--help"), environment) for _ in range(REPEATS)], 0.3)


def _row(name: str, seconds: list[float], limit: float, besides: str = "") -> Row:
    return Row(name, duration(seconds) + besides, f"under {limit:g} s", median(seconds) < limit)


def run(command: Sequence[str], environment: Mapping[str, str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return time.perf_counter() - started


def ready(environment: Mapping[str, str]) -> float:
    """Return the seconds until a server is ready."""
    started = time.perf_counter()
    command = (*WSB, "serve", "--port", "0")
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            url = server.stdout.readline().split()[-1]
            with httpx.Client(base_url=url) as client:
                while client.get("/readyz").status_code != 200:
                    if time.perf_counter() - started > 120:
                        raise SystemExit("the server did not become ready")
                    time.sleep(0.02)
            return time.perf_counter() - started
        finally:
            server.terminate()
            server.wait(60)


if __name__ == "__main__":
    sys.exit(not show(rows()))
