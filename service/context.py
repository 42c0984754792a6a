"""What a request handler can reach: the objects that the lifespan creates, typed."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated

import procrastinate
from fastapi import Depends, Request

from service.database.engine import Database
from service.database.notifications import Notifications
from service.kit.resolver import Resolver
from service.kit.slots import Slots
from service.settings import Settings
from service.storage.store import BlobStore


@dataclass(frozen=True, kw_only=True)
class Context:
    settings: Settings
    database: Database
    blobs: BlobStore
    queue: procrastinate.App
    notifications: Notifications
    uploads: Slots
    """Limits the bodies that are stored at once."""
    streams: Slots
    """Limits the open event streams."""
    waits: Slots
    """Limits the requests that wait for an analysis."""
    resolver: Resolver
    """Resolves the names of hosts that clients give."""
    stopping: asyncio.Event
    """Set when the server is about to stop: requests that wait respond at once."""


def _of_request(request: Request) -> Context:
    context: Context = request.state.context
    return context


InContext = Annotated[Context, Depends(_of_request)]
