"""Runs each job in its own child process, forked from a preloaded process, and reports how it ended.

``Zygote`` is the caller's handle. The sandbox knows entry functions only by their dotted names and their output only
as JSON: nothing that a child sends is executed or unpickled.
"""

from service.sandbox.cgroup import delegated_group
from service.sandbox.errors import SandboxError
from service.sandbox.job import Job, JobError, JobLimits, Outcome, Place
from service.sandbox.parent import Child, ProgressCallback, Zygote
from service.sandbox.rlimits import usable_memory_bytes

__all__ = [
    "Child",
    "Job",
    "JobError",
    "JobLimits",
    "Outcome",
    "Place",
    "ProgressCallback",
    "SandboxError",
    "Zygote",
    "delegated_group",
    "usable_memory_bytes",
]
