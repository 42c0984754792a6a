"""What a request handler can reach: the parts that the lifespan made, typed."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated

import procrastinate
from fastapi import Depends, Request

from service.database.engine import Database
from service.database.notifications import Notifications
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
    """Bodies that are being stored."""
    streams: Slots
    """Streams of events that are open."""
    stopping: asyncio.Event
    """Set when the server is about to stop: whoever waits answers now."""


def _of_request(request: Request) -> Context:
    context: Context = request.state.context
    return context


InContext = Annotated[Context, Depends(_of_request)]
