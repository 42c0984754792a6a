"""`wsb doctor`: what is wrong with an installation, and what to do about it."""

from __future__ import annotations

from contextlib import ExitStack

from service.errors import ServiceError
from service.operations import host, stored
from service.operations.findings import Finding, problem
from service.server.postgres import NoDatabaseError, existing_postgres
from service.settings import Settings


async def examine(settings: Settings, *, files: bool = False) -> list[Finding]:
    """Look at this machine, the database and the storage; nothing that exists is changed.

    Args:
        settings: Settings of the installation.
        files: Whether to read every model and batch, which takes as long as reading the disk or the bucket.
    """
    offered, found = await host.devices()
    return [
        *host.versions(),
        *host.keys(settings),
        *host.limits(settings),
        *host.memory(settings),
        *host.disk(settings),
        *found,
        *await host.sandbox(settings, offered[0]),
        *await _installation(settings, files=files),
    ]


async def _installation(settings: Settings, *, files: bool) -> list[Finding]:
    with ExitStack() as stack:
        url = settings.database_url
        if url is None:
            try:
                url = stack.enter_context(existing_postgres(settings.data_dir))
            except (NoDatabaseError, OSError) as error:
                advice = "Start wsb serve, which creates and repairs it; its log has the cause if it can't."
                return [problem("database", str(error), advice)]
        current, found = await stored.database(settings, url)
        found += await stored.storage(settings)
        if files and current:
            try:
                found += await stored.stored_files(settings, url)
            except ServiceError as error:
                found.append(problem("storage", error.detail, error.advice or ""))
    return found
