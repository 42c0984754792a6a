"""The embedded Postgres: a server in the data folder, used if no database is configured."""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import structlog

log = structlog.get_logger(__name__)

_START_SECONDS = 3600
"""Longest recovery after a crash; a shorter limit would abort the recovery and restart it."""
_RETRY_SECONDS = 15.0
"""How long to retry a start: what a killed server leaves behind may take a while to disappear."""
_STOP_SECONDS = 30.0
_WATCH_SECONDS = 0.1
_LOG_TAIL_BYTES = 2000


class DataFolderInUseError(Exception):
    """Another process uses the embedded database of this data folder."""


class NoDatabaseError(Exception):
    """There is no embedded database in this data folder."""


@contextmanager
def embedded_postgres(data_dir: Path) -> Iterator[str]:
    """Run Postgres in ``data_dir/postgres`` and yield its URL; restart it if it dies, and stop it at the end.

    First end what a killed predecessor has left running.

    Raises:
        DataFolderInUseError: if another process runs one there.
        OSError: if the server does not start.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    lock = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataFolderInUseError(
                f"{data_dir} is in use by another wsb process; set WSB_DATA_DIR to another folder, or WSB_DATABASE_URL"
            ) from error
        server = _prepare((data_dir / "postgres").resolve())
        done = threading.Event()
        keeper = threading.Thread(target=_keep_running, args=(server, done), name="postgres", daemon=True)
        try:
            server.start()
            keeper.start()
            yield server.url
        finally:
            done.set()
            if keeper.is_alive():
                keeper.join()
            server.stop()
    finally:
        os.close(lock)


@contextmanager
def existing_postgres(data_dir: Path) -> Iterator[str]:
    """Yield the URL of the embedded Postgres in ``data_dir``, which another process may run; otherwise run it.

    Raises:
        NoDatabaseError: if there is none, or it is just being created.
        OSError: if the server does not start.
    """
    folder = (data_dir / "postgres").resolve()
    if not (folder / "PG_VERSION").exists():
        raise NoDatabaseError(
            f"There is no database in {data_dir}: set WSB_DATA_DIR to the installation's folder, or WSB_DATABASE_URL."
        )
    with ExitStack() as stack:
        try:
            url = stack.enter_context(embedded_postgres(data_dir))
        except DataFolderInUseError:
            url = _server_in(folder).url
        yield url


def _keep_running(server: _Server, done: threading.Event) -> None:
    while not done.wait(_WATCH_SECONDS):
        if server.alive():
            continue
        log.error("database_died")
        started = time.monotonic()
        try:
            server.start()
        except OSError as error:
            log.error("database_not_started", error=str(error))
        else:
            log.info("database_restarted", seconds=round(time.monotonic() - started, 2))


def _prepare(folder: Path) -> _Server:
    """Create the database if there is none yet."""
    from service.internals.postgres import get_server

    if not (folder / "PG_VERSION").exists():
        # In another folder first: a start that is killed half-way leaves nothing that looks like a database.
        new = folder.with_name(f"{folder.name}.new")
        shutil.rmtree(new, ignore_errors=True)
        get_server(new, cleanup_mode=None, start=False).ensure_pgdata_inited()
        new.rename(folder)
    server = _server_in(folder)
    if server.sockets != folder:  # the path of the folder is too long for a socket
        server.sockets.chmod(0o700)
        if server.user is not None:
            shutil.chown(server.sockets, server.user)
    return server


def _server_in(folder: Path) -> _Server:
    from service.internals.postgres import PostgresServer, find_suitable_socket_dir, get_server

    # The package provides the programs, and the steps that need root; its own way of starting and stopping a server
    # counts the processes that use it, including dead ones.
    package = get_server(folder, cleanup_mode=None, start=False)
    package.ensure_pgdata_inited()
    sockets = find_suitable_socket_dir(folder, PostgresServer.runtime_path)
    return _Server(folder=folder, sockets=sockets, programs=package.bin_path, user=package.system_user)


@dataclass(frozen=True, kw_only=True)
class _Server:
    folder: Path
    sockets: Path
    programs: Path
    user: str | None
    """User that it runs as if this process is root's."""

    @property
    def url(self) -> str:
        return f"postgresql://postgres:@/postgres?host={quote(str(self.sockets))}"

    def start(self) -> None:
        """Start the server, which recovers from a crash by itself, once nothing is left of its predecessor.

        Raises:
            OSError: if it does not start.
        """
        from service.internals.postgres import pgexec

        address = f'-h "" -k {shlex.quote(str(self.sockets))}'
        wait = ("-w", "-t", str(_START_SECONDS))
        arguments = (*wait, "-o", address, "-l", str(self.folder / "log"), "-D", str(self.folder), "start")
        deadline = time.monotonic() + _RETRY_SECONDS
        while True:
            self.stop()
            self._remove_traces()
            try:
                # In its own session, so that a Ctrl-C at the terminal does not reach it.
                pgexec("pg_ctl", arguments, bin_path=self.programs, user=self.user, start_new_session=True)
                return
            except subprocess.SubprocessError as error:
                if time.monotonic() > deadline:
                    raise OSError(f"The embedded Postgres does not start: {self._log_tail()}") from error
            time.sleep(_WATCH_SECONDS)

    def alive(self) -> bool:
        try:
            pid = int((self.folder / "postmaster.pid").read_text().split()[0])
        except (OSError, ValueError, IndexError):
            return False
        return self._is_postmaster(pid)

    def stop(self) -> None:
        """End the server and every process that a server has left behind; does nothing if there is none."""
        postmasters = self._find(self._is_postmaster)
        _send(postmasters, signal.SIGINT)  # closes its connections and shuts down properly
        _wait(lambda: not any(map(self._is_postmaster, postmasters)), _STOP_SECONDS)
        left = self._find(self._is_server_process)
        _send(left, signal.SIGKILL)
        _wait(lambda: not any(map(self._is_server_process, left)), _STOP_SECONDS)

    def _remove_traces(self) -> None:
        """Remove files that refer to a process id, which another process may have by now."""
        (self.folder / "postmaster.pid").unlink(missing_ok=True)
        for path in self.sockets.glob(".s.PGSQL.*"):
            path.unlink(missing_ok=True)

    def _find(self, condition: Callable[[int], bool]) -> list[int]:
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        return [pid for pid in pids if condition(pid)]

    def _is_postmaster(self, pid: int) -> bool:
        program, *arguments = _command_line(pid)
        return os.path.basename(program) == "postgres" and str(self.folder) in arguments

    def _is_server_process(self, pid: int) -> bool:
        """Whether it is a postmaster or one of its processes, which all have the folder as working directory.

        For root in a container this may be unknowable; processes that lose their postmaster end by themselves.
        """
        if self._is_postmaster(pid):
            return True
        try:
            return os.readlink(f"/proc/{pid}/cwd") == str(self.folder) and _command_line(pid)[0].startswith("postgres")
        except OSError:
            return False

    def _log_tail(self) -> str:
        with suppress(OSError):
            return (self.folder / "log").read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace").strip()
        return "there is no log."


def _command_line(pid: int) -> list[str]:
    """Return the command line of a process; ``[""]`` if it is gone or a zombie."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return [""]


def _send(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _wait(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
