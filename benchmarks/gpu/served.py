"""The service end to end: `wsb serve` as a process, and analyses over HTTP."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
from findings import Finding, short
from machine import Machine

from service.child.sample_analysis import batch, model

READY_SECONDS, ANSWER_SECONDS = 120.0, 60.0
NOWHERE = "http://127.0.0.1:1"


def findings(machine: Machine) -> Iterator[Finding]:
    started = time.perf_counter()
    with _serving() as (client, log):
        told = _until_ready(client)
        seconds = time.perf_counter() - started
        ready = told.get("status") == "ready"
        yield Finding(
            "wsb serve is ready", f"after {short(seconds)}" if ready else json.dumps(told)[:300], "it is", ready
        )
        if not ready:
            yield Finding("its log ends with", log.read_text()[-300:].replace("\n", " "))
            return
        offered = client.get("/v1/capabilities").json()
        yield Finding("devices", ", ".join(offered["devices"]), machine.name, machine.name in offered["devices"])
        for name, options, expected in (
            ("auto", {"device": "auto"}, None),
            ("on the device", {"device": machine.name}, machine.name),
            ("on the device again", {"device": machine.name, "seed": 1}, machine.name),
            ("in float32", {"device": machine.name, "dtype": "float32", "failure_probability": 1e-3}, machine.name),
        ):
            yield _analysed(client, name, options, expected)


def _analysed(client: httpx.Client, name: str, options: dict[str, object], expected: str | None) -> Finding:
    form = {"model": model(), "batch": batch(), "request": json.dumps({"options": options, "fresh": True}).encode()}
    started = time.perf_counter()
    answer = client.post("/v1/analyses", files=form, headers={"Prefer": f"wait={ANSWER_SECONDS:g}"})
    seconds = time.perf_counter() - started
    report = answer.json()
    if "enclosure" not in report:
        return Finding(f"an analysis, {name}", json.dumps(report)[:300], "a report", False)
    device, bound = report["engine"]["device"], report["enclosure"]["lambda_max"]["upper"]
    return Finding(
        f"an analysis, {name}",
        f"λ_max at most {bound:.6g}, computed on {device}, {short(seconds)}",
        f"on {expected}" if expected else "a report",
        expected is None or device == expected,
    )


@contextmanager
def _serving() -> Iterator[tuple[httpx.Client, Path]]:
    with tempfile.TemporaryDirectory(prefix="wsb-") as folder:
        log = Path(folder, "log")
        environment = {**os.environ, "WSB_DATA_DIR": str(Path(folder, "data"))}
        command = [sys.executable, "-m", "service.cli.commands", "serve", "--port", "0"]
        with log.open("wb") as output:
            process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=output, text=True)
        try:
            assert process.stdout is not None
            found = re.search(r"http://\S+", process.stdout.readline())
            url = found[0] if found else NOWHERE
            with httpx.Client(base_url=url, timeout=2 * ANSWER_SECONDS) as client:
                yield client, log
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
            process.kill()
            process.wait()


def _until_ready(client: httpx.Client) -> dict[str, object]:
    deadline, told = time.monotonic() + READY_SECONDS, {}
    while time.monotonic() < deadline:
        try:
            told = client.get("/readyz").json()
        except (httpx.HTTPError, ValueError) as error:
            return {"status": f"{type(error).__name__}: {error}"}
        if told.get("status") == "ready":
            break
        time.sleep(0.2)
    return dict(told)
