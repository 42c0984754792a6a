"""The forked child: confines itself, runs the entry function, sends frames and exits."""

from __future__ import annotations

import faulthandler
import gc
import importlib
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from service.sandbox.confinement import child_environment, confine, seal
from service.sandbox.errors import SandboxError
from service.sandbox.grants import code_paths
from service.sandbox.job import JobError, JobLimits
from service.sandbox.protocol import encode_error, encode_progress, encode_result, is_code, write_whole
from service.sandbox.rlimits import limit_cpu_time

Entry = Callable[[dict[str, Any], Callable[[dict[str, Any]], None]], str]


def run_child(
    place: int,
    request: int,
    go: int,
    pipe: int,
    log: int,
    *,
    parent: int,
    protections: Sequence[str],
    code: Collection[str],
) -> NoReturn:
    """Run one job to its end in the calling process; never returns.

    Args:
        place: Descriptor of a file with the place as JSON.
        request: Descriptor of a file with the request as JSON, to be read after a byte in ``go``.
        go: Descriptor of a pipe; if it is closed without a byte, there is no request.
        pipe: Descriptor to write frames to.
        log: Descriptor for stdout and stderr.
        parent: Process id of the zygote.
        protections: Names of the protections that the zygote provides.
        code: Paths of the code that the zygote has imported.
    """
    delivered = False
    try:
        _restore_signals()
        where = json.loads(_read_all(place))
        _keep_only(request, go, pipe, log=log)
        frame = _work(where, request, go, pipe, parent, protections, code)
        if frame is not None:
            write_whole(pipe, frame)
        delivered = True
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):  # the log may be full; that must not turn a result into a crash
            sys.stdout.flush()
            sys.stderr.flush()
        # not sys.exit: the exit handlers and outer frames belong to the zygote
        os._exit(0 if delivered else 1)


def _work(
    place: dict[str, Any],
    request: int,
    go: int,
    pipe: int,
    parent: int,
    protections: Sequence[str],
    code: Collection[str],
) -> bytes | None:
    """Return the last frame; None if no request arrives."""
    out_of_memory = encode_error(_OUT_OF_MEMORY)  # encoded while there is memory for it
    try:
        folder, threads, limits = Path(place["folder"]), place["threads"], JobLimits(**place["limits"])
        os.chdir(folder)
        gpu = place["gpu"]
        environment = child_environment(folder, threads, gpu=gpu)
        group = None if place["group"] is None else Path(place["group"])
        active = confine(limits, parent=parent, environment=environment, gpu=gpu, group=group)
        tempfile.tempdir = str(folder)  # rather than the first writable folder that it finds
        faulthandler.enable()
        gc.enable()
        preloaded = place["entry"].partition(":")[0] in sys.modules
        entry = _load(place["entry"])
        readable = [*(code if preloaded else code_paths()), *place["readable"]]
        active = [*protections, *active, *seal(folder, readable, gpu=gpu)]
        check(active, place["required"])
        _prepare(place["ahead"])
        job = _wait(request, go)
        if job is None:
            return None
        limit_cpu_time(job["seconds"])
        own = {"threads": threads, "memory_bytes": limits.memory_bytes, "sandbox": [*active, "rlimit_cpu"]}
        asked = {**job["request"], **own}
        body = entry(asked, lambda fields: write_whole(pipe, encode_progress(fields)))
        if not isinstance(body, str):
            raise TypeError(f"{place['entry']} returned {type(body).__name__}, not str")
        return encode_result(body, frame_bytes=limits.frame_bytes)
    except MemoryError:
        return out_of_memory
    except BaseException as error:
        return _failure(error)


def _prepare(ahead: Sequence[str]) -> None:
    """Do what can be done before there is a request; the job meets again what fails here."""
    if ahead:
        function, *arguments = ahead
        try:
            _loaded(function)(*arguments)
        except Exception:
            with suppress(OSError):  # the log may be full
                traceback.print_exc()


def _wait(request: int, go: int) -> dict[str, Any] | None:
    """Wait for the request and its time limit; None if the caller has gone."""
    asked = os.read(go, 1)
    os.close(go)
    content: dict[str, Any] | None = json.loads(_read_all(request)) if asked else None
    os.close(request)
    return content


def unconfined_frame(entry: str, request: dict[str, Any], pipe: int, *, frame_bytes: int) -> bytes:
    """Run an entry in this process as it is, with its progress to ``pipe``, and return the last frame."""
    try:
        body = _load(entry)(request, lambda fields: write_whole(pipe, encode_progress(fields)))
        return encode_result(body, frame_bytes=frame_bytes)
    except MemoryError:
        return encode_error(_OUT_OF_MEMORY)
    except BaseException as error:
        return _failure(error)


def _failure(error: BaseException) -> bytes:
    known = _stated(error)
    if known is None:
        with suppress(OSError):  # the log may be full
            traceback.print_exception(error)
    return encode_error(known or _INTERNAL_ERROR)


def check(active: Sequence[str], required: Sequence[str]) -> None:
    """Raise SandboxError ``sandbox_insufficient`` if a required protection is not active."""
    missing = sorted(set(required) - set(active))
    if missing:
        raise SandboxError(
            f"This host lacks required protections: {', '.join(missing)}.",
            code="sandbox_insufficient",
            advice="Use Linux 5.13 or later on x86-64 or AArch64, with Landlock and seccomp, and keep job folders "
            "outside the folders of Python and the system; or require less protection.",
            missing=missing,
            active=sorted(active),
        )


def _load(entry: str) -> Entry:
    loaded: Entry = _loaded(entry)
    return loaded


def _loaded(entry: str) -> Any:
    module, _, function = entry.partition(":")
    return getattr(importlib.import_module(module), function)


def _stated(error: BaseException) -> JobError | None:
    """Convert an error that has a code, a message, advice and details; None for an unexpected one."""
    match [getattr(error, name, None) for name in ("code", "message", "advice", "details")]:
        case [str(code), str(message), str(advice), Mapping() as details] if is_code(code):
            return JobError(code=code, message=message, advice=advice, details=dict(details))
    return None


def _restore_signals() -> None:
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _keep_only(*kept: int, log: int) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in (0, 1, 2, *kept):
            with suppress(OSError):  # the descriptor that listed the folder is already closed
                os.close(int(name))


def _read_all(descriptor: int) -> bytes:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


_OUT_OF_MEMORY = JobError(
    code="out_of_memory",
    message="The job ran out of memory.",
    advice="Use a smaller model or batch, or allow the job more memory.",
)

_INTERNAL_ERROR = JobError(
    code="internal_error",
    message="The job failed with an unexpected error.",
    advice="Ask the operator of the service; the log has the cause.",
)
