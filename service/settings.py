"""Settings of the service, read from ``WSB_*`` variables and from a ``.env`` file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import unquote, urlsplit

import platformdirs
from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.keys import ApiKey, parse_keys, parse_weights
from service.sandbox import JobLimits, usable_memory_bytes

MIB = 1 << 20
GIB = 1 << 30

DATABASE_CONNECTIONS, RESERVED_CONNECTIONS = 15, 3
CONNECTION_SECONDS = 30.0
"""Defaults of the settings of these names, for commands that open a database without settings."""

_PREFIX = re.compile(r"((?!/(?:v1|docs|static|analyses)(?:/|$))(/[A-Za-z0-9_.~\-]+)+)?")


class Settings(BaseSettings):
    """Every limit and address of the service; each field is the variable ``WSB_<NAME>``.

    Raises:
        pydantic.ValidationError: if a value is out of range or an address has an unknown scheme.
    """

    model_config = SettingsConfigDict(
        env_prefix="WSB_",
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    data_dir: Path = Field(
        default_factory=lambda: platformdirs.user_data_path("wsb"),
        description="Folder of everything the service keeps: the embedded database, blobs, job folders.",
    )
    database_url: str | None = Field(
        None, description="postgresql://… of a Postgres; unset starts an embedded one in the data folder."
    )
    database_connections: int = Field(
        DATABASE_CONNECTIONS,
        ge=2,
        le=1000,
        description="Most connections of one process to the database, shared by tenants; others wait for one.",
    )
    database_reserved_connections: int = Field(
        RESERVED_CONNECTIONS, ge=1, lt=1000, description="How many of them one tenant alone can't take."
    )
    database_connection_seconds: float = Field(
        CONNECTION_SECONDS, gt=0, le=3600, description="Longest wait for one of them; then 503."
    )
    blob_url: str | None = Field(
        None,
        description="Where models and batches are stored: a folder (a path or file://…) or s3://bucket/prefix; unset: "
        "blobs in the data folder.",
    )

    api_keys: Annotated[tuple[ApiKey, ...], NoDecode] = Field(
        (),
        description="Keys that may use the service: name:hash[:scopes[:date]],…; unset: everyone may, as one tenant.",
    )
    allow_anonymous: bool = Field(
        False, description="Serve without keys on addresses that other machines can reach, such as behind a proxy."
    )
    api_key: SecretStr | None = Field(None, description="Key that commands with --url send to the server.")
    session_hours: float = Field(
        12.0, gt=0, le=8760, description="Hours after which users of the pages must sign in again."
    )
    root_path: str = Field("", description="Path prefix under which a proxy serves this service, such as /wsb.")

    max_model_bytes: int = Field(GIB, ge=1, description="Largest file of a model.")
    max_model_data_files: int = Field(
        1000, ge=0, le=10_000, description="Most data files (external data) of one model."
    )
    max_model_total_bytes: int = Field(8 * GIB, ge=1, description="Largest model, its data files included.")
    max_batch_bytes: int = Field(GIB, ge=1, description="Largest batch accepted.")
    max_optimizer_state_bytes: int = Field(2 * GIB, ge=1, description="Largest state of an optimizer accepted.")
    max_request_bytes: int = Field(MIB, ge=1024, description="Largest JSON body, or request part of a multipart body.")
    max_queue: int = Field(1000, ge=1, description="Largest number of queued analyses; beyond it, 429.")
    max_queue_per_tenant: int = Field(200, ge=1, description="Largest number of queued analyses of one tenant.")
    tenant_weights: Annotated[dict[str, float], NoDecode] = Field(
        {}, description="Shares of the queue: name:weight,…; a tenant of weight 2 has two turns for each of another."
    )
    max_baselines: int = Field(200, ge=1, le=100_000, description="Largest number of baselines of one tenant.")
    max_badges: int = Field(100, ge=0, le=100_000, description="Largest number of badges of one tenant.")
    badge_seconds: int = Field(60, ge=0, le=86_400, description="How long caches may show a badge.")
    max_series_runs: int = Field(8, ge=1, le=8, description="Most runs that one plot of series overlays.")
    max_series_points: int = Field(
        200, ge=1, le=5000, description="Checkpoints of a series that are read: the newest that have a report."
    )
    max_series_report_bytes: int = Field(
        64 * MIB, ge=1, description="Reports that one request about series reads, shared by its series; newest first."
    )
    max_series_listed: int = Field(200, ge=1, le=10_000, description="Runs that are listed: those with the newest.")
    max_webhooks: int = Field(20, ge=0, le=10_000, description="Largest number of webhooks of one tenant.")
    webhooks_private: bool = Field(
        False, description="Send webhooks to private addresses and loopback too, and over http as well as https."
    )
    webhooks_key: Annotated[tuple[Annotated[SecretStr, Field(min_length=32)], ...], NoDecode] = Field(
        (),
        description="Random texts, separated by commas, that seal the secrets of webhooks in the database: the first"
        " seals, all of them open; unset: secrets are not sealed.",
    )
    webhook_seconds: float = Field(10.0, gt=0, le=300, description="Time limit of one attempt at a delivery.")
    webhook_deliveries: int = Field(8, ge=1, le=1000, description="Deliveries of one process at a time.")
    webhook_resolutions: int = Field(
        8, ge=1, le=1000, description="Names of hosts in webhooks that one process resolves at a time."
    )
    webhook_resolution_seconds: float = Field(
        5.0, gt=0, le=300, description="Time limit for resolving such a name, in a delivery or when one is registered."
    )
    webhook_retry_seconds: Annotated[tuple[Annotated[float, Field(ge=0, le=604_800)], ...], NoDecode] = Field(
        (5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400),
        max_length=100,
        description="Pauses before the retries of a delivery, separated by commas; after the last it is given up.",
    )
    webhook_max_failures: int = Field(
        100, ge=1, le=1_000_000, description="Failed attempts in a row after which a webhook is disabled."
    )
    max_wait_seconds: float = Field(60, ge=0, le=600, description="Largest N of Prefer: wait=N.")
    max_waiting_requests: int = Field(
        200, ge=1, description="Requests of one process that wait at once, shared by tenants; others are answered 202."
    )

    max_request_head_bytes: int = Field(16384, ge=4096, description="Size of a request line and its headers.")
    request_head_seconds: float = Field(10.0, gt=0, le=3600, description="Time for a request line and its headers.")
    keep_alive_seconds: int = Field(
        20,
        ge=1,
        le=3600,
        description="Time that a connection stays open between two requests.",
    )
    max_part_headers: int = Field(8, ge=1, le=1000, description="Headers of one part of a multipart body.")
    max_part_header_bytes: int = Field(4096, ge=64, description="Size of one header of a part.")
    max_uploads: int = Field(64, ge=1, description="Concurrent uploads to one process, shared by tenants; else 503.")
    upload_idle_seconds: float = Field(30.0, gt=0, le=3600, description="Silence after which an upload is aborted.")
    upload_min_bytes_per_second: int = Field(
        1024,
        ge=0,
        description="Lowest rate over upload_idle_seconds; a slower upload is aborted; 0: no limit.",
    )
    max_stored_bytes_per_tenant: int | None = Field(
        None, ge=1, description="Bytes of models and batches that one tenant may keep; beyond it, 507; unset: no limit."
    )
    download_idle_seconds: float = Field(
        30.0, gt=0, le=3600, description="Time in which a client must take some of its response; else it is cut off."
    )
    download_min_bytes_per_second: int = Field(
        1024, ge=0, description="Lowest rate over download_idle_seconds at which a client takes a response."
    )
    max_connections: int | None = Field(
        None,
        ge=1,
        description="Connections of clients to one process; unset: 200 fewer than the files that it may open.",
    )
    min_free_bytes: int = Field(GIB, ge=0, description="Free space that uploads must leave on the blobs' disk.")
    max_event_streams: int = Field(1000, ge=1, description="Open event streams of one process, shared by tenants.")
    event_heartbeat_seconds: float = Field(
        15.0, gt=0, le=3600, description="Silence after which an event stream sends a heartbeat."
    )

    job_seconds: float = Field(3600, gt=0, le=1e7, description="Wall-clock limit of one analysis.")
    job_threads: int | None = Field(None, ge=1, le=1024, description="Threads of one analysis; unset: every core.")
    job_memory_bytes: int | None = Field(
        None, ge=256 * MIB, description="Memory of one analysis; unset: three quarters of the machine's."
    )
    small_jobs: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Small analyses, of one thread each, that a CPU worker runs concurrently; unset: job_threads.",
    )
    max_attempts: int = Field(3, ge=1, le=100, description="Attempts at an analysis before it fails as worker_lost.")
    progress_seconds: float = Field(0.5, ge=0, le=60, description="Shortest interval between progress updates.")

    sandbox: Literal["auto", "require"] = Field(
        "auto", description="auto confines analyses as far as the host can; require refuses to run with less than all."
    )
    torchscript: Literal["auto", "always", "never"] = Field(
        "auto", description="Whether to load TorchScript; auto: only if it can reach neither files nor the network."
    )

    retention_days: float | None = Field(
        None, gt=0, le=36_500, description="Age at which ended analyses and unused files are deleted; unset: never."
    )
    retention_interval_seconds: float = Field(
        600.0, gt=0, le=86_400, description="Interval between searches for what is too old or still to be removed."
    )

    heartbeat_seconds: float = Field(1.0, gt=0, le=60, description="Interval of a worker's heartbeat.")
    stalled_seconds: float = Field(6.0, gt=0, le=3600, description="Silence after which a worker counts as lost.")
    shutdown_seconds: float = Field(
        5.0, ge=0, le=3600, description="Time for a running analysis to finish at shutdown before it is queued again."
    )
    database_patience_seconds: float = Field(
        300.0, ge=0, le=86_400, description="How long a worker and its analysis tolerate an unavailable database."
    )
    storage_patience_seconds: float = Field(
        30.0, gt=0, le=3600, description="How long to retry a failed request to an object store."
    )
    poll_seconds: float = Field(
        2.0, gt=0, le=60, description="Interval of the polls that make up for lost notifications."
    )

    probe_seconds: float = Field(
        2.0, gt=0, le=60, description="Time limit of each check behind GET /readyz and GET /metrics."
    )
    otlp_endpoint: str | None = Field(
        None,
        description="URL of a collector that takes traces as OTLP over HTTP; unset: OTEL_EXPORTER_OTLP_ENDPOINT's.",
    )

    log_format: Literal["console", "json"] = Field("console", description="Format of the log lines on stderr.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Lowest level that is logged.")

    @field_validator("api_keys", mode="before")
    @classmethod
    def _keys(cls, value: object) -> object:
        return parse_keys(value) if isinstance(value, str) else value

    @field_validator("tenant_weights", mode="before")
    @classmethod
    def _weights(cls, value: object) -> object:
        return parse_weights(value) if isinstance(value, str) else value

    @field_validator("webhooks_key", mode="before")
    @classmethod
    def _webhook_keys(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value

    @field_validator("webhook_retry_seconds", mode="before")
    @classmethod
    def _pauses(cls, value: object) -> object:
        return tuple(value.split(",")) if isinstance(value, str) else value

    @field_validator("root_path")
    @classmethod
    def _is_prefix(cls, value: str) -> str:
        path = value.rstrip("/")
        if _PREFIX.fullmatch(path) is None:
            # A prefix equal to a path of this service would be ambiguous.
            raise ValueError("the prefix must look like /wsb and must not be a path of this service such as /v1")
        return path

    @field_validator("otlp_endpoint")
    @classmethod
    def _can_trace(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if urlsplit(value).scheme not in ("http", "https"):
            raise ValueError("the URL of the collector must be http://… or https://…")
        try:
            from service import traces  # takes a tenth of a second; commands without traces skip it
        except ModuleNotFoundError as error:
            raise ValueError("traces need the server: pip install 'wsb-sharpness[server,traces]'") from error
        if not traces.installed():
            raise ValueError(f"traces need the SDK and the exporter of OpenTelemetry; {traces.ADVICE}")
        return value

    @field_validator("database_url")
    @classmethod
    def _is_postgres(cls, value: str | None) -> str | None:
        if value is not None and urlsplit(value).scheme not in ("postgresql", "postgres"):
            raise ValueError("the database must be Postgres: postgresql://user:password@host/database")
        return value

    @field_validator("blob_url")
    @classmethod
    def _is_place(cls, value: str | None) -> str | None:
        parts = urlsplit(value or "")
        if parts.scheme not in ("", "file") and not (parts.scheme == "s3" and parts.netloc):
            raise ValueError("blobs are kept in a folder or a bucket: use a path, file:///path or s3://bucket/prefix")
        return value

    @model_validator(mode="after")
    def _heartbeats_fit(self) -> Settings:
        if self.stalled_seconds < 3 * self.heartbeat_seconds:
            raise ValueError("stalled_seconds must be at least three times heartbeat_seconds")
        return self

    @model_validator(mode="after")
    def _connections_fit(self) -> Settings:
        if self.database_reserved_connections >= self.database_connections:
            raise ValueError("database_reserved_connections must be less than database_connections")
        return self

    @property
    def blob_dir(self) -> Path:
        """Folder of the content-addressed files, or of incoming uploads if the files are kept in a bucket."""
        if self.blob_url is None or self.blob_bucket is not None:
            return self.data_dir / "blobs"
        parts = urlsplit(self.blob_url)
        return Path(unquote(parts.path) if parts.scheme == "file" else self.blob_url)

    @property
    def blob_bucket(self) -> str | None:
        """s3://bucket/prefix if blobs are kept in a bucket, else None."""
        return self.blob_url if urlsplit(self.blob_url or "").scheme == "s3" else None

    @property
    def whole_model_bytes(self) -> int:
        """Size of the largest model, its data files included."""
        return max(self.max_model_bytes, self.max_model_total_bytes)

    @property
    def job_limits(self) -> JobLimits:
        """Limits of the child that runs an analysis."""
        return JobLimits(memory_bytes=self.job_bytes)

    @property
    def job_bytes(self) -> int:
        """Memory of one analysis in bytes."""
        return self.job_memory_bytes or usable_memory_bytes() * 3 // 4

    @property
    def job_dir(self) -> Path:
        """Folder in which each worker creates the private folders of its jobs."""
        return self.data_dir / "jobs"
