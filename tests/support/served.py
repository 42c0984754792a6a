"""The real `wsb serve` as a process, for tests that look at it from outside."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from support.service import until


@dataclass
class Served:
    process: psutil.Popen
    client: httpx.Client
    url: str

    def workers(self) -> list[psutil.Process]:
        return [child for child in self.process.children() if "worker" in child.cmdline()]


@contextmanager
def served(**settings: str) -> Iterator[Served]:
    """Runs it in a folder of its own until the end of the block; it is ready when the block begins."""
    # Not below pytest's folder, which is closed to the user that Postgres runs as when the tests run as root.
    with tempfile.TemporaryDirectory(prefix="wsb-test-") as name:
        folder = Path(name)
        environment = {**os.environ, "WSB_DATA_DIR": str(folder / "data"), "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-m", "service.cli.commands", "serve", "--port", "0"]
        with (folder / "log").open("wb") as log:
            process = psutil.Popen(
                command, env={**environment, **settings}, stdout=subprocess.PIPE, stderr=log, text=True, cwd=folder
            )
        try:
            line = process.stdout.readline()
            assert line.startswith("wsb serves http://127.0.0.1:"), (folder / "log").read_text()
            url = line.split()[-1]
            with httpx.Client(base_url=url, timeout=90) as client:
                until(lambda: client.get("/readyz").status_code == 200, seconds=60)
                yield Served(process, client, url)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(30)
            process.stdout.close()
