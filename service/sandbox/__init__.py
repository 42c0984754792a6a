"""Runs each job in its own child process, forked from a preloaded process, and reports how it ended.

``Zygote`` is the caller's handle. The sandbox knows entry functions only by their dotted names and their output only
as JSON: nothing that a child sends is executed or unpickled.
"""

import sys

from service.sandbox.cgroup import delegated_group
from service.sandbox.diagnosis import ProgressCallback
from service.sandbox.errors import SandboxError
from service.sandbox.job import Job, JobError, JobLimits, Outcome, Place
from service.sandbox.rlimits import usable_memory_bytes

IS_SUPPORTED = sys.platform == "linux"
"""True if this system can have a sandbox; elsewhere there is no ``Zygote``, only ``service.sandbox.unconfined``."""

if sys.platform == "linux":
    from service.sandbox.parent import Child, Zygote

__all__ = [
    "IS_SUPPORTED",
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
