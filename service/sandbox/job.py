"""What is asked of the sandbox, and what comes back."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

LOG_NAME = "child.log"
"""File in the job folder that takes the child's stdout and stderr."""

Status = Literal["succeeded", "failed", "timed_out", "crashed", "out_of_memory"]

_ENTRY = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


@dataclass(frozen=True, kw_only=True)
class JobLimits:
    """Ceilings of one child; a lower hard limit of the host stays in force."""

    open_files: int = 1024
    file_bytes: int = 256 << 20
    """Largest file that the child can write, its log included."""
    frame_bytes: int = 64 << 20
    """Longest frame, the result's included, on the pipe to the parent."""
    threads: int = 1024
    """Threads that the child can have at one time; it can have no further processes."""
    memory_bytes: int | None = None
    """Memory that the child can take besides what it shares with the zygote; None is no limit."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a child is, what confines it, and what it will run: all that it has to know before it knows its request.

    Args:
        folder: An existing folder that is this job's alone; the child can read it, and can't write to it.
        entry: ``package.module:function``, importable where the zygote's caller can import it. What the module needs
            from outside the Python installation it has to import when it is imported itself.
        threads: Number of threads for the entry; None leaves it to the entry.
        limits: Ceilings on what the child can open, write, send and use.
        gpu: Whether the entry may use the devices of GPUs.
        group: A control group beneath which the child gets one of its own, which limits its memory; see ``cgroup``.
        required: Names of protections without which the job is not to run; it fails as ``sandbox_insufficient`` then.

    Raises:
        ValueError: if ``entry`` or ``threads`` makes no sense.
    """

    folder: Path
    entry: str
    threads: int | None = None
    limits: JobLimits = field(default_factory=JobLimits)
    gpu: bool = False
    group: Path | None = None
    required: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not _ENTRY.fullmatch(self.entry):
            raise ValueError(f"entry {self.entry!r} is not of the form package.module:function")
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
        seconds: Wall-clock limit, the fork included.

    Raises:
        ValueError: if ``seconds`` makes no sense, or what ``Place`` takes.
    """

    request: dict[str, Any]
    seconds: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.seconds > 0:
            raise ValueError(f"seconds must be positive, not {self.seconds}")


@dataclass(frozen=True, kw_only=True)
class JobError:
    """Why a job gave no result: a stable code, what was found, what to do about it, facts for programs."""

    code: str
    message: str
    advice: str
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a job ended; exactly one of ``result`` and ``error`` is there."""

    status: Status
    interrupted: bool
    """Somebody else ended it, which says nothing about the job: another attempt may well succeed."""
    result: str | None
    error: JobError | None
    exit_code: int | None
    """Of the child; None if a signal ended it, or nobody saw it end."""
    exit_signal: int | None
    peak_memory_bytes: int | None
    """Largest resident set of the child, pages shared with the zygote included."""
    seconds: float
    """Wall-clock time from the fork to the end."""
    log: str = field(repr=False)
    """The end of what the child wrote to stdout and stderr; for operators only, as tracebacks are in it. Take it from
    here rather than from the job folder, where the child could have put a link to another file in its place."""
