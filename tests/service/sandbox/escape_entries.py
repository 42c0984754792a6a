"""Entries that try to get out of the sandbox, each by one way; they return how far they got."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from service.sandbox.seccomp import _MACHINES
from service.sandbox.syscalls import CONDITIONAL, REFUSED

Request = dict[str, Any]
Emit = Callable[[dict[str, Any]], None]

SUCCEEDED = "succeeded"
libc = ctypes.CDLL(None, use_errno=True)


def protections(request: Request, emit: Emit) -> str:
    return " ".join(request["sandbox"])


def read(request: Request, emit: Emit) -> str:
    return _attempt(lambda: Path(request["path"]).read_bytes())


def list_folder(request: Request, emit: Emit) -> str:
    return _attempt(lambda: os.listdir(request["path"]))


def change_files(request: Request, emit: Emit) -> str:
    """All that can be done to a file, or in its folder, besides reading."""
    path = request["path"]
    beside = f"{path}-2"
    ways = {
        "write": lambda: os.open(path, os.O_WRONLY),
        "append": lambda: os.open(path, os.O_WRONLY | os.O_APPEND),
        "truncate": lambda: os.truncate(path, 0),
        "truncate on opening": lambda: os.open(path, os.O_RDONLY | os.O_TRUNC),
        "create": lambda: os.open(beside, os.O_WRONLY | os.O_CREAT),
        "create without a name": lambda: os.open(os.path.dirname(path), os.O_WRONLY | os.O_TMPFILE),
        "create a folder": lambda: os.mkdir(beside),
        "create a link": lambda: os.symlink(path, beside),
        "create a second name": lambda: os.link(path, beside),
        "create a device": lambda: os.mknod(beside, 0o600),
        "rename": lambda: os.rename(path, beside),
        "remove": lambda: os.unlink(path),
        "change the mode": lambda: os.chmod(path, 0),
        "change the owner": lambda: os.chown(path, os.getuid(), os.getgid()),
        "change the times": lambda: os.utime(path, (0, 0)),
        "set an attribute": lambda: os.setxattr(path, "user.wsb", b"1"),
    }
    return ", ".join(name for name, way in ways.items() if _attempt(way) == SUCCEEDED) or "nothing"


def connect(request: Request, emit: Emit) -> str:
    def way() -> None:
        if request["path"]:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(request["path"])
        else:
            with socket.socket() as client:
                client.connect(("127.0.0.1", request["port"]))

    return _attempt(way)


def make_sockets(request: Request, emit: Emit) -> str:
    families = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.AF_NETLINK, socket.AF_VSOCK)
    kinds = (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW)
    ways = [lambda pair=pair: socket.socket(*pair) for pair in ((f, k) for f in families for k in kinds)]
    return " ".join(sorted({_attempt(way) for way in [*ways, socket.socketpair]}))


def fork_until_refused(request: Request, emit: Emit) -> str:
    emit({"pid": os.getpid()})
    children = 0
    while True:
        try:
            if os.fork() == 0:
                signal.pause()
            children += 1
        except OSError as error:
            return f"{children} {errno.errorcode[error.errno]}"


def start_threads_until_refused(request: Request, emit: Emit) -> str:
    wait, threads = threading.Event(), 0
    threading.stack_size(64 << 10)
    while threads < request["most"]:
        try:
            threading.Thread(target=wait.wait, daemon=True).start()
        except RuntimeError:
            break
        threads += 1
    wait.set()
    return str(threads)


def run_program(request: Request, emit: Emit) -> str:
    ways = (
        lambda: os.execv(sys.executable, [sys.executable, "-c", ""]),  # noqa: S606
        lambda: subprocess.run([sys.executable, "-c", ""], check=True),
        lambda: os.posix_spawn(sys.executable, [sys.executable, "-c", ""], {}),
    )
    return " ".join(_attempt(way) for way in ways)


def reach_into(request: Request, emit: Emit) -> str:
    """Into other processes' memory, environment and descriptors."""
    attach, buffer = 16, ctypes.create_string_buffer(8)
    vector = (ctypes.c_ulong * 2)(ctypes.addressof(buffer), 8)
    ways: dict[str, Callable[[int], Any]] = {
        "attach": lambda pid: _check(libc.ptrace(attach, pid, 0, 0)),
        "read": lambda pid: _check(libc.process_vm_readv(pid, vector, 1, vector, 1, 0)),
        "environment": lambda pid: Path(f"/proc/{pid}/environ").read_bytes(),
        "memory": lambda pid: os.open(f"/proc/{pid}/mem", os.O_RDONLY),
        "descriptors": lambda pid: os.listdir(f"/proc/{pid}/fd"),
        "command line": lambda pid: Path(f"/proc/{pid}/cmdline").read_bytes(),
    }
    tried = ((name, _attempt(lambda: way(pid))) for name, way in ways.items() for pid in request["pids"])  # noqa: B023
    return ", ".join(name for name, end in tried if end == SUCCEEDED) or "nothing"


def signal_others(request: Request, emit: Emit) -> str:
    pids = [*request["pids"], *(-pid for pid in request["pids"]), -1, 0]
    numbers = (0, signal.SIGTERM, signal.SIGKILL)
    ways = [lambda pid=pid, number=number: os.kill(pid, number) for pid in pids for number in numbers]
    ways += [lambda pid=pid: os.pidfd_open(pid) for pid in request["pids"]]
    return " ".join(sorted({_attempt(way) for way in ways}))


def slow_others_down(request: Request, emit: Emit) -> str:
    ways: tuple[Callable[[int], Any], ...] = (
        lambda pid: os.setpriority(os.PRIO_PROCESS, pid, 19),
        lambda pid: os.sched_setaffinity(pid, {min(os.sched_getaffinity(0))}),
        lambda pid: resource.prlimit(pid, resource.RLIMIT_CPU, (1, 1)),
    )
    return " ".join(sorted({_attempt(lambda: way(pid)) for way in ways for pid in request["pids"]}))  # noqa: B023


def take_memory(request: Request, emit: Emit) -> str:
    size = request["bytes"]
    match request["how"]:
        case "at once":
            return str(len(bytearray(size)))
        case "bit by bit":
            held = []
            for _ in range(size >> 20):
                held.append(bytearray(1 << 20))
            return str(len(held))
        case "shared":
            return _attempt(lambda: mmap.mmap(-1, size))
        case "as a stack":
            grows_down = 0x100
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | grows_down
            return _attempt(lambda: mmap.mmap(-1, size, flags=flags))
        case "as a file":
            return _attempt(lambda: os.memfd_create("memory"))
        case "as addresses":
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            return _attempt(lambda: mmap.mmap(-1, size, flags=flags, prot=mmap.PROT_READ))
    raise ValueError(request["how"])


def raise_limits(request: Request, emit: Emit) -> str:
    kinds = (resource.RLIMIT_CPU, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE, resource.RLIMIT_DATA)
    ways = [lambda kind=kind: resource.setrlimit(kind, (resource.RLIM_INFINITY,) * 2) for kind in kinds]
    return " ".join(sorted({_attempt(way) for way in ways}))


def become_root(request: Request, emit: Emit) -> str:
    ways = (lambda: os.setuid(0), lambda: os.setresuid(0, 0, 0), lambda: os.setgroups([0]), lambda: os.setgid(0))
    return " ".join(sorted({_attempt(way) for way in ways}))


def fill_the_disk(request: Request, emit: Emit) -> str:
    keep_size, standard_output = 1, 1
    ways = (
        lambda: os.open("filler", os.O_WRONLY | os.O_CREAT),
        lambda: _write_without_end(standard_output),
        lambda: os.ftruncate(standard_output, 1 << 40),
        lambda: _check(libc.fallocate(standard_output, keep_size, ctypes.c_long(0), ctypes.c_long(1 << 30))),
    )
    return " ".join(_attempt(way) for way in ways)


def call_what_is_refused(request: Request, emit: Emit) -> str:
    """The names of system calls that the filter should refuse, and that came through to the kernel."""
    column, _ = _MACHINES[os.uname().machine]
    got_through = []
    for name, numbers in REFUSED.items():
        if (number := numbers[column]) is not None:
            ctypes.set_errno(0)
            result = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(-1) for _ in range(6)))
            if (result, ctypes.get_errno()) != (-1, errno.EPERM):
                got_through.append(name)
    return " ".join(got_through)


def outlive_the_parent(request: Request, emit: Emit) -> str:
    set_parent_death_signal = 1
    return _attempt(lambda: _check(libc.prctl(set_parent_death_signal, 0, 0, 0, 0)))


def make_namespaces(request: Request, emit: Emit) -> str:
    column, _ = _MACHINES[os.uname().machine]
    new_user, new_pid, new_network = 0x10000000, 0x20000000, 0x40000000
    clone, thread = CONDITIONAL["clone"][column], 0x00010000
    flags = [kind | more for kind in (new_user, new_pid, new_network) for more in (0, thread)]
    ways = [lambda flag=flag: _check(libc.syscall(ctypes.c_long(clone), ctypes.c_long(flag), 0)) for flag in flags]
    return " ".join(sorted({_attempt(way) for way in ways}))


def compute_on_threads(request: Request, emit: Emit) -> str:
    import numpy as np
    import torch

    torch.set_num_threads(request["threads"])
    matrix = torch.eye(600, dtype=torch.float64) * 2
    return f"{float(torch.linalg.eigvalsh(matrix @ matrix).max())} {np.linalg.norm(np.ones(4))}"


def _attempt(way: Callable[[], Any]) -> str:
    try:
        way()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    except ValueError as error:
        return str(error)
    return SUCCEEDED


def _check(result: int) -> None:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _write_without_end(descriptor: int) -> None:
    while True:
        os.write(descriptor, b"x" * (1 << 20))
