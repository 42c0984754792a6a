"""Determines how a job ended from what its parent observed."""

from __future__ import annotations

import inspect
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.sandbox.job import JobError, Status
from service.sandbox.protocol import Failure, FrameDecoder, Progress, ProtocolError, Result

ProgressCallback = Callable[[dict[str, Any]], Awaitable[None] | None]
"""Receives the fields of one progress frame. What it awaits delays the child and counts against its time."""


@dataclass(frozen=True, kw_only=True)
class Exit:
    """The end of a child process."""

    status: int
    """Wait status, as in wait(2)."""
    peak_memory_bytes: int

    @property
    def code(self) -> int | None:
        found = os.waitstatus_to_exitcode(self.status)
        return found if found >= 0 else None

    @property
    def signal(self) -> int | None:
        found = os.waitstatus_to_exitcode(self.status)
        return -found if found < 0 else None


@dataclass(kw_only=True)
class Evidence:
    """What the parent observed of one job; filled in as it happens."""

    last_frame: Result | Failure | None = None
    violation: str | None = None
    """What was wrong with the frames, for which the child was killed."""
    timed_out: bool = False
    exit: Exit | None = None
    """None if the zygote died before it could report it."""
    oom_kills: bool = False
    """True if the kernel killed some process for lack of memory meanwhile."""

    @property
    def interrupted(self) -> bool:
        """Whether the child was killed, or its zygote died, without a protocol violation."""
        killed = self.exit is None or (self.exit.signal is not None and self.exit.signal == signal.SIGKILL)
        return killed and self.violation is None


async def observe(data: bytes, decoder: FrameDecoder, evidence: Evidence, on_progress: ProgressCallback | None) -> bool:
    """Note the frames in the next bytes of a child; False if they violate the protocol."""
    try:
        frames = decoder.feed(data)
    except ProtocolError as error:
        evidence.violation = str(error)
        return False
    for frame in frames:
        if not isinstance(frame, Progress):
            evidence.last_frame = frame
        elif on_progress is not None:
            waiting = on_progress(frame.fields)
            if inspect.isawaitable(waiting):
                await waiting
    return True


def diagnose(evidence: Evidence, *, seconds: float) -> tuple[Status, str | JobError]:
    """Return the status, and the result's body or the error.

    A result counts only if the child then ended properly: within its ``seconds``, by itself, and without further
    frames. An error frame counts whatever follows it, because it only states that there is no result.
    """
    if evidence.violation is not None:
        return "crashed", _violation(evidence.violation)
    ended_by = None if evidence.exit is None else evidence.exit.signal
    used_up = ended_by is not None and ended_by == signal.SIGXCPU  # Windows has no such signals
    if evidence.timed_out or used_up:
        return "timed_out", JobError(
            code="time_limit_exceeded",
            message=f"The job was stopped after {seconds:g} seconds" + (" on every core." if used_up else "."),
            advice="Use a smaller model or batch, request less, or allow the job more time.",
            details={"seconds": seconds},
        )
    if isinstance(evidence.last_frame, Failure):
        error = evidence.last_frame.error
        return ("out_of_memory" if error.code == "out_of_memory" else "failed"), error
    if evidence.exit is None:
        return "crashed", JobError(
            code="worker_zygote_died",
            message="The process that jobs are forked from died, and the job with it.",
            advice="Try again; if it happens again, look for the cause in the worker's log.",
        )
    if evidence.oom_kills and ended_by == signal.SIGKILL:
        return "out_of_memory", JobError(
            code="out_of_memory",
            message="The kernel killed the job because memory ran out.",
            advice="Use a smaller model or batch, or give the worker more memory.",
            details={"peak_memory_bytes": evidence.exit.peak_memory_bytes},
        )
    if ended_by is not None:
        return "crashed", _killed(ended_by)
    if evidence.last_frame is None or evidence.exit.code != 0:
        return "crashed", JobError(
            code="worker_child_exited",
            message=f"The job's process exited with status {evidence.exit.code} before it delivered a result.",
            advice="Ask the operator of the service; the log has the cause.",
            details={"exit_code": evidence.exit.code},
        )
    return "succeeded", evidence.last_frame.body


def oom_kill_count() -> int | None:
    """Return how many processes the kernel has killed for lack of memory since it booted; None if unavailable."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


def _violation(what: str) -> JobError:
    return JobError(
        code="worker_protocol_violation",
        message=f"The job's process was stopped because it sent {what}.",
        advice="If you trust the source of the model and the batch, report this as a bug.",
    )


def _killed(number: int) -> JobError:
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    return JobError(
        code="worker_child_killed",
        message=f"The job's process was killed by {name}.",
        advice="Try again; if it happens again, look for the cause in the worker's log.",
        details={"signal": name},
    )
