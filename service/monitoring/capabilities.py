"""What this service can do and how it is: capabilities, liveness, readiness."""

from __future__ import annotations

from typing import Literal, get_args

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

import wsb_engine
from service.child.entry import torchscript_accepted
from service.context import InContext
from service.database import workers
from service.errors import UnavailableError, declare
from service.monitoring.readiness import CHECKS, OK, Readiness
from wsb_engine.report import SCHEMA_VERSION

router = APIRouter(tags=["service"])

ModelFormat = Literal["onnx", "torchscript"]
BatchFormat = Literal["npz", "safetensors"]


class EngineVersions(BaseModel):
    version: str
    report_schema: str = Field(description="Version of the report's schema.")


class Formats(BaseModel):
    models: list[ModelFormat] = Field(
        description="Includes TorchScript if WSB_TORCHSCRIPT and the active protections allow loading it."
    )
    batches: list[BatchFormat]


class Limits(BaseModel):
    model_bytes: int
    batch_bytes: int
    request_bytes: int
    queued_analyses: int
    queued_analyses_per_tenant: int
    concurrent_uploads: int
    event_streams: int
    wait_seconds: float
    job_seconds: float
    attempts: int


class Sandbox(BaseModel):
    protections: list[str] = Field(description="Protections that are active on every live worker.")


class Capabilities(BaseModel):
    """What this service offers at the moment."""

    engine: EngineVersions
    workers: int = Field(description="Workers that are alive.")
    devices: list[str] = Field(description="Devices that the workers offer; an analysis may request one.")
    formats: Formats
    limits: Limits
    sandbox: Sandbox


class Health(BaseModel):
    status: Literal["ok"] = "ok"


class Ready(BaseModel):
    status: Literal["ready"] = "ready"
    checks: dict[str, Literal["ok"]] = Field(
        description="By part: server, database, migrations, storage, queue, worker.",
        examples=[dict.fromkeys(CHECKS, "ok")],
    )


@router.get("/v1/capabilities", summary="Versions, devices, formats, limits and protections")
async def get_capabilities(context: InContext) -> Capabilities:
    settings = context.settings
    async with context.database.transaction() as session:
        present = await workers.alive(session, within_seconds=settings.stalled_seconds)
    common = set[str].intersection(*(set(worker.protections) for worker in present)) if present else set[str]()
    models: list[ModelFormat] = ["onnx"]
    if torchscript_accepted(settings.torchscript, common):
        models.append("torchscript")
    return Capabilities(
        engine=EngineVersions(version=wsb_engine.__version__, report_schema=SCHEMA_VERSION),
        workers=len(present),
        devices=sorted({worker.device for worker in present}),
        formats=Formats(models=models, batches=list(get_args(BatchFormat))),
        limits=Limits(
            model_bytes=settings.max_model_bytes,
            batch_bytes=settings.max_batch_bytes,
            request_bytes=settings.max_request_bytes,
            queued_analyses=settings.max_queue,
            queued_analyses_per_tenant=settings.max_queue_per_tenant,
            concurrent_uploads=settings.max_uploads,
            event_streams=settings.max_event_streams,
            wait_seconds=settings.max_wait_seconds,
            job_seconds=settings.job_seconds,
            attempts=settings.max_attempts,
        ),
        sandbox=Sandbox(protections=sorted(common)),
    )


@router.get("/healthz", summary="Check whether this process answers")
async def get_health() -> Health:
    return Health()


@router.get(
    "/readyz",
    summary="Check whether analyses can be accepted and run",
    description="503 names in `details.missing` the first part that is not as it has to be. `checks` says, with either "
    "status, how each part is: the server, the database, its tables, the place of models and batches, the queue, and "
    "whether a worker is alive. Waits for none of them longer than WSB_PROBE_SECONDS.",
    responses=declare(UnavailableError),
)
async def get_readiness(request: Request) -> Ready:
    readiness: Readiness = request.state.readiness
    checks = await readiness.checks()
    missing = next((part for part, found in checks.items() if found != OK), None)
    if missing is not None:
        headers = {"Retry-After": "1"}
        raise UnavailableError(checks[missing], headers=headers, details={"missing": missing}, checks=checks)
    return Ready(checks=dict.fromkeys(checks, "ok"))
