"""What a child gives up before it sees a stranger's file, and the names under which reports say so."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Mapping
from pathlib import Path

from service.sandbox.cgroup import join
from service.sandbox.errors import SandboxError
from service.sandbox.grants import gpu_devices, grants
from service.sandbox.job import JobLimits
from service.sandbox.kernel import prctl
from service.sandbox.landlock import TRUNCATE_VERSION, landlock, landlock_version
from service.sandbox.privileges import become_nobody
from service.sandbox.rlimits import limit_resources
from service.sandbox.seccomp import Filter, seccomp

KEPT_VARIABLES = ("CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TZ")
"""All that is kept of the caller's environment: what finds devices and libraries, and locale."""

THREAD_VARIABLES = (
    "BLIS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
)

QUIET_VARIABLES = {"ORT_DISABLE_TELEMETRY": "1", "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
"""ONNX Runtime otherwise starts an uploader thread on import and reports on the models that it loads. Threads of OpenMP
that spin for their next piece of work take the cores from whoever else has work: on a busy machine an eigenvalue
decomposition on two threads was seen to take 4 s instead of 0.02 s. Those that sleep at once have to be woken for each
piece, which made small pieces six times slower: libgomp's spin for a moment, which its own variable says and others
don't read."""

MEMORY_VARIABLES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""The C library asks for large pages where the system gives them for the asking: a zygote of fewer pages is forked, and
a child of fewer taken apart, in two thirds of the time."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38


def confine(
    limits: JobLimits, *, parent: int, environment: Mapping[str, str], gpu: bool, group: Path | None
) -> list[str]:
    """Gives up, for this process and for good, what a job does not need; files and system calls are left to ``seal``.

    To be called once, in the child.

    Args:
        limits: Ceilings on resources.
        parent: Process id of the zygote, with which this process is to die.
        environment: The whole of the environment from here on.
        gpu: Whether the job may use the devices of GPUs.
        group: Control group to be in, which limits the memory.

    Returns:
        The names of the protections that are active now.

    Raises:
        SandboxError: ``confinement_failed`` if the host refuses one that every host has.
    """
    try:
        os.setsid()
        active = ["setsid", "oom_score"] if _prefer_as_oom_victim() else ["setsid"]
        if group is not None and join(group):
            active.append("cgroup_memory")
        active += become_nobody([os.stat(path).st_gid for path in gpu_devices(gpu)])
        die_with_parent(parent, signal.SIGKILL)  # a change of user cancels it
        prctl(_PR_SET_NO_NEW_PRIVS, 1)
        active += ["parent_death_signal", "no_new_privs", *limit_resources(limits, gpu=gpu)]
    except OSError as error:
        raise SandboxError(
            f"The child could not be confined: {error}.",
            code="confinement_failed",
            advice="Run on Linux 3.5 or later, under no container policy that forbids setsid, prctl or setrlimit.",
        ) from error
    os.environ.clear()
    os.environ.update(environment)
    return [*active, "empty_environment"]


def seal(folder: Path, code: Iterable[str], *, gpu: bool) -> list[str]:
    """Gives up, for this process and for good, every file that is not granted, and system calls.

    To be called once, in the child, with its own code imported and no stranger's file seen; there must be one thread.

    Args:
        folder: Folder of the job, which may be read; no disk may be written to.
        code: Paths of the code that may be imported from here on.
        gpu: Whether the job may use the devices of GPUs.

    Returns:
        The names of the protections that are active now; fewer where the kernel is older.

    Raises:
        SandboxError: ``confinement_failed`` if a kernel that offers Landlock refuses it then.
    """
    try:
        files = landlock(grants(folder, code, gpu=gpu), beside=folder)
    except OSError as error:
        raise SandboxError(
            f"The child could not be kept from other files: {error}.",
            code="confinement_failed",
            advice="Look for what the security modules of this kernel, or a container policy, forbid.",
        ) from error
    truncates = landlock_version() < TRUNCATE_VERSION
    return files + seccomp(Filter(pid=os.getpid(), refuse_truncation=truncates, shared_memory=gpu))


def die_with_parent(parent: int, signal_number: signal.Signals) -> None:
    """Asks the kernel for ``signal_number`` when the parent dies, and ends at once if that has happened already.

    Raises:
        OSError: if the kernel refuses.
    """
    prctl(_PR_SET_PDEATHSIG, signal_number)
    if os.getppid() != parent:
        os._exit(1)


def adopt_orphans() -> None:
    """Makes this process the parent of every descendant whose own parent ends.

    Raises:
        OSError: if the kernel refuses.
    """
    prctl(_PR_SET_CHILD_SUBREAPER, 1)


def zygote_environment(python_path: str) -> dict[str, str]:
    """The environment of the zygote, which its children can read in /proc: nothing secret may be in it."""
    single = dict.fromkeys(THREAD_VARIABLES, "1")  # no library may start a pool of threads before the fork
    home = {"HOME": os.environ.get("HOME", "/")}
    return {
        **_kept(),
        **QUIET_VARIABLES,
        **MEMORY_VARIABLES,
        **single,
        **home,
        "PYTHONPATH": python_path,
        "PYTHONUTF8": "1",
    }


def child_environment(folder: Path, threads: int | None) -> dict[str, str]:
    """The environment of a child: homes and temporary files are in the job folder."""
    pools = {} if threads is None else dict.fromkeys(THREAD_VARIABLES, str(threads))
    return {**_kept(), **QUIET_VARIABLES, **pools, "HOME": str(folder), "TMPDIR": str(folder)}


def _kept() -> dict[str, str]:
    return {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}


def _prefer_as_oom_victim() -> bool:
    """Out of memory, the kernel should end the job rather than the worker or the database; some hosts forbid asking."""
    try:
        Path("/proc/self/oom_score_adj").write_text("1000")
    except OSError:
        return False
    return True
