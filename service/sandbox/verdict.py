"""How a job ended, judged from what its parent saw."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

from service.sandbox.job import JobError, Status
from service.sandbox.protocol import Failure, Result


@dataclass(frozen=True, kw_only=True)
class Exit:
    """The end of a child process."""

    status: int
    """As wait(2) gives it."""
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
    """What the parent saw of one job; filled in as it happens."""

    last_frame: Result | Failure | None = None
    violation: str | None = None
    """What was wrong with the frames; the child was killed for it."""
    timed_out: bool = False
    exit: Exit | None = None
    """None where the zygote died before it could say."""
    oom_kills: bool = False
    """The kernel killed something for want of memory meanwhile."""

    @property
    def interrupted(self) -> bool:
        """Whether the child was killed, or its zygote died, though there was nothing against it."""
        killed = self.exit is None or (self.exit.signal is not None and self.exit.signal == signal.SIGKILL)
        return killed and self.violation is None


def judge(evidence: Evidence, *, seconds: float) -> tuple[Status, str | JobError]:
    """Gives the status, and the result's body or the error.

    A result counts only if the child then ended in good order: within its ``seconds``, on its own, with nothing more to
    say. An error frame counts whatever came after it, since it claims no more than that there is no result.
    """
    if evidence.violation is not None:
        return "crashed", _violation(evidence.violation)
    ended_by = None if evidence.exit is None else evidence.exit.signal
    used_up = ended_by is not None and ended_by == signal.SIGXCPU  # Windows has no such signals
    if evidence.timed_out or used_up:
        return "timed_out", JobError(
            code="time_limit_exceeded",
            message=f"The job was stopped after {seconds:g} seconds" + (" on every core." if used_up else "."),
            advice="Use a smaller model or batch, ask for less, or allow the job more time.",
            details={"seconds": seconds},
        )
    if isinstance(evidence.last_frame, Failure):
        error = evidence.last_frame.error
        return ("out_of_memory" if error.code == "out_of_memory" else "failed"), error
    if evidence.exit is None:
        return "crashed", JobError(
            code="worker_zygote_died",
            message="The process that jobs are forked from died, and the job with it.",
            advice="Try again; if it happens again, look for the cause in the log of the worker.",
        )
    if evidence.oom_kills and ended_by == signal.SIGKILL:
        return "out_of_memory", JobError(
            code="out_of_memory",
            message="The kernel ended the job because memory ran out.",
            advice="Use a smaller model or batch, or give the worker more memory.",
            details={"peak_memory_bytes": evidence.exit.peak_memory_bytes},
        )
    if ended_by is not None:
        return "crashed", _killed(ended_by)
    if evidence.last_frame is None or evidence.exit.code != 0:
        return "crashed", JobError(
            code="worker_child_exited",
            message=f"The job's process ended with status {evidence.exit.code} before it had delivered a result.",
            advice="Ask the operator of the service, who finds the cause in the log.",
            details={"exit_code": evidence.exit.code},
        )
    return "succeeded", evidence.last_frame.body


def oom_kill_count() -> int | None:
    """How often the kernel has killed a process for want of memory since it started; None where it doesn't say."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


def _violation(what: str) -> JobError:
    return JobError(
        code="worker_protocol_violation",
        message=f"The job's process was stopped: it sent {what}.",
        advice="If the model and the batch come from a source that you trust, report this as a bug.",
    )


def _killed(number: int) -> JobError:
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    return JobError(
        code="worker_child_killed",
        message=f"The job's process was ended by {name}.",
        advice="Try again; if it happens again, look for the cause in the log of the worker.",
        details={"signal": name},
    )
