"""/v1/capabilities, liveness, readiness and metrics."""

from __future__ import annotations

from typing import Annotated, get_args

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import PlainTextResponse

import wsb_engine
from service.analyses import repository as analyses
from service.blobs import repository as blobs
from service.child.entry import torchscript_accepted
from service.context import InContext
from service.database import workers
from service.errors import UnavailableError, declare
from service.http.security import WithKey
from service.monitoring.metrics import Metrics, SnapshotReader
from service.monitoring.readiness import OK, Readiness
from service.monitoring.schemas import (
    Capabilities,
    EngineVersions,
    Formats,
    Health,
    Limits,
    Ready,
    Sandbox,
    Share,
    Usage,
)
from wsb_engine.formats.detect import BatchFormat, ModelFormat
from wsb_engine.report import SCHEMA_VERSION

router = APIRouter(tags=["service"])


@router.get("/v1/capabilities", summary="Versions, devices, formats, limits and protections")
async def get_capabilities(context: InContext, key: WithKey) -> Capabilities:
    settings = context.settings
    async with context.database.transaction() as session:
        present = await workers.alive(session, within_seconds=settings.stalled_seconds)
        states = await analyses.count_live(session, key.tenant)
        every, own = await analyses.count_queued(session, key.tenant)
        stored = await blobs.stored(session, key.tenant)
    common = set[str].intersection(*(set(worker.protections) for worker in present)) if present else set[str]()
    models: list[ModelFormat] = ["onnx", "pt2"]
    if torchscript_accepted(settings.torchscript, common):
        models.append("torchscript")
    return Capabilities(
        engine=EngineVersions(version=wsb_engine.__version__, report_schema=SCHEMA_VERSION),
        workers=len(present),
        devices=sorted({worker.device for worker in present}),
        formats=Formats(models=models, batches=list(get_args(BatchFormat))),
        limits=Limits.model_validate(settings),
        usage=Usage(
            tenant=key.tenant,
            scopes=sorted(key.scopes),
            expires=key.expires,
            queued_analyses=states["queued"],
            running_analyses=states["running"] + states["cancelling"],
            models=stored["models"].number,
            batches=stored["batches"].number,
            stored_bytes=sum(each.size for each in stored.values()),
            uploads=context.uploads.taken_by[key.tenant],
            event_streams=context.streams.taken_by[key.tenant],
            waiting_requests=context.waits.taken_by[key.tenant],
            left=Share(
                weight=settings.tenant_weights.get(key.tenant, 1),
                queued_analyses=max(min(settings.max_queue - every, settings.max_queue_per_tenant - own), 0),
                uploads=context.uploads.left(key.tenant),
                event_streams=context.streams.left(key.tenant),
                waiting_requests=context.waits.left(key.tenant),
            ),
        ),
        sandbox=Sandbox(protections=sorted(common)),
    )


@router.get("/healthz", summary="Check whether this process answers")
async def get_health() -> Health:
    return Health()


@router.get(
    "/readyz",
    summary="Check whether analyses can be accepted and run",
    description="With status 503, `details.missing` names the first part that is not ready. With either status, "
    "`checks` has the state of each part: the server, the database, its tables, the storage of models and batches, "
    "the queue, and the workers. No check takes longer than WSB_PROBE_SECONDS.",
    responses=declare(UnavailableError),
)
async def get_readiness(request: Request) -> Ready:
    readiness: Readiness = request.state.readiness
    checks = await readiness.checks()
    missing = next((part for part, found in checks.items() if found != OK), None)
    if missing is not None:
        headers = {"Retry-After": "1"}
        raise UnavailableError(checks[missing], headers=headers, details={"missing": missing}, checks=checks)
    return Ready(checks=dict.fromkeys(checks, "ok"), failed_devices=await readiness.failed_devices())


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    description="The Prometheus text format, or OpenMetrics on request. Requires a key if keys are set.",
    response_class=PlainTextResponse,
)
async def get_metrics(
    request: Request, context: InContext, accept: Annotated[str, Header(include_in_schema=False)] = ""
) -> Response:
    metrics: Metrics = request.state.metrics
    reader: SnapshotReader = request.state.snapshots
    slots = {"uploads": context.uploads, "event_streams": context.streams, "waiting_requests": context.waits}
    return metrics.exposition(accept, await reader.read(), {kind: held.taken_by for kind, held in slots.items()})
