"""Put a real `wsb serve` under load from many clients: latency, throughput, and the server's memory.

    python benchmarks/load.py [--clients 50] [--seconds 60]

Each client posts a 64-32-10 tanh network and 400 samples with ``Prefer: wait``, over and over; `fresh` keeps reports
from being reused. Latency is that of responses with a report (201). For comparison, the engine alone is measured
first, in this process and on one thread. Any response other than 201, 202 (no report within 60 s) and 429 ends the run.

``rows`` compares rates without the clients' share: the analyses are queued while another one runs, and
timed from its end to the end of the last one.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import httpx
import psutil
import torch
from harness import Row
from http_overhead import batch, model, serving, wait_until_ready

from wsb_engine import analyze, load_batch, load_model

Files = dict[str, bytes]

_MIB = 1 << 20


@dataclass
class Load:
    """What the clients measured."""

    seconds: list[float] = field(default_factory=list)
    """From the request to the report."""
    answers: Counter[int] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    given = parser.parse_args(arguments)
    alone = engine_rate(min(given.seconds, 10))
    with serving() as (url, process):
        load, memory = put_under_load(url, process, given.clients, given.seconds)
    done = len(load.seconds)
    latencies = sorted(load.seconds) or [float("nan")]
    print(f"clients              {given.clients}, for {given.seconds:g} s")
    print(f"answers              {dict(sorted(load.answers.items()))}")
    print(f"latency, median      {statistics.median(latencies):8.3f} s")
    print(f"latency, 95th        {latencies[min(int(0.95 * done), done - 1)]:8.3f} s")
    print(f"served               {done / given.seconds:8.1f} analyses per second")
    print(f"engine alone         {alone:8.1f} analyses per second")
    print(f"server's memory      {', '.join(f'{size / _MIB:.0f}' for size in memory)} MiB at the start, half-way, end")
    for error in load.errors[:10]:
        print(f"error                {error}")
    return 1 if load.errors or not done else 0


def engine_rate(seconds: float) -> float:
    """Return the engine's analyses per second in this process, on one thread."""
    torch.set_num_threads(1)
    content = model(), batch()
    analyze(load_model(content[0]), load_batch(content[1]))
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        analyze(load_model(content[0]), load_batch(content[1]))
        count += 1
    return count / (time.perf_counter() - started)


def rows(*, jobs: int = 6, rounds: int = 5) -> Iterator[Row]:
    """Compare one saturated worker with default settings with the engine called in a loop, in turns."""
    content = model(), batch()
    served, alone = [], []
    with serving() as (url, _), httpx.Client(base_url=url, timeout=120) as client:
        wait_until_ready(client)
        saturated(client, 4)
        analyze(load_model(content[0]), load_batch(content[1]))
        for _ in range(rounds):
            served.append(saturated(client, jobs))
            started = time.perf_counter()
            for _ in range(jobs):
                analyze(load_model(content[0]), load_batch(content[1]))
            alone.append(jobs / (time.perf_counter() - started))
    share = statistics.median(a / b for a, b in zip(served, alone, strict=True))
    yield Row(
        f"one worker's throughput, {jobs} small analyses queued",
        f"{statistics.median(served):.2f} per second, the engine in a loop {statistics.median(alone):.2f}: {share:.0%}",
        "at least 90 %",
        share >= 0.9,
    )


def saturated(client: httpx.Client, jobs: int) -> float:
    """Return analyses per second, from the end of the preceding one to the last end."""
    wanted = {
        kind: client.post(f"/v1/{path}", content=data).raise_for_status().json()["id"]
        for kind, path, data in (("model", "models", model()), ("batch", "batches", batch()))
    }
    # Keeps the worker busy until all others are queued.
    before = posted(client, {**wanted, "fresh": True, "options": {"spectrum": "dense"}})
    found = [posted(client, {**wanted, "fresh": True}) for _ in range(jobs)]
    begin, *ends = [finished(client, analysis) for analysis in (before, *found)]
    last_posted = max(moment(analysis, "created_at") for analysis in ends)
    if last_posted > moment(begin, "finished_at"):
        raise RuntimeError("the worker was free before all analyses were queued")
    last = max(moment(analysis, "finished_at") for analysis in ends)
    return jobs / (last - moment(begin, "finished_at")).total_seconds()


def moment(analysis: dict[str, str], name: str) -> datetime:
    return datetime.fromisoformat(analysis[name])


def posted(client: httpx.Client, wanted: dict[str, object]) -> str:
    return str(client.post("/v1/analyses", json=wanted).raise_for_status().json()["id"])


def finished(client: httpx.Client, analysis: str) -> dict[str, str]:
    deadline = time.monotonic() + 300
    while not (found := client.get(f"/v1/analyses/{analysis}").raise_for_status().json())["finished_at"]:
        if time.monotonic() > deadline:
            raise TimeoutError(f"analysis {analysis} did not end")
        # Often enough for the last one, and seldom enough not to affect the measurement.
        time.sleep(0.5)
    if found["state"] != "succeeded":
        raise RuntimeError(f"analysis {analysis} {found['state']}: {found['error']}")
    return found


def put_under_load(url: str, process: psutil.Process, clients: int, seconds: float) -> tuple[Load, list[int]]:
    """Return what the clients measured, and the server's resident bytes at the start, half-way and at the end."""
    load = Load()
    files = {"model": model(), "batch": batch(), "request": b'{"fresh": true}'}
    with httpx.Client(base_url=url, timeout=120) as client:
        wait_until_ready(client)
        post(client, files, Load())
    deadline = time.monotonic() + seconds
    threads = [threading.Thread(target=keep_posting, args=(url, files, load, deadline)) for _ in range(clients)]
    memory = [process.memory_info().rss]
    for thread in threads:
        thread.start()
    time.sleep(seconds / 2)
    memory.append(process.memory_info().rss)
    for thread in threads:
        thread.join()
    return load, [*memory, process.memory_info().rss]


def keep_posting(url: str, files: Files, load: Load, deadline: float) -> None:
    with httpx.Client(base_url=url, timeout=120) as client:
        while time.monotonic() < deadline and not load.errors:
            try:
                post(client, files, load)
            except httpx.HTTPError as error:
                load.errors.append(f"{type(error).__name__}: {error}")


def post(client: httpx.Client, files: Files, load: Load) -> None:
    started = time.perf_counter()
    response = client.post("/v1/analyses", files=files, headers={"Prefer": "wait=60"})
    load.answers[response.status_code] += 1
    if response.status_code == 201:
        load.seconds.append(time.perf_counter() - started)
    elif response.status_code == 429:
        time.sleep(float(response.headers["Retry-After"]))
    elif response.status_code != 202:
        load.errors.append(f"{response.status_code}: {response.text[:500]}")


if __name__ == "__main__":
    raise SystemExit(main())
