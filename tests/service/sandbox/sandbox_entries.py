"""Entry functions for the sandbox's tests: well-behaved, unlucky and hostile ones."""

from __future__ import annotations

import json
import os
import resource
import signal
import stat
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

Request = dict[str, Any]
Emit = Callable[[dict[str, Any]], None]

calls = 0
tempfile.gettempdir()  # which the module remembers, as some libraries make it do on import


class RefusedError(Exception):
    """Has what the engine's errors have, without being one."""

    message = "node 3 'Foo' is not supported"
    code = "unsupported_operator"
    advice = "Export the model without it."

    def __init__(self, details: dict[str, Any]) -> None:
        super().__init__(self.message)
        self.details = details


def echo(request: Request, emit: Emit) -> str:
    return json.dumps(request)


prepared_with: dict[str, Any] = {}


def prepare(*arguments: str) -> None:
    try:
        Path("/etc/passwd").read_bytes()
        confined = False
    except PermissionError:
        confined = True
    prepared_with.update(arguments=list(arguments), confined=confined)


def prepared(request: Request, emit: Emit) -> str:
    return json.dumps(prepared_with)


def big(request: Request, emit: Emit) -> str:
    return "é" * request["characters"]


def count(request: Request, emit: Emit) -> str:
    for number in range(request["to"]):
        emit({"phase": "load", "number": number})
    return "counted"


def remember(request: Request, emit: Emit) -> str:
    global calls
    calls += 1
    return str(calls)


def wait_for_company(request: Request, emit: Emit) -> str:
    """Says that it is here, and stays until it is told that others are."""
    emit({"pid": os.getpid()})
    while not Path("company").exists():
        time.sleep(0.005)
    return "in company"


def refuse(request: Request, emit: Emit) -> str:
    raise RefusedError({"domain": "evil"})


def refuse_with_strange_details(request: Request, emit: Emit) -> str:
    raise RefusedError({"norm": float("nan")})


def refuse_at_length(request: Request, emit: Emit) -> str:
    raise RefusedError({"names": ["n" * 1000] * 1000})


def refuse_with_null_characters(request: Request, emit: Emit) -> str:
    raise RefusedError({"name": "a\0b\ud800"})


def surprise(request: Request, emit: Emit) -> str:
    raise RuntimeError("nobody expects this text")


def leave(request: Request, emit: Emit) -> str:
    sys.exit("left")


def return_a_number(request: Request, emit: Emit) -> Any:
    return 7


def emit_nan(request: Request, emit: Emit) -> str:
    emit({"fraction": float("nan")})
    return "unreachable"


def exhaust_memory(request: Request, emit: Emit) -> str:
    return str(len(bytearray(1 << 60)))


def hang(request: Request, emit: Emit) -> str:
    emit({"pid": os.getpid()})
    _pause_forever()


def spin(request: Request, emit: Emit) -> NoReturn:
    emit({"pid": os.getpid()})
    while True:
        pass


def hang_with_descendants(request: Request, emit: Emit) -> str:
    """Leaves two processes behind: one in its own group, one that fled to another session and lost its parent."""
    in_group = _fork_sleeper()
    read, write = os.pipe()
    middle = os.fork()
    if middle == 0:
        os.setsid()
        os.write(write, struct.pack("i", _fork_sleeper()))
        os._exit(0)
    os.waitpid(middle, 0)
    fled = struct.unpack("i", os.read(read, 4))[0]
    emit({"pid": os.getpid(), "in_group": in_group, "fled": fled})
    if not request.get("return"):
        _pause_forever()
    return "left them"


def kill_itself(request: Request, emit: Emit) -> str:
    os.kill(os.getpid(), request["signal"])
    return "survived"


def exit_early(request: Request, emit: Emit) -> str:
    os._exit(request["status"])


def write_bytes(request: Request, emit: Emit) -> str:
    os.write(_pipe(), bytes.fromhex(request["hex"]))
    if request.get("hang"):
        _pause_forever()
    return "honest"


def deliver_then_die(request: Request, emit: Emit) -> str:
    payload = b'{"type":"result","body":"early"}'
    os.write(_pipe(), struct.pack(">I", len(payload)) + payload)
    os._exit(9)


def flood(request: Request, emit: Emit) -> str:
    pipe, payload = _pipe(), b'{"type":"progress","number":1}'
    frames = (struct.pack(">I", len(payload)) + payload) * 2000
    while True:
        os.write(pipe, frames)


def write_much(request: Request, emit: Emit) -> str:
    for _ in range(100):
        sys.stdout.write("x" * 10_000)
        sys.stdout.flush()
    return "unreachable"


def write_log(request: Request, emit: Emit) -> str:
    sys.stdout.write("to stdout\n")
    sys.stderr.write("to stderr\n")
    os.unlink("child.log")
    os.symlink("/etc/hostname", "child.log")
    return "written"


def environment(request: Request, emit: Emit) -> str:
    initial = Path("/proc/self/environ").read_text()
    return json.dumps({"now": dict(os.environ), "initial": initial})


def surroundings(request: Request, emit: Emit) -> str:
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return json.dumps(
        {
            "folder": os.getcwd(),
            "temporary_folder": tempfile.gettempdir(),
            "stdin": os.read(0, 10).decode(),
            "descriptors": sorted(int(name) for name in os.listdir("/proc/self/fd") if _is_open(int(name))),
            "leads_session": os.getsid(0) == os.getpid(),
            "no_new_privs": status["NoNewPrivs"],
            "blocked_signals": int(status["SigBlk"], 16),
            "sigterm_is_default": signal.getsignal(signal.SIGTERM) is signal.SIG_DFL,
            "core": resource.getrlimit(resource.RLIMIT_CORE),
            "open_files": resource.getrlimit(resource.RLIMIT_NOFILE),
            "file_bytes": resource.getrlimit(resource.RLIMIT_FSIZE),
            "oom_score": Path("/proc/self/oom_score_adj").read_text().strip(),
            "user": os.getresuid(),
            "groups": [*os.getresgid(), *os.getgroups()],
            "capabilities": [status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")],
            "bounding_set": int(status["CapBnd"], 16),
            "cpu_seconds": resource.getrlimit(resource.RLIMIT_CPU),
            "tasks": resource.getrlimit(resource.RLIMIT_NPROC),
            "sandbox": request["sandbox"],
            "threads": request["threads"],
        }
    )


def flood_from_another_session(request: Request, emit: Emit) -> str:
    if os.fork() == 0:
        os.setsid()
        emit({"flooder": os.getpid()})  # before the flood
        flood(request, emit)
    _pause_forever()


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _pipe() -> int:
    (pipe,) = (fd for fd in range(3, 64) if _is_open(fd) and stat.S_ISFIFO(os.fstat(fd).st_mode))
    return pipe


def _fork_sleeper() -> int:
    pid = os.fork()
    if pid == 0:
        _pause_forever()
    return pid


def _pause_forever() -> NoReturn:
    while True:
        signal.pause()
