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

from support.client import connect
from support.service import DEADLINE, until

SERVE = (sys.executable, "-m", "service.cli.commands", "serve", "--port", "0")


@dataclass
class Served:
    process: psutil.Popen
    client: httpx.Client
    url: str
    folder: Path
    """Its data folder."""
    log: Path

    def ready(self) -> bool:
        return self.client.get("/readyz").status_code == 200

    def workers(self) -> list[psutil.Process]:
        return [child for child in self.process.children() if "worker" in arguments_of(child)]

    def family(self) -> list[psutil.Process]:
        """The server, its descendants, and its Postgres, which is a daemon of its own."""
        return [self.process, *self.process.children(recursive=True), *postmasters(self.folder)]


def arguments_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []


def postmasters(folder: Path) -> list[psutil.Process]:
    """Processes that run Postgres in a data folder."""
    return [process for process in psutil.process_iter() if str(folder / "postgres") in arguments_of(process)]


def environment(**settings: str) -> dict[str, str]:
    """This process's, with settings and with this checkout in front."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **settings}


@contextmanager
def served(**settings: str) -> Iterator[Served]:
    """Runs it in a folder of its own until the end of the block; it is ready when the block begins."""
    # Not below pytest's folder, which is closed to the user that Postgres runs as when the tests run as root.
    with tempfile.TemporaryDirectory(prefix="wsb-test-") as name:
        data, log = Path(settings.pop("WSB_DATA_DIR", f"{name}/data")), Path(name, "log")
        with log.open("wb") as errors:
            process = psutil.Popen(
                SERVE,
                env=environment(WSB_DATA_DIR=str(data), **settings),
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=name,
            )
        try:
            line = process.stdout.readline()
            assert line.startswith("wsb serves http://127.0.0.1:"), log.read_text()
            url = line.split()[-1]
            with connect(url, timeout=DEADLINE) as client:
                server = Served(process, client, url, data, log)
                until(server.ready)
                yield server
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(DEADLINE)
            process.stdout.close()
