"""Protections of analyses: those active on this host, and those that the settings require."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from service.child.entry import PROTECTIONS_ENTRY
from service.kit.devices import engine_names
from service.sandbox import Job, SandboxError
from service.settings import Settings

if TYPE_CHECKING:
    from service.sandbox import Zygote

REQUIRED = ("landlock", "seccomp", "rlimit_data")
"""No access to files, no access to the network, limited memory."""

_PROBE_SECONDS = 60.0


def required(settings: Settings) -> tuple[str, ...]:
    """Return the protections without which no analysis may run."""
    return REQUIRED if settings.sandbox == "require" else ()


async def active_protections(
    settings: Settings,
    zygote: Zygote,
    folder: Path,
    *,
    device: str,
    group: Path | None = None,
    try_device: bool = False,
) -> list[str]:
    """Fork a child and return the names of its active protections.

    Args:
        settings: Settings of the service.
        zygote: Zygote whose children run the analyses.
        folder: Folder in which job folders are created.
        device: Device of the analyses; those on a GPU are confined a little less.
        group: Control group below which each child gets its own.
        try_device: Whether to compute on a GPU too.

    Raises:
        SandboxError: if no child can be run here, or if it lacks a protection that the settings require;
            ``device_failed`` if a GPU was tried and does not work.
    """
    with tempfile.TemporaryDirectory(dir=folder) as job_folder:
        job = Job(
            folder=Path(job_folder),
            entry=PROTECTIONS_ENTRY,
            request={"gpus": engine_names(device) if try_device and device != "cpu" else []},
            seconds=_PROBE_SECONDS,
            limits=settings.job_limits,
            gpu=device != "cpu",
            group=group,
            required=required(settings),
        )
        outcome = await zygote.run(job)
    if (found := outcome.error) is not None:
        raise SandboxError(found.message, code=found.code, advice=found.advice, **found.details)
    return [str(name) for name in json.loads(outcome.result or "[]")]
