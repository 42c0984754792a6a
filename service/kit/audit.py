"""Lines of the log that say who has changed what, written once the change is durable."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

import structlog

CALLER: ContextVar[Callable[[], Mapping[str, Any]]] = ContextVar("caller", default=dict)
"""Describes who has sent the current request, and what it is; nothing outside of requests."""

log = structlog.get_logger("service.audit")


def note(**facts: Any) -> None:
    """Log a change that the current request has made; the log adds the tenant, the request and the time.

    Not left to the end of the request: a client that waits for its analysis may leave, or get an error, long after the
    analysis was queued.

    Args:
        facts: What was changed, such as ``resource``, the address of what was created.
    """
    log.info("change", **CALLER.get()(), **facts)


def note_by_operator(operation: str, **facts: Any) -> None:
    """Log a change that was made by whoever runs this process."""
    log.info("change", operation=operation, user=_user(), host=socket.gethostname(), **facts)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a user without a name
        return str(os.getuid())
