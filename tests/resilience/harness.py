"""`wsb serve` as real processes that get killed at random, and clients that don't give up."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
from support.client import connect
from support.service import npz_batch, onnx_mlp

KINDS = ("api", "worker", "zygote", "child", "postmaster", "backend", "tree")
"""What can be killed; ``api`` is the process of `wsb serve`, ``tree`` is everything at one moment."""

_SETTINGS = {
    "WSB_MAX_ATTEMPTS": "100",
    "WSB_JOB_THREADS": "1",
    "WSB_HEARTBEAT_SECONDS": "0.5",
    "WSB_STALLED_SECONDS": "3",
    "WSB_SHUTDOWN_SECONDS": "2",
    "WSB_POLL_SECONDS": "0.5",
    "OMP_NUM_THREADS": "1",
}
_START_SECONDS = 120.0
_DISK_BYTES = 300 << 20
_TRANSIENT = (429, 503, 507)


@dataclass(frozen=True)
class Plan:
    """One run, which its seed determines but for the moments at which the machine gets to things."""

    seed: int
    analyses: int
    kills: Sequence[str]
    """Kinds, in order."""

    @classmethod
    def make(cls, seed: int, *, analyses: int, kinds: Sequence[str], rounds: int = 1) -> Plan:
        kills = [*kinds] * rounds
        random.Random(seed).shuffle(kills)
        return cls(seed, analyses, kills)


class Tree:
    """The processes of one data folder, restarted whenever `wsb serve` is gone."""

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        self._settings = settings
        self.data = folder / "data"
        self.log = folder / "log"
        self.url = f"http://127.0.0.1:{_free_port()}"
        self.restarts = -1
        self._process: psutil.Popen | None = None
        self._seen: set[psutil.Process] = set()

    @property
    def database_url(self) -> str:
        return f"postgresql://postgres:@/postgres?host={self.data}/postgres"

    def keep_up(self) -> None:
        """Starts `wsb serve` where it is not running."""
        if self._process is not None and self._process.poll() is None:
            return
        environment = {
            **os.environ,
            **_SETTINGS,
            **self._settings,
            "WSB_DATA_DIR": str(self.data),
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        port = self.url.rpartition(":")[2]
        command = [sys.executable, "-m", "service.cli.commands", "serve", "--port", port, "--workers", "1"]
        with self.log.open("ab") as log:
            self._process = psutil.Popen(command, env=environment, stdout=log, stderr=log, cwd=self.data.parent)
        self.restarts += 1

    def ready(self) -> bool:
        with suppress(httpx.TransportError), connect(self.url, timeout=5) as client:
            return client.get("/readyz").status_code == 200
        return False

    def wait_until_ready(self) -> float:
        started = time.monotonic()
        while not self.ready():
            self.keep_up()
            assert time.monotonic() - started < _START_SECONDS, self.log.read_text()[-5000:]
            time.sleep(0.05)
        return time.monotonic() - started

    def members(self) -> dict[str, list[psutil.Process]]:
        """The processes by kind; of worker, zygote and child also those whose `wsb serve` has been killed."""
        found: dict[str, list[psutil.Process]] = {kind: [] for kind in KINDS}
        postgres = str(self.data / "postgres")
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if postgres in process.cmdline() and process.name() == "postgres":
                    found["postmaster"].append(process)
                    found["backend"] += [c for c in process.children() if "[local]" in " ".join(c.cmdline())]
        workers = [process for process in self._seen if "worker" in _command(process)]
        if self._process is not None and self._process.poll() is None:
            server = psutil.Process(self._process.pid)
            found["api"] = [server]
            workers += [child for child in _children(server) if "worker" in _command(child)]
        found["worker"] = [process for process in set(workers) if process.is_running()]
        found["zygote"] = [child for worker in found["worker"] for child in _children(worker)]
        found["child"] = [child for zygote in found["zygote"] for child in _children(zygote)]
        for processes in found.values():
            self._seen.update(processes)
        found["tree"] = [process for processes in found.values() for process in processes]
        return found

    def kill(self, kind: str, choose: random.Random) -> list[int]:
        """Kills one process of the kind, or all; the ids of those killed, none if there was none for a while."""
        deadline = time.monotonic() + 30
        while not (found := self.members()[kind]) and time.monotonic() < deadline:
            self.keep_up()
            time.sleep(0.002 if kind == "child" else 0.02)
        victims = found if kind == "tree" else sorted(found, key=lambda process: process.pid)
        if victims and kind != "tree":
            victims = [choose.choice(victims)]
        for victim in victims:
            with suppress(psutil.NoSuchProcess):
                victim.kill()
        if self._process is not None and any(victim.pid == self._process.pid for victim in victims):
            self._process.wait(30)
        return sorted({victim.pid for victim in victims})

    def stop(self) -> int:
        """Stops the server as an operator does; its exit code."""
        assert self._process is not None
        self.members()
        self._process.terminate()
        code: int = self._process.wait(60)
        return code

    def survivors(self) -> list[str]:
        """Processes of the tree that are still there."""
        left = {process for process in self._seen if _lives(process)}
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if str(self.data) in " ".join(process.cmdline()) or process.environ().get("WSB_DATA_DIR") == str(
                    self.data
                ):
                    left.add(process)
        return [f"{process.pid} {' '.join(_command(process))}" for process in left if process.pid != os.getpid()]

    def end(self) -> None:
        """Whatever happened, nothing of it is left running."""
        for process in self.members()["tree"]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        if self._process is not None:
            self._process.wait(10)


@dataclass
class Run:
    """What clients and killer have seen so far."""

    plan: Plan
    tree: Tree
    kills: int = 0
    accepted: dict[int, str] = field(default_factory=dict)
    """Identifier of the analysis by its number in the plan."""
    unexpected: list[str] = field(default_factory=list)
    """Answers that no client should get."""
    retries: Counter[str] = field(default_factory=Counter)
    over: threading.Event = field(default_factory=threading.Event)

    def post_all(self, client: httpx.Client) -> None:
        """Posts the analyses, spread over the kills; each until it is accepted."""
        small = {"model": onnx_mlp(), "batch": npz_batch()}
        large = {"model": onnx_mlp((32, 24, 8)), "batch": npz_batch(features=32, classes=8, samples=100)}
        for number in range(self.plan.analyses):
            while not self.over.is_set() and number * len(self.plan.kills) > (self.kills + 1) * self.plan.analyses:
                self.over.wait(0.02)
            wanted = {"options": {"seed": number, "spectrum": "dense"}, "labels": {"number": str(number)}}
            files = {**(small if number % 3 else large), "request": json.dumps(wanted).encode()}
            headers = {"Idempotency-Key": f"{self.plan.seed}-{number}"}
            while not self.over.is_set():
                response = self._ask(partial(client.post, "/v1/analyses", files=files, headers=headers))
                if response is not None and response.status_code in (201, 202):
                    self.accepted[number] = response.json()["id"]
                    break
                self.over.wait(0.1)

    def watch(self, client: httpx.Client) -> None:
        """Reads as somebody does who looks at the list all the time."""
        while not self.over.is_set():
            self._ask(partial(client.get, "/v1/analyses?limit=5"))
            self.over.wait(0.1)

    def _ask(self, send: Callable[[], httpx.Response]) -> httpx.Response | None:
        try:
            response = send()
        except httpx.TransportError as error:
            self.retries[type(error).__name__] += 1
            return None
        if response.status_code in _TRANSIENT:
            self.retries[f"{response.status_code} {response.json()['code']}"] += 1
        elif response.is_error:
            self.unexpected.append(f"{response.request.method} {response.status_code} {response.text[:300]}")
        return response

    def states(self) -> Counter[str]:
        with psycopg.connect(self.tree.database_url, connect_timeout=5) as connection:
            return Counter(dict(connection.execute("SELECT state, count(*) FROM analyses GROUP BY state").fetchall()))


def kill_all(run: Run, say: Callable[[str], None]) -> None:
    """Carries out the kills of the plan; most of them once the service has recovered from the one before."""
    choose = random.Random(run.plan.seed + 1)
    for number, kind in enumerate(run.plan.kills, 1):
        time.sleep(choose.uniform(0.1, 2.0))
        victims = run.tree.kill(kind, choose)
        run.kills = number
        text = f"kill {number}/{len(run.plan.kills)} {kind} {victims}"
        run.tree.keep_up()
        if choose.random() < 0.25 and number < len(run.plan.kills):
            say(f"{text}; the next one comes before it is back")
            continue
        seconds = run.tree.wait_until_ready()
        say(f"{text}; ready after {seconds:.1f} s; {len(run.accepted)} accepted; {_told(run)}")


def fill_disk(run: Run, seconds: float, say: Callable[[str], None]) -> None:
    """Fills the disk of a run that has its own, and makes room again after some time."""
    ballast = run.tree.data.parent / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(1 << 20))
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        # What the service frees meanwhile is taken as well.
        with ballast.open("ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(1 << 16))
        run.tree.keep_up()
        time.sleep(0.2)
    say(f"the disk was full for {seconds:g} s; {len(run.accepted)} accepted; {_told(run)}")
    ballast.unlink()


def wait_until_final(run: Run, seconds: float, say: Callable[[str], None]) -> None:
    deadline = time.monotonic() + seconds
    told = time.monotonic()
    while True:
        run.tree.keep_up()
        with suppress(psycopg.OperationalError):
            states = run.states()
            if not any(states[state] for state in ("queued", "running", "cancelling")):
                return
            if time.monotonic() - told > 15:
                told = time.monotonic()
                say(f"waiting: {dict(states)}")
        assert time.monotonic() < deadline, f"not all have ended: {_told(run)}\n{run.tree.log.read_text()[-5000:]}"
        time.sleep(0.1)


def rows(run: Run) -> list[dict[str, Any]]:
    """Every analysis, with the number of its reports."""
    query = (
        "SELECT id::text, state, attempts, labels, error,"
        " (SELECT count(*) FROM reports WHERE reports.analysis = analyses.id) AS reports FROM analyses"
    )
    with psycopg.connect(run.tree.database_url, row_factory=psycopg.rows.dict_row) as connection:
        return connection.execute(query).fetchall()


def jobs_left(run: Run) -> list[tuple[Any, ...]]:
    with psycopg.connect(run.tree.database_url) as connection:
        return connection.execute("SELECT id, status::text FROM procrastinate_jobs").fetchall()


@contextmanager
def running(
    plan: Plan, say: Callable[[str], None], *, settings: Mapping[str, str] | None = None, disk: bool = False
) -> Iterator[Run]:
    """A service that is ready, with clients that post and read in the background.

    Args:
        plan: The run.
        say: Prints a line.
        settings: Variables of the service beside those that every run has.
        disk: True to give it a small disk of its own, for which the test has to be root.
    """
    # Not below pytest's folder, which is closed to the user that Postgres runs as when the tests run as root.
    folder = Path(tempfile.mkdtemp(prefix="wsb-test-"))
    if disk:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "wsb-test", folder], check=True)
    folder.chmod(0o755)
    tree = Tree(folder, settings or {})
    run = Run(plan, tree)
    clients = [connect(tree.url, timeout=30) for _ in range(2)]
    threads = [
        threading.Thread(target=run.post_all, args=(clients[0],)),
        threading.Thread(target=run.watch, args=(clients[1],)),
    ]
    try:
        seconds = tree.wait_until_ready()
        say(f"seed {plan.seed}: {plan.analyses} analyses, {len(plan.kills)} kills; ready after {seconds:.1f} s")
        for thread in threads:
            thread.start()
        yield run
    finally:
        run.over.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join(60)
        for client in clients:
            client.close()
        tree.end()
        failed = sys.exc_info()[0] is not None
        if failed:
            say(f"the log is {shutil.copy(tree.log, folder.with_suffix('.log'))}")
        if disk:
            subprocess.run(["umount", "--lazy", folder], check=True)
        shutil.rmtree(folder, ignore_errors=True)


def _told(run: Run) -> str:
    try:
        return ", ".join(f"{count} {state}" for state, count in sorted(run.states().items())) or "none yet"
    except psycopg.OperationalError:
        return "the database does not answer"


def _children(process: psutil.Process) -> list[psutil.Process]:
    with suppress(psutil.Error):
        return [child for child in process.children() if _lives(child)]
    return []


def _command(process: psutil.Process) -> list[str]:
    with suppress(psutil.Error):
        return process.cmdline()
    return []


def _lives(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
