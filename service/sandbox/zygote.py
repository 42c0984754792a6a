"""The zygote: a process that has imported everything, has one thread, and forks a child for each job.

    python -m service.sandbox.zygote SOCKET PARENT MODULE…

It exchanges JSON messages over SOCKET, a descriptor of a sequenced-packet socket:

    in    {"fork": n} with descriptors of a place, a request, its announcement, a pipe and a log; {"kill": n}
    out   {"ready": true}, or {"refused": code, "message"}; {"forked": n, "pid"} or {"failed": n, "reason"};
          {"exited": n, "status", "peak"} with the wait status and the peak memory in bytes

The end of the socket, SIGTERM, and the death of PARENT (upon which the kernel sends SIGTERM) each end the zygote and
all its descendants. The zygote kills the children, because only the process that reaps them knows that a process id is
still theirs.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from service.sandbox.child import run_child
from service.sandbox.confinement import adopt_orphans, die_with_parent
from service.sandbox.grants import code_paths
from service.sandbox.protocol import CONTROL_BYTES

_PASSED_DESCRIPTORS = 5


def main(arguments: Sequence[str]) -> int:
    """Preload, report ready, and serve until the caller is gone; return the exit status."""
    control = socket.socket(fileno=int(arguments[0]))
    die_with_parent(int(arguments[1]), signal.SIGTERM)
    adopt_orphans()
    gc.disable()  # collecting takes a sixth of the time of the imports, which leave almost no garbage
    for name in arguments[2:]:
        try:
            importlib.import_module(name)
        except Exception as error:
            traceback.print_exc()
            _refuse(control, "zygote_preload_failed", f"{name} could not be imported: {type(error).__name__}: {error}")
            return 1
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        # a fork copies only one thread: locks that others hold would stay locked in every child
        modules = ", ".join(arguments[2:])
        _refuse(control, "zygote_not_single_threaded", f"{threads} threads run after importing {modules}.")
        return 1
    gc.freeze()  # prevents the collector in the children from touching, and so copying, every shared page
    server = _Server(control)
    _send(control, {"ready": True})
    server.serve()
    return 0


class _Server:
    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._pids: dict[int, int] = {}
        """Process ids of children that are not reaped yet, by job number."""
        self._children_file = Path(f"/proc/self/task/{os.getpid()}/children")
        self._code = code_paths()
        self._protections = ["descendant_reaper"] if self._children_file.exists() else []
        self._wake, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, _note)

    def serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._control, selectors.EVENT_READ)
            selector.register(self._wake, selectors.EVENT_READ)
            serving = True
            while serving:
                ready = {key.fileobj for key, _ in selector.select()}
                try:
                    if self._wake in ready:
                        serving = signal.SIGTERM not in os.read(self._wake, CONTROL_BYTES)
                        self._reap()
                    if serving and self._control in ready:
                        serving = self._obey()
                except (BrokenPipeError, ConnectionResetError):
                    serving = False
        self._end_all()

    def _obey(self) -> bool:
        """Execute one message; False at the end of the socket."""
        data, descriptors, _, _ = socket.recv_fds(
            self._control, CONTROL_BYTES, _PASSED_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
        )
        if not data:
            return False
        match json.loads(data):
            case {"fork": int(number)}:
                self._fork(number, descriptors)
            case {"kill": int(number)}:
                self._kill(self._pids.get(number))
        return True

    def _fork(self, number: int, descriptors: Sequence[int]) -> None:
        zygote = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            pid = os.fork()
        except OSError as error:
            reply = {"failed": number, "reason": str(error)}
        else:
            if pid == 0:
                run_child(*descriptors, parent=zygote, protections=self._protections, code=self._code)
            self._pids[number] = pid
            reply = {"forked": number, "pid": pid}
        for descriptor in descriptors:
            os.close(descriptor)
        _send(self._control, reply)

    def _kill(self, pid: int | None) -> None:
        """Kill a child and its process group, which exists only once the child has called setsid."""
        if pid is None:
            return
        os.kill(pid, signal.SIGKILL)
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)

    def _reap(self) -> None:
        while (ended := _ended_child()) is not None:
            number = next((number for number, pid in self._pids.items() if pid == ended), None)
            if number is not None:
                self._kill(ended)  # before it is reaped: until then its id and its group's can't be reused
                del self._pids[number]
            _, status, usage = os.wait4(ended, 0)
            self._kill_orphans()
            if number is not None:
                _send(self._control, {"exited": number, "status": status, "peak": usage.ru_maxrss * 1024})

    def _kill_orphans(self) -> None:
        """Kill every process that outlived its parent, in any session: a job must leave nothing behind."""
        for pid in self._orphans():
            os.kill(pid, signal.SIGKILL)

    def _orphans(self) -> set[int]:
        if not self._protections:
            return set()
        return set(map(int, self._children_file.read_text().split())) - set(self._pids.values())

    def _end_all(self) -> None:
        for pid in self._pids.values():
            self._kill(pid)
        while self._pids or self._orphans():
            ended, _ = os.wait()
            self._pids = {number: pid for number, pid in self._pids.items() if pid != ended}
            self._kill_orphans()


def _ended_child() -> int | None:
    try:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return None if found is None else found.si_pid


def _note(_number: int, _frame: Any) -> None:
    """Do nothing: a handler must exist for the wakeup descriptor to receive the signal."""


def _refuse(control: socket.socket, code: str, message: str) -> None:
    _send(control, {"refused": code, "message": message[: CONTROL_BYTES // 8]})


def _send(control: socket.socket, message: dict[str, Any]) -> None:
    control.send(json.dumps(message).encode())


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(status)  # tearing down the preloaded libraries takes long and is useless
