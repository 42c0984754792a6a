"""Server-sent events of an analysis: its current state, each change, and its end."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Header
from fastapi.sse import format_sse_event
from starlette.responses import Response, StreamingResponse

from service.analyses import repository
from service.analyses.endpoints import AnalysisId
from service.analyses.errors import AnalysisNotFoundError, not_found
from service.analyses.schemas import Analysis
from service.analyses.table import FINAL_STATES, AnalysisRow
from service.context import Context, InContext
from service.database.notifications import first_of
from service.errors import ServiceError, declare
from service.http.headers import described
from service.http.security import InTenant

_DESCRIPTION = """\
Events, in the format that browsers read with `EventSource`:

* `state`: the analysis, as `GET /v1/analyses/{id}` returns it; sent first, at each change of state, and when its
  `estimate` is known.
* `progress`: `phase`, `fraction`, `hessian_vector_products`, `enclosure`; sent at a change within a state.
* `end`: `state`; the analysis has ended, and the stream closes.

The `id` of an event counts the changes of the analysis. Changes that happen faster than the client reads are merged
into the latest. If a stream closes without `end` (a server restart, a lost connection), resume it with
`Last-Event-ID`: nothing is sent twice, and missed changes are sent as one `state`.
"""

_RETRY_MILLISECONDS = 2000
_HEARTBEAT = format_sse_event(comment="still here")

router = APIRouter(prefix="/v1/analyses", tags=["analyses"])


class TooManyStreamsError(
    ServiceError, status=503, code="too_many_streams", title="Too many event streams are open"
): ...


class EventStream(StreamingResponse):
    """Used instead of FastAPI's EventSourceResponse, whose heartbeat and Cache-Control are fixed."""

    media_type = "text/event-stream"


LastEventId = Annotated[
    str | None, Header(description="`id` of the last event that the client received.", examples=["7"])
]


async def _subscribed(analysis: AnalysisId, context: InContext, tenant: InTenant) -> AsyncIterator[asyncio.Event]:
    """Yield an event that is set at each change of the analysis; hold it and a slot until the response ends."""
    full = TooManyStreamsError(
        f"Too many of the {context.streams.limit} event streams that may be open at once are open.",
        advice="Try again later, or poll the analysis instead.",
        headers={"Retry-After": "5"},
    )
    with context.streams.taken(tenant, full), context.notifications.subscribe(analysis, every_change=True) as changed:
        yield changed


@router.get(
    "/{analysis_id}/events",
    response_class=Response,  # for a class with a text type FastAPI would declare a string
    summary="Follow an analysis",
    description=_DESCRIPTION,
    responses={
        200: {
            "headers": described({"Cache-Control": "no-store."}),
            # OpenAPI 3.1 can't describe a stream of events: some tools take the schema for that of an event, others for
            # that of the whole text.
            "content": {EventStream.media_type: {"schema": {"description": "Events, as described above."}}},
        },
        **declare(AnalysisNotFoundError, TooManyStreamsError),
    },
)
async def stream_events(
    analysis: AnalysisId,
    context: InContext,
    tenant: InTenant,
    changed: Annotated[asyncio.Event, Depends(_subscribed)],
    last_event_id: LastEventId = None,
) -> EventStream:
    row = await _find(context, tenant, analysis)
    if row is None:
        raise not_found(str(analysis))
    # X-Accel-Buffering: otherwise nginx would hold events back until its buffer is full.
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return EventStream(_events(context, row, changed, _revision(last_event_id)), headers=headers)


async def _find(context: Context, tenant: str, analysis: UUID) -> AnalysisRow | None:
    async with context.database.transaction() as session:
        return await repository.find(session, analysis, tenant)


async def _events(context: Context, row: AnalysisRow, changed: asyncio.Event, seen: int | None) -> AsyncIterator[bytes]:
    """Yield events until the analysis ends or is deleted, or the server stops.

    Args:
        context: Context of the request.
        row: Current row of the analysis.
        changed: Set at each change after ``row`` was read.
        seen: Last revision that the client received.
    """
    yield format_sse_event(retry=_RETRY_MILLISECONDS)
    known: tuple[str, int, bool] | None = None
    while True:
        standing = (row.state, row.attempts, (row.progress or {}).get("estimate") is not None)
        yield _HEARTBEAT if row.revision == seen else _event(row, only_progress=standing == known)
        if row.state in FINAL_STATES:
            yield format_sse_event(event="end", data_str=json.dumps({"state": row.state}), id=str(row.revision))
            return
        seen, known = row.revision, standing
        await first_of(changed, context.stopping, timeout=context.settings.event_heartbeat_seconds)
        if context.stopping.is_set():
            return
        changed.clear()
        # Also read it after each heartbeat, because a notification can get lost.
        found = await _find(context, row.tenant, row.id)
        if found is None:
            return
        row = found


def _event(row: AnalysisRow, *, only_progress: bool) -> bytes:
    analysis = Analysis.of(row)
    if only_progress and analysis.progress is not None:
        return format_sse_event(event="progress", data_str=analysis.progress.model_dump_json(), id=str(row.revision))
    return format_sse_event(event="state", data_str=analysis.model_dump_json(), id=str(row.revision))


def _revision(last_event_id: str | None) -> int | None:
    """Parse an event's identifier; None if it is malformed, which restarts the client from the current state."""
    return int(last_event_id) if last_event_id and re.fullmatch(r"[0-9]{1,10}", last_event_id) else None
