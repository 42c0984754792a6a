"""Compare uploading a large batch to a real `wsb serve` with copying and hashing the file.

    python benchmarks/uploads.py

Both start with the file in the disk cache and end with its SHA-256 known. The upload also ends with the content flushed
to disk; a copy with fsync is measured as well. Each is deleted before the next, for which a virtual machine would
otherwise have to request memory from its host.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import psutil
from harness import Row, duration, show
from http_overhead import serving, wait_until_ready

MEGABYTES = 500
REPEATS = 5
PIECE = 1 << 20
FLAT = 32
"""MiB by which a server may grow over all uploads and still count as flat."""


def rows() -> Iterator[Row]:
    with tempfile.TemporaryDirectory(prefix="wsb-benchmark-") as name, serving() as (url, server):
        folder = Path(name)
        path = batch_of(folder, MEGABYTES)
        with httpx.Client(base_url=url) as client:
            wait_until_ready(client)
        upload(url, path)
        before, peak = resident(server), 0
        sent, copied, kept = [], [], []
        for turn in range(REPEATS):
            # Different content each time, since existing content is not stored again.
            change(path, turn)
            copied.append(copy(path, folder / "copy"))
            kept.append(copy(path, folder / "copy", synced=True))
            sent.append(upload(url, path))
            peak = max(peak, resident(server))
    share = statistics.median(a / b for a, b in zip(copied, sent, strict=True))
    durable = statistics.median(a / b for a, b in zip(kept, sent, strict=True))
    yield Row(
        f"upload of {MEGABYTES} MB",
        f"{duration(sent)}, a copy with SHA-256 {duration(copied)}: {share:.0%} of its rate "
        f"({durable:.0%} of a copy with fsync)",
        "at least 60 %",
        share >= 0.6,
    )
    grown = (peak - before) / (1 << 20)
    yield Row(
        f"memory of the server's processes after {REPEATS} uploads",
        f"{before / (1 << 20):.0f} MiB before, at most {grown:+.0f} MiB after one",
        f"flat: at most {FLAT} MiB",
        grown <= FLAT,
    )


def batch_of(folder: Path, megabytes: int) -> Path:
    path = folder / "batch.npz"
    samples, features = megabytes * 1000, 250
    np.savez(path, x=np.random.default_rng(0).random((samples, features), np.float32), y=np.zeros(samples, np.int64))
    return path


def change(path: Path, turn: int) -> None:
    """Change a number in the middle of the file."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes([turn + 1]))


def copy(source: Path, target: Path, *, synced: bool = False) -> float:
    started = time.perf_counter()
    digest = hashlib.sha256()
    with source.open("rb", buffering=0) as file, target.open("wb", buffering=0) as out:
        while piece := file.read(PIECE):
            digest.update(piece)
            out.write(piece)
        if synced:
            os.fsync(out.fileno())
    digest.hexdigest()
    seconds = time.perf_counter() - started
    target.unlink()
    return seconds


def upload(url: str, path: Path) -> float:
    """Return the seconds until the response, with a client that has almost no overhead."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=120, blocksize=PIECE)
    started = time.perf_counter()
    with path.open("rb") as file:
        connection.request("POST", "/v1/batches", body=file, headers={"Content-Length": str(path.stat().st_size)})
        answer = connection.getresponse()
        content = answer.read()
    seconds = time.perf_counter() - started
    connection.close()
    if answer.status != 201:
        raise SystemExit(f"{answer.status}: {content.decode()}")
    httpx.delete(f"{url}/v1/batches/{json.loads(content)['id']}").raise_for_status()
    return seconds


def resident(process: psutil.Process) -> int:
    return process.memory_info().rss


if __name__ == "__main__":
    sys.exit(not show(rows()))
