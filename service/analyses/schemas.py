"""Requests and responses about analyses."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from service.analyses.baselines.references import ReportReference
from service.analyses.numbers import Numbers, numbers_of
from service.analyses.table import FINAL_STATES, AnalysisRow, State
from service.blobs.repository import identifier
from service.policies import Policy, Verdict
from wsb_engine.costs import Estimate
from wsb_engine.options import Options
from wsb_engine.progress import InterimEnclosure

LABEL_KEY = r"[A-Za-z0-9_.\-/]{1,64}"
LABEL_VALUE = r"[^\x00-\x1f\x7f]{0,256}"
LABEL = re.compile(f"{LABEL_KEY}(:{LABEL_VALUE})?")
"""A label to look for: ``key:value``, or ``key`` with any value."""

MAX_NAME = 200
"""Most characters of a name that a client gives."""
PLAIN = rf"[^\x00-\x1f\x7f]{{1,{MAX_NAME}}}"
"""A name: nothing in it moves a cursor."""

MAX_PROGRESS_BYTES = 16 << 10
"""Size of the progress that is kept of an analysis, as JSON."""

LabelKey = Annotated[str, StringConstraints(pattern=f"^{LABEL_KEY}$")]
LabelValue = Annotated[str, StringConstraints(pattern=f"^{LABEL_VALUE}$")]
Name = Annotated[str, StringConstraints(pattern=f"^{PLAIN}$")]

_EXAMPLE_ID = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_EXAMPLE_BATCH = "sha256:60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752"


class AnalysisSettings(BaseModel):
    """Settings of an analysis: everything in a request besides the model and the batch."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    options: Options = Field(default_factory=Options, description="Options of the engine.")
    labels: dict[LabelKey, LabelValue] = Field(
        default_factory=dict,
        max_length=32,
        description="Names and values for finding the analysis.",
        json_schema_extra={"additionalProperties": False},
    )
    name: Name | None = Field(
        None, description="What to call the analysis; need not be unique.", examples=["digits, epoch 12"]
    )
    model_name: Name | None = Field(
        None, description="Name of the model's file, to show; the default is the file name of the part `model`."
    )
    batch_name: Name | None = Field(
        None, description="Name of the batch's file, to show; the default is the file name of the part `batch`."
    )
    priority: int = Field(
        0, ge=-100, le=100, description="Order of the tenant's own analyses: higher ones leave the queue first."
    )
    timeout_s: float | None = Field(
        None, gt=0, description="Wall-clock seconds after which the analysis is stopped; at most the service's limit."
    )
    policy: Policy | None = Field(None, description="Rules for the report; the analysis then has a verdict.")
    baseline: ReportReference | None = Field(
        None,
        description="What rules about increases compare with: the name of a baseline, the identifier of an analysis, or"
        " a report.",
    )
    fresh: bool = Field(
        False, description="Run the analysis even if a report of the same model, batch and options exists."
    )

    @model_validator(mode="after")
    def _policy_and_baseline(self) -> Self:
        if self.policy is None and self.baseline is not None:
            raise PydanticCustomError("no_policy", "A baseline needs a policy, and there is none")
        if self.policy is not None and self.baseline is None and (rule := self.policy.unmet_baseline()) is not None:
            context = {"metric": rule.metric}
            raise PydanticCustomError(
                "no_baseline", "The rule on {metric} needs a baseline, and there is none", context
            )
        return self


class AnalysisRequest(AnalysisSettings):
    """An analysis of an uploaded model on an uploaded batch."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": _EXAMPLE_ID,
                    "batch": _EXAMPLE_BATCH,
                    "options": {"spectrum": "dense"},
                    "labels": {"run": "tanh-64", "epoch": "12"},
                }
            ]
        }
    )

    model: str = Field(max_length=200, description="Identifier returned by POST /v1/models.")
    batch: str = Field(max_length=200, description="Identifier returned by POST /v1/batches.")


class FormRequest(AnalysisSettings):
    """The ``request`` part of a multipart body; it can name an uploaded file instead of sending it."""

    model: str | None = Field(None, max_length=200, description="Identifier that replaces the part of this name.")
    batch: str | None = Field(None, max_length=200, description="Identifier that replaces the part of this name.")


class AnalysisProgress(BaseModel):
    """Progress of a running analysis; of one that ended without a report, the last."""

    phase: str = Field(pattern=r"^[a-z_]{1,32}$", description="load, moments, enclosure, spectrum, …")
    fraction: float = Field(ge=0, le=1, description="Completed fraction of this phase, 0 to 1.")
    hessian_vector_products: int = Field(0, ge=0, le=10**9, description="Products of this phase so far.")
    enclosure: InterimEnclosure | None = Field(
        None, description="What is certified about λ_max and λ_min so far; null as long as that says nothing."
    )


class _ProgressAndEstimate(AnalysisProgress):
    """What a child tells while it runs, as the database keeps it."""

    estimate: Estimate | None = None


PROGRESS_FIELDS = frozenset(_ProgressAndEstimate.model_fields)
"""Fields of a child's progress that are kept; a hostile one could send ever new ones."""


class AnalysisError(BaseModel):
    """Why an analysis ended without a report."""

    model_config = ConfigDict(ser_json_inf_nan="null")

    code: str
    message: str
    advice: str = ""
    details: dict[str, JsonValue] = Field(default_factory=dict)


class Links(BaseModel):
    self: str
    report: str | None = Field(None, description="URL of the report, once it exists.")
    cancel: str | None = Field(None, description="URL for cancelling, while that is possible.")


class Analysis(BaseModel):
    """An analysis: its request and its state."""

    id: UUID
    state: State
    model: str
    batch: str
    name: str | None = Field(description="What the client called it.")
    model_name: str | None = Field(description="Name of the model's file, as it was sent.")
    batch_name: str | None = Field(description="Name of the batch's file, as it was sent.")
    options: Options
    labels: dict[str, str]
    priority: int
    timeout_s: float
    attempts: int = Field(description="Number of attempts; more than one if a worker was lost.")
    progress: AnalysisProgress | None
    estimate: Estimate | None = Field(
        description="Expected cost of the whole analysis, counted before it began; null until its files are read."
    )
    error: AnalysisError | None
    numbers: Numbers | None = Field(description="Main numbers of the report; null without one.")
    verdict: Verdict | None = Field(description="Verdict of the policy on the report; null if either is missing.")
    reused_from: UUID | None = Field(
        description="The analysis that produced the report, if an equal one existed; it may have been deleted."
    )
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    links: Links

    @property
    def title(self) -> str:
        """What to call it: its name, or else that of its model's file; empty if it has neither."""
        return self.name or self.model_name or ""

    @classmethod
    def of(cls, row: AnalysisRow) -> Analysis:
        url = f"/v1/analyses/{row.id}"
        return cls.model_validate(
            {
                **{name: getattr(row, name) for name in cls.model_fields if hasattr(row, name)},
                "numbers": numbers_of(row),
                "estimate": (row.progress or {}).get("estimate"),
                "model": identifier(row.model),
                "batch": identifier(row.batch),
                "links": Links(
                    self=url,
                    report=f"{url}/report" if row.state == "succeeded" else None,
                    cancel=None if row.state in FINAL_STATES else f"{url}/cancel",
                ),
            }
        )


class AnalysisPage(BaseModel):
    """One page of analyses."""

    items: list[Analysis]
    next: str | None = Field(description="URL of the next page; null on the last page.")


def progress_document(progress: dict[str, Any]) -> dict[str, Any] | None:
    """Reduce a child's progress to what the resource shows; None before the first, or if no engine would send it."""
    try:
        found = _ProgressAndEstimate.model_validate(progress)
    except ValidationError:
        return None
    return found.model_dump(mode="json") if len(found.model_dump_json()) <= MAX_PROGRESS_BYTES else None
