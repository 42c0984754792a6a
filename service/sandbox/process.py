"""A zygote process as seen by its caller: starts it, tells it to fork and to kill, and notices its end."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from service.sandbox.confinement import zygote_environment
from service.sandbox.diagnosis import Exit
from service.sandbox.errors import SandboxError
from service.sandbox.job import Place
from service.sandbox.protocol import CONTROL_BYTES, write_whole

KILL_SECONDS = 30.0
"""How long a kill or an orderly end may take before the zygote itself is killed; the kernel needs a while to tear down
a child with a lot of memory."""


@dataclass(eq=False)
class Running:
    """One child: its pipe, and what its zygote has reported about it."""

    number: int
    pipe: int
    """Non-blocking read end of the pipe for its frames."""
    request: int
    """File for its request."""
    go: int
    """Write end of the pipe that announces the request."""
    forked: asyncio.Future[None]
    """Done once the child exists, or certainly never will."""
    ended: asyncio.Future[Exit | None]
    """None if the zygote died, or could not fork."""
    pid: int | None = None
    fork_failure: str | None = None
    _closed: bool = False

    def tell(self, content: bytes) -> None:
        """Pass the request to the child; if it has died, ``ended`` reports that."""
        write_whole(self.request, content)
        with suppress(BrokenPipeError):
            os.write(self.go, b"!")

    def close(self) -> None:
        """Close the caller's descriptors; safe to repeat."""
        if not self._closed:
            self._closed = True
            for descriptor in (self.pipe, self.request, self.go):
                os.close(descriptor)


class ZygoteProcess:
    """A zygote that serves until ``lost`` is done.

    The kernel ends it with the thread that started it, so that thread must live as long as the event loop.
    """

    def __init__(self, preload: Sequence[str], python_path: Sequence[Path]) -> None:
        self._loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self.lost: asyncio.Future[None] = self._loop.create_future()
        self.turn = asyncio.Lock()
        """Held from ``launch`` until ``forked``, so that the socket never holds more than one request."""
        self._running: dict[int, Running] = {}
        self._numbers = itertools.count()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.setblocking(False)
        with theirs:
            self._popen = _spawn(theirs, preload, python_path)
        self._loop.add_reader(self._control, self._listen)

    @classmethod
    async def start(cls, preload: Sequence[str], python_path: Sequence[Path], seconds: float) -> ZygoteProcess:
        """Start a zygote and wait until it serves.

        Raises:
            SandboxError: if a module can't be imported or starts a thread, the process ends, or ``seconds`` pass.
        """
        process = cls(preload, python_path)
        try:
            async with asyncio.timeout(seconds):
                await first_done(process.ready, process.lost)
        except TimeoutError:
            await process.kill()
            message = f"The zygote was not ready after {seconds:g} seconds."
            raise _start_error("zygote_start_timed_out", message) from None
        except BaseException:
            await process.kill()
            raise
        if not process.ready.done():
            status = process._popen.returncode
            raise _start_error("zygote_start_failed", f"The zygote ended with status {status} before it was ready.")
        reply = process.ready.result()
        if "refused" in reply:
            await process.kill()
            raise _start_error(reply["refused"], reply["message"])
        return process

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def alive(self) -> bool:
        return not self.lost.done() and self._popen.poll() is None

    def launch(self, place: Place, log: int, group: Path | None) -> Running:
        """Request a child in the control group ``group`` that writes its output to the descriptor ``log``.

        Raises:
            OSError: if no file descriptors are left.
        """
        with ExitStack() as handed, ExitStack() as kept:
            told = _file(handed, "place", _described(place, group))
            request = _file(kept, "request")
            pipe, theirs = _pipe(kept, handed)
            given, go = _pipe(handed, kept)
            os.set_blocking(pipe, False)
            loop = self._loop
            running = Running(next(self._numbers), pipe, request, go, loop.create_future(), loop.create_future())
            self._running[running.number] = running
            message = json.dumps({"fork": running.number}).encode()
            try:
                socket.send_fds(self._control, [message], [told, request, given, theirs, log])
            except OSError:
                self._settle(running, None)  # the zygote is gone; the loop has not noticed yet
            kept.pop_all()
        return running

    async def end(self, running: Running) -> None:
        """Ensure that the child and its process group are gone; safe to repeat and to cancel."""
        if not running.ended.done():
            try:
                self._control.send(json.dumps({"kill": running.number}).encode())
            except OSError:
                self._popen.kill()
            patience = self._loop.call_later(KILL_SECONDS, self._popen.kill)
            running.ended.add_done_callback(lambda _: patience.cancel())
        cancelled: asyncio.CancelledError | None = None
        while not running.ended.done():  # a caller that is cancelled twice must not leave a child behind
            try:
                await first_done(running.ended)
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled

    async def stop(self) -> None:
        """Let the zygote end itself and all its descendants; kill it if it doesn't."""
        with suppress(OSError):
            self._control.shutdown(socket.SHUT_WR)
        await asyncio.wait({self.lost}, timeout=KILL_SECONDS)
        await self.kill()

    async def kill(self) -> None:
        """Kill the zygote, if it is still running, and thereby its children."""
        self._popen.kill()
        await first_done(self.lost)

    def _listen(self) -> None:
        try:
            data = self._control.recv(CONTROL_BYTES)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if not data:
            self._lose()
            return
        match json.loads(data):
            case {"forked": number, "pid": pid}:
                running = self._running[number]
                running.pid = pid
                running.forked.set_result(None)
            case {"failed": number, "reason": reason}:
                running = self._running[number]
                running.fork_failure = reason
                self._settle(running, None)
            case {"exited": number, "status": status, "peak": peak}:
                self._settle(self._running[number], Exit(status=status, peak_memory_bytes=peak))
            case reply:
                self.ready.set_result(reply)

    def _settle(self, running: Running, end: Exit | None) -> None:
        del self._running[running.number]
        if not running.forked.done():
            running.forked.set_result(None)
        running.ended.set_result(end)

    def _lose(self) -> None:
        self._loop.remove_reader(self._control)
        self._control.close()
        self._popen.wait()  # immediate: the socket closes when the process has all but ended
        for running in list(self._running.values()):
            if running.pid is not None:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(running.pid, signal.SIGKILL)  # the kernel killed the child, but not what the child forked
            self._settle(running, None)
        self.lost.set_result(None)


async def first_done(*futures: asyncio.Future[Any]) -> None:
    """Wait until one is done; unlike awaiting a future, cancelling this does not cancel them."""
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)


def _spawn(control: socket.socket, preload: Sequence[str], python_path: Sequence[Path]) -> subprocess.Popen[bytes]:
    # sys.path is passed whole, and -P adds nothing: the zygote imports from where its caller does
    interpreter = [sys.executable, "-P"]
    search = [str(path) for path in python_path] + sys.path
    return subprocess.Popen(  # noqa: S603  (our own interpreter and module)
        [*interpreter, "-m", "service.sandbox.zygote", str(control.fileno()), str(os.getpid()), *preload],
        env=zygote_environment(os.pathsep.join(os.path.abspath(path) for path in search)),
        pass_fds=[control.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,  # a Ctrl-C at the terminal is the caller's to handle
    )


def _described(place: Place, group: Path | None) -> dict[str, Any]:
    return {
        "folder": str(place.folder.absolute()),
        "entry": place.entry,
        "threads": place.threads,
        "limits": asdict(place.limits),
        "gpu": place.gpu,
        "group": None if group is None else str(group),
        "readable": [str(path.absolute()) for path in place.readable],
        "required": place.required,
        "ahead": place.ahead,
    }


def _pipe(reader: ExitStack, writer: ExitStack) -> tuple[int, int]:
    """Open a pipe: its read and write end, each closed by its own stack."""
    read, write = os.pipe()
    reader.callback(os.close, read)
    writer.callback(os.close, write)
    return read, write


def _file(stack: ExitStack, name: str, content: Any = None) -> int:
    """Open an anonymous file, optionally with JSON in it: unlike a pipe, it takes any length without blocking."""
    descriptor = os.memfd_create(name)
    stack.callback(os.close, descriptor)
    if content is not None:
        write_whole(descriptor, encoded(content))
    return descriptor


def encoded(content: Any) -> bytes:
    """Encode content for a child.

    Raises:
        TypeError, ValueError: if it is not JSON-compatible.
    """
    return json.dumps(content, allow_nan=False).encode()


def _start_error(code: str, message: str) -> SandboxError:
    return SandboxError(
        message,
        code=code,
        advice="Look for the cause in the worker's log, and check that the installation is complete.",
    )
