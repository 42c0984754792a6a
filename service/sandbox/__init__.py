"""Runs one job at a time in a child process of its own, forked from a preloaded process, and says how it ended.

``Zygote`` is the caller's handle. The sandbox knows entry functions by their dotted names only, and what they
say by JSON only: nothing that a child sends is executed or unpickled.
"""

import sys

from service.sandbox.cgroup import delegated_group
from service.sandbox.errors import SandboxError
from service.sandbox.job import Job, JobError, Limits, Outcome, Place
from service.sandbox.rlimits import usable_memory_bytes

IS_SUPPORTED = sys.platform == "linux"
"""True if this system can have a sandbox; elsewhere there is no ``Zygote``, only ``service.sandbox.unconfined``."""

if sys.platform == "linux":
    from service.sandbox.parent import Child, ProgressCallback, Zygote

__all__ = [
    "IS_SUPPORTED",
    "Child",
    "Job",
    "JobError",
    "Limits",
    "Outcome",
    "Place",
    "ProgressCallback",
    "SandboxError",
    "Zygote",
    "delegated_group",
    "usable_memory_bytes",
]
