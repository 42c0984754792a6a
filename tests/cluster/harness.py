"""API processes and workers as on machines of their own: they share a Postgres and a bucket, and nothing else."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import psutil
import psycopg
from support.client import connect
from support.objects import bucket
from support.service import DEADLINE, npz_batch, onnx_mlp, until

from service.server.postgres import embedded_postgres

_SETTINGS = {
    "WSB_MAX_ATTEMPTS": "20",
    "WSB_JOB_THREADS": "1",
    "WSB_HEARTBEAT_SECONDS": "0.5",
    "WSB_STALLED_SECONDS": "3",
    "WSB_SHUTDOWN_SECONDS": "2",
    "WSB_POLL_SECONDS": "0.5",
    "OMP_NUM_THREADS": "1",
}


class Proxy:
    """A port of this machine that leads to a Postgres, until it is cut."""

    def __init__(self, url: str) -> None:
        self._socket = f"{parse_qs(urlsplit(url).query)['host'][0]}/.s.PGSQL.5432"
        self._loop = asyncio.new_event_loop()
        self._open: set[asyncio.StreamWriter] = set()
        self._connections: set[asyncio.Task[Any]] = set()
        self._server: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._port = 0
        self.mend()
        self.url = f"postgresql://postgres@127.0.0.1:{self._port}/postgres"

    def cut(self) -> None:
        """Resets every connection; new ones are refused."""
        self._run(self._cut())

    def mend(self) -> None:
        self._run(self._listen())

    def close(self) -> None:
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, action: Any) -> None:
        asyncio.run_coroutine_threadsafe(action, self._loop).result(10)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def _cut(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in self._open:
            writer.transport.abort()
        await asyncio.gather(*self._connections)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.current_task()
        assert connection is not None
        self._connections.add(connection)
        there, back = await asyncio.open_unix_connection(self._socket)
        ends = {writer, back}
        self._open |= ends
        try:
            await asyncio.gather(_pump(reader, back), _pump(there, writer))
        finally:
            for end in ends:
                end.transport.abort()
            self._open -= ends
            self._connections.discard(connection)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@dataclass
class Machine:
    """A process with what it has started, in a folder and a process group of its own."""

    name: str
    process: psutil.Popen
    log: Path

    def is_working(self) -> bool:
        """Whether an analysis runs in a process below it, beside the one that waits for the next."""
        with suppress(psutil.NoSuchProcess):
            zygotes = [child for child in self.process.children() if "service.sandbox.zygote" in child.cmdline()]
            return any(len(zygote.children()) > 1 for zygote in zygotes)
        return False

    def kill(self) -> None:
        """All of it at once, as when the power fails."""
        family = [self.process, *self.process.children(recursive=True)]
        os.killpg(self.process.pid, signal.SIGKILL)
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        self.process.wait(10)

    def stop(self) -> int:
        """As an operator does; the exit code."""
        self.process.terminate()
        code: int = self.process.wait(DEADLINE)
        return code

    def told(self) -> list[dict[str, Any]]:
        """The lines of its log."""
        lines = []
        for line in self.log.read_text().splitlines():
            with suppress(ValueError):
                lines.append(json.loads(line))
        return lines


@dataclass
class Cluster:
    database_url: str
    folder: Path
    environment: dict[str, str]
    machines: list[Machine] = field(default_factory=list)

    def start_api(self, name: str, port: int) -> Machine:
        return self._start(name, "serve", "--workers", "0", "--port", str(port))

    def start_worker(self, name: str, *arguments: str, **environment: str) -> Machine:
        return self._start(name, "worker", *(arguments or ("--device", "cpu")), **environment)

    def _start(self, name: str, *arguments: str, **extra: str) -> Machine:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        environment = {**self.environment, "WSB_DATA_DIR": str(folder / "data"), **extra}
        command = [sys.executable, "-m", "service.cli.commands", *arguments]
        with (folder / "log").open("ab") as log:
            process = psutil.Popen(
                command,
                env=environment,
                stdout=log,
                stderr=log,
                cwd=folder,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
            )
        machine = Machine(name, process, folder / "log")
        self.machines.append(machine)
        return machine

    def sql(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            return connection.execute(query, parameters).fetchall()

    def workers(self) -> int:
        """How many are alive."""
        count: int = self.sql("SELECT count(*) FROM workers WHERE seen_at > now() - interval '3 seconds'")[0][0]
        return count

    def logs(self) -> str:
        """The ends of all logs, for a test that fails."""
        return "\n".join(f"--- {machine.name}\n{machine.log.read_text()[-3000:]}" for machine in self.machines)


@contextmanager
def cluster() -> Iterator[Cluster]:
    """A Postgres and a bucket; nothing of what is started in it outlives the block."""
    # Not below pytest's folder, which is closed to the user that Postgres runs as when the tests run as root.
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wsb-test-")))
        url = stack.enter_context(embedded_postgres(folder / "database"))
        objects = stack.enter_context(bucket())
        environment = {
            **os.environ,
            **_SETTINGS,
            **objects.environment,
            "WSB_DATABASE_URL": url,
            "WSB_BLOB_URL": objects.url,
            "WSB_LOG_FORMAT": "json",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        found = Cluster(url, folder, environment)
        try:
            yield found
        finally:
            for machine in found.machines:
                if machine.process.poll() is None:
                    machine.kill()


def is_ready(url: str) -> bool:
    """Whether analyses are accepted there and run somewhere."""
    with suppress(httpx.TransportError), connect(url, timeout=5) as client:
        return client.get("/readyz").status_code == 200
    return False


def wait_until_ready(*urls: str) -> None:
    until(lambda: all(map(is_ready, urls)))


def files(*, large: bool) -> dict[str, bytes]:
    """A model and a batch; an analysis of large ones takes a second or two."""
    sizes, samples = ((64, 100, 100, 10), 300) if large else ((4, 5, 3), 8)
    return {"model": onnx_mlp(sizes), "batch": npz_batch(features=sizes[0], classes=sizes[-1], samples=samples)}


def submit(url: str, content: dict[str, bytes], number: int) -> str:
    """A new analysis, unlike the others by its seed; its identifier."""
    form = {**content, "request": json.dumps({"options": {"seed": number}}).encode()}
    with connect(url, timeout=60) as client:
        response = client.post("/v1/analyses", files=form)
    assert response.status_code == 202, response.text
    identifier: str = response.json()["id"]
    return identifier
