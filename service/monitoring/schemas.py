"""Responses of the monitoring endpoints."""

from __future__ import annotations

from datetime import date
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from service.keys import KeyScope
from service.monitoring.readiness import CHECKS
from wsb_engine.formats.detect import BatchFormat, ModelFormat


class EngineVersions(BaseModel):
    version: str
    report_schema: str = Field(description="Version of the report's schema.")


class Formats(BaseModel):
    models: list[ModelFormat] = Field(
        description="Includes TorchScript if WSB_TORCHSCRIPT and the active protections allow loading it."
    )
    batches: list[BatchFormat]


class Limits(BaseModel):
    # Read from the settings, by their names.
    model_config = ConfigDict(from_attributes=True)

    model_bytes: int = Field(validation_alias="max_model_bytes", description="Size of one file of a model.")
    model_data_files: int = Field(validation_alias="max_model_data_files")
    model_total_bytes: int = Field(
        validation_alias="max_model_total_bytes", description="Size of a model with its data files."
    )
    batch_bytes: int = Field(validation_alias="max_batch_bytes")
    optimizer_state_bytes: int = Field(validation_alias="max_optimizer_state_bytes")
    request_bytes: int = Field(validation_alias="max_request_bytes")
    queued_analyses: int = Field(validation_alias="max_queue")
    queued_analyses_per_tenant: int = Field(validation_alias="max_queue_per_tenant")
    concurrent_uploads: int = Field(validation_alias="max_uploads")
    event_streams: int = Field(validation_alias="max_event_streams")
    waiting_requests: int = Field(
        validation_alias="max_waiting_requests", description="Requests of one process that wait at once (Prefer)."
    )
    wait_seconds: float = Field(validation_alias="max_wait_seconds")
    job_seconds: float
    attempts: int = Field(validation_alias="max_attempts")


class Share(BaseModel):
    """What the tenant of the request could take now, next to what others hold or may need."""

    weight: float = Field(description="Turns at the queue for each turn of a tenant of weight 1.")
    queued_analyses: int
    uploads: int = Field(description="Further uploads to this process.")
    event_streams: int = Field(description="Further event streams of this process.")
    waiting_requests: int = Field(description="Further requests to this process that wait for an analysis.")


class Usage(BaseModel):
    """What the tenant of the request holds, beside its limits."""

    tenant: str
    scopes: list[KeyScope] = Field(description="What the key of the request allows.")
    expires: date | None = Field(description="Last day (UTC) of the key; null if it does not expire.")
    queued_analyses: int
    running_analyses: int
    models: int
    batches: int
    stored_bytes: int = Field(description="Bytes of its models and batches, those that others share included.")
    uploads: int = Field(description="Uploads in progress in this process.")
    event_streams: int = Field(description="Event streams open in this process.")
    waiting_requests: int = Field(description="Requests to this process that wait for an analysis.")
    left: Share


class Sandbox(BaseModel):
    protections: list[str] = Field(description="Protections that are active on every live worker.")


class Capabilities(BaseModel):
    """What this service currently offers."""

    engine: EngineVersions
    workers: int = Field(description="Number of live workers.")
    devices: list[str] = Field(description="Devices that the workers offer; an analysis may request one.")
    formats: Formats
    limits: Limits
    usage: Usage
    sandbox: Sandbox


class Health(BaseModel):
    status: Literal["ok"] = "ok"


class Ready(BaseModel):
    status: Literal["ready"] = "ready"
    checks: dict[str, Literal["ok"]] = Field(
        description="State of each part: server, database, migrations, storage, queue, worker.",
        examples=[dict.fromkeys(CHECKS, "ok")],
    )
    failed_devices: list[str] = Field(
        description="Workers that have left within an hour because their device failed, while others go on."
    )
