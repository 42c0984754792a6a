"""The rights that a child gives up before it sees an untrusted file, and the names of these protections in reports."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from service.sandbox.cgroup import join
from service.sandbox.errors import SandboxError
from service.sandbox.grants import gpu_devices, grants
from service.sandbox.job import JobLimits
from service.sandbox.kernel import prctl
from service.sandbox.landlock import TRUNCATE_VERSION, landlock, landlock_version
from service.sandbox.privileges import become_nobody, leave_network
from service.sandbox.rlimits import limit_resources
from service.sandbox.seccomp import Filter, seccomp

KEPT_VARIABLES = ("CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TZ")
"""The only variables kept from the caller's environment: for finding devices and libraries, and the locale."""

THREAD_VARIABLES = (
    "BLIS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
)

QUIET_VARIABLES = {"ORT_DISABLE_TELEMETRY": "1", "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
"""ONNX Runtime otherwise starts an uploader thread on import and reports on the models that it loads. OpenMP threads
that spin while they wait for work take cores away from other processes: on a busy machine an eigenvalue decomposition
on two threads took 4 s instead of 0.02 s. Threads that sleep at once must be woken for each piece of work, which made
small pieces six times slower: libgomp's threads therefore spin briefly, by a variable that other runtimes ignore."""

GPU_VARIABLES = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
"""With a workspace of a fixed size, matrix products on CUDA give the same bits each time."""

MEMORY_VARIABLES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""The C library requests huge pages if the system grants them on request: with fewer pages, forking from the zygote and
tearing down a child take two thirds of the time."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38


def confine(
    limits: JobLimits, *, parent: int, environment: Mapping[str, str], gpu: bool, group: Path | None
) -> list[str]:
    """Give up, irrevocably, what a job does not need; ``seal`` does the same for files and system calls.

    Called once, in the child.

    Args:
        limits: Resource limits.
        parent: Process id of the zygote; this process dies with it.
        environment: The complete environment from now on.
        gpu: Whether the job may use GPU devices.
        group: Control group to join, which limits the memory.

    Returns:
        The names of the protections that are now active.

    Raises:
        SandboxError: ``confinement_failed`` if the host refuses a protection that every host has.
    """
    try:
        os.setsid()
        active = ["setsid", "oom_score"] if _prefer_as_oom_victim() else ["setsid"]
        if group is not None and join(group):
            active.append("cgroup_memory")
        active += leave_network()
        active += become_nobody([os.stat(path).st_gid for path in gpu_devices(gpu)])
        die_with_parent(parent, signal.SIGKILL)  # after the change of user, which would cancel it
        prctl(_PR_SET_NO_NEW_PRIVS, 1)
        active += ["parent_death_signal", "no_new_privs", *limit_resources(limits, gpu=gpu)]
    except OSError as error:
        raise SandboxError(
            f"The child could not be confined: {error}.",
            code="confinement_failed",
            advice="Run on Linux 3.5 or later, without a container policy that forbids setsid, prctl or setrlimit.",
        ) from error
    os.environ.clear()
    os.environ.update(environment)
    return [*active, "empty_environment"]


def seal(folder: Path, readable: Iterable[str], *, gpu: bool) -> list[str]:
    """Give up, irrevocably, every file that is not granted, and system calls.

    Called once, in the child, after it has imported its code and before it sees any untrusted file; there must be only
    one thread.

    Args:
        folder: Folder of the job, which may be read; nothing on disk may be written.
        readable: Paths of the code that may be imported from now on, and of further files that may be read.
        gpu: Whether the job may use GPU devices.

    Returns:
        The names of the protections that are now active; fewer on an older kernel.

    Raises:
        SandboxError: ``confinement_failed`` if a kernel that offers Landlock then refuses it.
    """
    try:
        files = landlock(grants(folder, readable, gpu=gpu), beside=folder)
    except OSError as error:
        raise SandboxError(
            f"The child could not be denied access to other files: {error}.",
            code="confinement_failed",
            advice="Check what the kernel's security modules or a container policy forbid.",
        ) from error
    truncates = landlock_version() < TRUNCATE_VERSION
    return files + seccomp(Filter(pid=os.getpid(), refuse_truncation=truncates, gpu=gpu))


def die_with_parent(parent: int, signal_number: signal.Signals) -> None:
    """Ask the kernel to send ``signal_number`` when the parent dies; exit at once if it has already died.

    Raises:
        OSError: if the kernel refuses.
    """
    prctl(_PR_SET_PDEATHSIG, signal_number)
    if os.getppid() != parent:
        os._exit(1)


def adopt_orphans() -> None:
    """Make this process the parent of every descendant whose own parent ends (a subreaper).

    Raises:
        OSError: if the kernel refuses.
    """
    prctl(_PR_SET_CHILD_SUBREAPER, 1)


def zygote_environment(python_path: str) -> dict[str, str]:
    """Return the environment of the zygote; it must hold no secrets, because children can read it in /proc."""
    single = dict.fromkeys(THREAD_VARIABLES, "1")  # no library may start a thread pool before the fork
    own = {"HOME": os.environ.get("HOME", "/"), "PYTHONPATH": python_path, "PYTHONUTF8": "1"}
    return {**_kept(), **QUIET_VARIABLES, **MEMORY_VARIABLES, **single, **own}


def child_environment(folder: Path, threads: int | None, *, gpu: bool) -> dict[str, str]:
    """Return the environment of a child: its home, caches and temporary files are in the job folder."""
    pools = {} if threads is None else dict.fromkeys(THREAD_VARIABLES, str(threads))
    own = GPU_VARIABLES if gpu else {}
    # torch makes the folder of its cache when its compiler is imported, unless it is there: children make no folders.
    places = dict.fromkeys(("HOME", "TMPDIR", "TORCHINDUCTOR_CACHE_DIR"), str(folder))
    return {**_kept(), **QUIET_VARIABLES, **own, **pools, **places}


def _kept() -> dict[str, str]:
    return {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}


def _prefer_as_oom_victim() -> bool:
    """Have the OOM killer choose the job over the worker or the database; False if the host forbids it."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
        return True
    return False
