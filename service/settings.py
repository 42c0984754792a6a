"""Settings of the service: one tree, read from ``WSB_*`` variables and from a ``.env`` file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

import platformdirs
from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.sandbox import Limits, usable_memory_bytes

MIB = 1 << 20
GIB = 1 << 30


class Settings(BaseSettings):
    """Every limit and address of the service; each field is the variable ``WSB_<NAME>``.

    Raises:
        pydantic.ValidationError: for a value outside its range or an address of an unknown kind.
    """

    model_config = SettingsConfigDict(
        env_prefix="WSB_", env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True
    )

    data_dir: Path = Field(
        default_factory=lambda: platformdirs.user_data_path("wsb"),
        description="Folder of everything the service keeps: the embedded database, blobs, job folders.",
    )
    database_url: str | None = Field(
        None, description="postgresql://… of a Postgres; unset starts an embedded one in the data folder."
    )
    blob_url: str | None = Field(
        None, description="Folder (a path or file://…) of models and batches; unset: blobs in the data folder."
    )

    max_model_bytes: int = Field(GIB, ge=1, description="Largest model accepted.")
    max_batch_bytes: int = Field(GIB, ge=1, description="Largest batch accepted.")
    max_request_bytes: int = Field(MIB, ge=1024, description="Largest JSON body, or request part of a multipart body.")
    max_queue: int = Field(1000, ge=1, description="Analyses that may wait at one time; more are answered 429.")
    max_wait_seconds: float = Field(60, ge=0, le=600, description="Upper end of Prefer: wait=N.")

    job_seconds: float = Field(3600, gt=0, le=1e7, description="Wall-clock limit of one analysis.")
    job_threads: int | None = Field(None, ge=1, le=1024, description="Threads of one analysis; unset: every core.")
    job_memory_bytes: int | None = Field(
        None, ge=256 * MIB, description="Memory of one analysis; unset: three quarters of the machine's."
    )
    max_attempts: int = Field(3, ge=1, le=100, description="Times an analysis is started before worker_lost.")
    progress_seconds: float = Field(0.5, ge=0, le=60, description="Least time between two progress updates of a row.")

    sandbox: Literal["auto", "require"] = Field(
        "auto", description="auto confines analyses as well as the host can; require refuses to run with less than all."
    )
    torchscript: Literal["auto", "always", "never"] = Field(
        "auto", description="Whether TorchScript is loaded; auto: only where files and network are out of its reach."
    )

    heartbeat_seconds: float = Field(1.0, gt=0, le=60, description="Interval of a worker's sign of life.")
    stalled_seconds: float = Field(6.0, gt=0, le=3600, description="Silence after which a worker counts as lost.")
    shutdown_seconds: float = Field(
        5.0, ge=0, le=3600, description="Time a running analysis has to finish at shutdown before it is queued again."
    )
    poll_seconds: float = Field(
        2.0, gt=0, le=60, description="Interval of the polls that stand in for a notification that got lost."
    )

    log_format: Literal["console", "json"] = Field("console", description="Form of the log lines on stderr.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")

    @field_validator("database_url")
    @classmethod
    def _is_postgres(cls, value: str | None) -> str | None:
        if value is not None and urlsplit(value).scheme not in ("postgresql", "postgres"):
            raise ValueError("the database must be a Postgres: postgresql://user:password@host/database")
        return value

    @field_validator("blob_url")
    @classmethod
    def _is_folder(cls, value: str | None) -> str | None:
        if value is not None and urlsplit(value).scheme not in ("", "file"):
            raise ValueError("blobs are kept in a folder: give a path or file:///path")
        return value

    @model_validator(mode="after")
    def _heartbeats_fit(self) -> Settings:
        if self.stalled_seconds < 3 * self.heartbeat_seconds:
            raise ValueError("stalled_seconds must be at least three times heartbeat_seconds")
        return self

    @property
    def blob_dir(self) -> Path:
        """Folder of the content-addressed files."""
        if self.blob_url is None:
            return self.data_dir / "blobs"
        parts = urlsplit(self.blob_url)
        return Path(unquote(parts.path) if parts.scheme == "file" else self.blob_url)

    @property
    def job_limits(self) -> Limits:
        """Of the child that runs an analysis."""
        return Limits(memory_bytes=self.job_memory_bytes or usable_memory_bytes() * 3 // 4)

    @property
    def job_dir(self) -> Path:
        """Folder in which each worker keeps the private folder of its running job."""
        return self.data_dir / "jobs"
