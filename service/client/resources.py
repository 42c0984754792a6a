"""What the server answers about analyses, as far as clients need it; fields of later versions are kept."""

from __future__ import annotations

from datetime import datetime
from typing import Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from service.policies import Verdict

State = Literal["queued", "running", "cancelling", "succeeded", "failed", "cancelled", "timed_out"]


class _Resource(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)


class Failure(_Resource):
    """Why an analysis ended without a report."""

    code: str
    message: str
    advice: str = ""
    details: dict[str, JsonValue] = Field(default_factory=dict)


class Analysis(_Resource):
    """An analysis on the server: its request and its state."""

    id: UUID
    state: State
    model: str
    batch: str
    name: str | None = None
    labels: dict[str, str]
    error: Failure | None
    verdict: Verdict | None
    reused_from: UUID | None
    created_at: datetime
    finished_at: datetime | None

    @property
    def has_ended(self) -> bool:
        return self.finished_at is not None


class Baseline(_Resource):
    """An analysis that others are compared with, under a name."""

    name: str
    analysis: UUID
    promoted_at: datetime
    replaced: UUID | None = None
    """After a promotion, the analysis that was the baseline before."""
