"""Entries that try to get out of the sandbox, each by one way; they return how far they got."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import resource
import signal
import socket
import struct
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


def signal_by_files(request: Request, emit: Emit) -> str:
    """Every way to name a process to which the kernel sends a signal once a file is ready or changed."""
    own, owner, asynchronous = 0x2000, struct.pack("ii", 1, request["pids"][0]), struct.pack("i", 1)
    reader, _ = os.pipe()
    flags = fcntl.fcntl(reader, fcntl.F_GETFL)
    folder = os.open(".", os.O_RDONLY)
    ways = (
        lambda: fcntl.fcntl(reader, fcntl.F_SETOWN, request["pids"][0]),
        lambda: fcntl.fcntl(reader, fcntl.F_SETOWN, -1),
        lambda: fcntl.fcntl(reader, 15, owner),
        lambda: fcntl.fcntl(reader, fcntl.F_SETSIG, signal.SIGKILL),
        lambda: fcntl.fcntl(reader, fcntl.F_SETFL, flags | own),
        lambda: fcntl.fcntl(folder, fcntl.F_SETLEASE, fcntl.F_RDLCK),
        lambda: fcntl.fcntl(folder, fcntl.F_NOTIFY, fcntl.DN_MODIFY),
        lambda: fcntl.ioctl(reader, 0x5452, asynchronous),
        lambda: fcntl.ioctl(reader, 0x8901, owner),
        lambda: fcntl.ioctl(reader, 0x8902, owner),
        lambda: fcntl.ioctl(folder, 0x40086602, struct.pack("q", 0x10)),
        lambda: fcntl.ioctl(0, 0x5412, b"x"),
    )
    return " ".join(sorted({_attempt(way) for way in ways}))


def set_flags_of_files(request: Request, emit: Emit) -> str:
    reader, _ = os.pipe()
    ways = (
        lambda: os.set_blocking(reader, False),
        lambda: os.set_inheritable(reader, False),
        lambda: fcntl.fcntl(reader, fcntl.F_DUPFD_CLOEXEC, 10),
        lambda: fcntl.fcntl(reader, fcntl.F_GETOWN),
    )
    return " ".join(sorted({_attempt(way) for way in ways}))


def list_networks(request: Request, emit: Emit) -> str:
    lines = Path("/proc/self/net/dev").read_text().splitlines()[2:]
    return " ".join(sorted(line.partition(":")[0].strip() for line in lines))


def start_like_cuda(request: Request, emit: Emit) -> str:
    """What cuInit does and what it doesn't: threads' names and a socket to listen on, then other sockets and files."""
    kind = socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC
    thread = threading.get_native_id()
    own = libc.socket(socket.AF_UNIX, kind, 0)
    address = struct.pack("H", socket.AF_UNIX) + f"\0wsb-{os.getpid()}".encode()
    ways = [
        lambda: Path(f"/proc/self/task/{thread}/comm").write_text("renamed"),
        lambda: os.close(os.open(f"/proc/self/task/{thread}/comm", os.O_WRONLY | os.O_TRUNC)),
        lambda: _check(libc.bind(own, address, len(address))),
        lambda: _check(libc.listen(own, 1)),
        lambda: _check(libc.accept4(own, None, None, 0)),
        lambda: _check(libc.connect(own, address, len(address))),
        lambda: _check(libc.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0)),
        lambda: _check(libc.socket(socket.AF_UNIX, socket.SOCK_DGRAM, 0)),
        lambda: _check(libc.socket(socket.AF_INET, socket.SOCK_SEQPACKET, 0)),
        lambda: _check(libc.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)),
        lambda: _check(libc.socketpair(socket.AF_UNIX, kind, 0, (ctypes.c_int * 2)())),
        lambda: os.open("/proc/self/comm", os.O_WRONLY),
        lambda: os.open("/proc/self/oom_score_adj", os.O_WRONLY),
        lambda: os.open("/proc/1/comm", os.O_WRONLY),
    ]
    return " ".join(_attempt(way) for way in ways)


def resize_memory(request: Request, emit: Emit) -> str:
    """By realloc, which would rather move pages than copy them."""
    import numpy as np

    array = np.ones(1 << 24)
    for size in (1 << 25, 1 << 22, 3 << 23):
        array.resize(size, refcheck=False)
        assert array[: 1 << 22].sum() == 1 << 22
    return SUCCEEDED


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
        case "by growing the stack":
            libc.mremap.restype = ctypes.c_void_p
            stack = next(line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith("[stack]"))
            start, end = (int(part, 16) for part in stack.split()[0].split("-"))
            moved = libc.mremap(ctypes.c_void_p(start), ctypes.c_size_t(end - start), ctypes.c_size_t(size), 1)
            return _attempt(lambda: _check(-1 if moved == 2**64 - 1 else 0))
        case "as a file":
            return _attempt(lambda: os.memfd_create("memory"))
        case "as addresses":
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            return _attempt(lambda: mmap.mmap(-1, size, flags=flags, prot=mmap.PROT_READ))
    raise ValueError(request["how"])


def raise_limits(request: Request, emit: Emit) -> str:
    kinds = (
        resource.RLIMIT_CPU,
        resource.RLIMIT_FSIZE,
        resource.RLIMIT_NOFILE,
        resource.RLIMIT_DATA,
        resource.RLIMIT_STACK,
    )
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
