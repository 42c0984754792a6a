"""Tables of analyses and their reports."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal, get_args
from uuid import UUID, uuid4

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    DateTime,
    Double,
    Float,
    ForeignKey,
    Identity,
    Integer,
    Text,
    Uuid,
    func,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from service.database.engine import Base

LiveState = Literal["queued", "running", "cancelling"]
FinalState = Literal["succeeded", "failed", "cancelled", "timed_out"]
State = Literal["queued", "running", "cancelling", "succeeded", "failed", "cancelled", "timed_out"]

LIVE_STATES: tuple[LiveState, ...] = get_args(LiveState)
FINAL_STATES: tuple[FinalState, ...] = get_args(FinalState)


class AnalysisRow(Base):
    __tablename__ = "analyses"

    id: Mapped[UUID] = mapped_column(Uuid, primary_key=True, default=uuid4)
    sequence: Mapped[int] = mapped_column(BigInteger, Identity(always=True), unique=True)
    """Order of creation, which lists and cursors use."""
    tenant: Mapped[str] = mapped_column(Text)
    model: Mapped[str] = mapped_column(Text)
    """Hex digest of the blob, which may be deleted once the analysis has ended."""
    batch: Mapped[str] = mapped_column(Text)
    optimizer_state: Mapped[str | None] = mapped_column(Text)
    """Hex digest of the state that the option ``optimizer`` names; null without one."""
    # JSON and not JSONB: text from a client may contain \u0000, which JSONB rejects.
    options: Mapped[dict[str, Any]] = mapped_column(JSON)
    labels: Mapped[dict[str, str]] = mapped_column(JSONB)
    name: Mapped[str | None] = mapped_column(Text)
    model_name: Mapped[str | None] = mapped_column(Text)
    """Name of the file as it was sent; shown, and never a path."""
    batch_name: Mapped[str | None] = mapped_column(Text)
    priority: Mapped[int] = mapped_column(Integer)
    timeout_s: Mapped[float] = mapped_column(Float)
    policy: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True), deferred=True)
    baseline: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True), deferred=True)
    """Report to compare with; it is large, so like the policy it is loaded only to compute the verdict."""
    verdict: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    fingerprint: Mapped[str | None] = mapped_column(Text)
    """Fingerprint of what the report depends on: model, batch, options and what a policy asks of the analysis; null for
    analyses older than this column."""
    reused_from: Mapped[UUID | None] = mapped_column(Uuid)
    """The analysis that produced the report; it may have been deleted."""
    state: Mapped[State] = mapped_column(Text)
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    progress: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    lambda_max_lower: Mapped[float | None] = mapped_column(Double)
    """This and the next are numbers of the report, which lists show; null without one."""
    lambda_max_upper: Mapped[float | None] = mapped_column(Double)
    loss: Mapped[float | None] = mapped_column(Double)
    accuracy: Mapped[float | None] = mapped_column(Double)
    parameters: Mapped[int | None] = mapped_column(BigInteger)
    device: Mapped[str | None] = mapped_column(Text)
    seconds: Mapped[float | None] = mapped_column(Double)
    reliable: Mapped[bool | None] = mapped_column(Boolean)
    """False if a check of the report has failed."""
    job_id: Mapped[int | None] = mapped_column(BigInteger)
    revision: Mapped[int] = mapped_column(Integer, default=1)
    """Number of changes of this row, used in the entity tag."""
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    started_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    finished_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


class ReportRow(Base):
    __tablename__ = "reports"

    analysis: Mapped[UUID] = mapped_column(ForeignKey("analyses.id", ondelete="CASCADE"), primary_key=True)
    body: Mapped[str] = mapped_column(Text)
    sha256: Mapped[str] = mapped_column(Text)


class IdempotencyRow(Base):
    __tablename__ = "idempotency_keys"

    tenant: Mapped[str] = mapped_column(Text, primary_key=True)
    key: Mapped[str] = mapped_column(Text, primary_key=True)
    fingerprint: Mapped[str] = mapped_column(Text)
    """Fingerprint of the first request with the key."""
    analysis: Mapped[UUID] = mapped_column(ForeignKey("analyses.id", ondelete="CASCADE"))


class BaselineRow(Base):
    """The analysis that a tenant compares others with, under a name."""

    __tablename__ = "baselines"

    tenant: Mapped[str] = mapped_column(Text, primary_key=True)
    name: Mapped[str] = mapped_column(Text, primary_key=True)
    analysis: Mapped[UUID] = mapped_column(ForeignKey("analyses.id"))
    """Can't be deleted meanwhile."""
    promoted_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
