"""Requests to the sandbox, and their outcomes."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

LOG_NAME = "child.log"
"""File in the job folder for the child's stdout and stderr."""

Status = Literal["succeeded", "failed", "timed_out", "crashed", "out_of_memory"]

_ENTRY = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


@dataclass(frozen=True, kw_only=True)
class JobLimits:
    """Resource limits of one child; a lower hard limit of the host stays in force."""

    open_files: int = 1024
    file_bytes: int = 256 << 20
    """Largest file that the child can write, including its log."""
    frame_bytes: int = 16 << 20
    """Longest frame on the pipe to the parent, including the result."""
    threads: int = 1024
    """Most threads of the child at once; it can't start further processes."""
    memory_bytes: int | None = None
    """Memory of the child besides what it shares with the zygote; None for no limit."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a child runs, what confines it and what it will run: all that it needs before its request.

    Args:
        folder: An existing folder used by this job only; the child can read it but not write to it.
        entry: ``package.module:function``, importable wherever the zygote's caller can import it. The module must
            import anything it needs from outside the Python installation when it is itself imported.
        threads: Number of threads for the entry; None lets the entry choose.
        limits: Limits on what the child can open, write, send and use.
        gpu: Whether the entry may use GPU devices.
        group: A control group below which the child gets its own, which limits its memory; see ``cgroup``.
        readable: Further files that the child can read where they are.
        required: Names of protections without which the job must not run; it then fails as ``sandbox_insufficient``.
        ahead: A further function of the same form, and its arguments, which are strings: what the child calls before it
            waits for its request, once it is confined. An error of it is logged; the job goes on.

    Raises:
        ValueError: if ``entry``, ``ahead`` or ``threads`` is invalid.
    """

    folder: Path
    entry: str
    threads: int | None = None
    limits: JobLimits = field(default_factory=JobLimits)
    gpu: bool = False
    group: Path | None = None
    readable: tuple[Path, ...] = ()
    required: tuple[str, ...] = ()
    ahead: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for entry in (self.entry, *self.ahead[:1]):
            if not _ENTRY.fullmatch(entry):
                raise ValueError(f"entry {entry!r} is not of the form package.module:function")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be at least 1, not {self.threads}")


@dataclass(frozen=True, kw_only=True)
class Job(Place):
    """One call of an entry function in a fresh child.

    The function is called as ``function(request, emit_progress)`` with the job folder as its working directory and
    returns the result as a string. ``request`` reaches it with two keys added: ``threads``, as given here, and
    ``sandbox``, the names of the active protections.

    Args:
        request: JSON-compatible argument of the entry; numbers must be finite.
        seconds: Wall-clock limit, including the fork.

    Raises:
        ValueError: if ``seconds`` or an argument of ``Place`` is invalid.
    """

    request: dict[str, Any]
    seconds: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.seconds > 0:
            raise ValueError(f"seconds must be positive, not {self.seconds}")


@dataclass(frozen=True, kw_only=True)
class JobError:
    """Why a job has no result: a stable code, what was found, what to do about it, facts for programs."""

    code: str
    message: str
    advice: str
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a job ended; exactly one of ``result`` and ``error`` is set."""

    status: Status
    interrupted: bool
    """True if something outside ended it, which says nothing about the job: another attempt may succeed."""
    result: str | None
    error: JobError | None
    exit_code: int | None
    """Exit code of the child; None if a signal ended it or its end was not observed."""
    exit_signal: int | None
    peak_memory_bytes: int | None
    """Largest resident set of the child, including pages shared with the zygote."""
    seconds: float
    """Wall-clock time from the fork to the end."""
    log: str = field(repr=False)
    """The end of the child's stdout and stderr; for operators only, because it contains tracebacks. Use this rather
    than the file in the job folder, which the child could have replaced by a link to another file."""
