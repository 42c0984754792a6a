"""Types of what a report holds, with the limits that a forged one meets."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from wsb_engine.options import MAX_NUMBERS

MAX_STEPS = 10_000
"""Largest number of steps whose recurrence is reported."""
MAX_BLOCKS = 1000
"""Largest number of layers whose blocks are reported."""

Name = Annotated[str, Field(max_length=8192)]
Message = Annotated[str, Field(max_length=1 << 16)]
Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0)]
Item = TypeVar("Item")
# fail_fast: a hostile list of a hundred thousand wrong items would otherwise cost a second, and as many errors.
Few = Annotated[list[Item], Field(max_length=1000, fail_fast=True)]
"""A list of what there are at most a few hundred of."""
Many = Annotated[list[Item], Field(max_length=100_000, fail_fast=True)]
"""A list with an entry for each tensor or eigenvalue."""
Weights = Annotated[list[float], Field(max_length=MAX_NUMBERS, fail_fast=True)]
Steps = Annotated[list[Item], Field(max_length=MAX_STEPS, fail_fast=True)]
Kind = Literal["deterministic", "probabilistic"]


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Interval(Part):
    lower: float
    upper: float


class CertifiedInterval(Part):
    """An interval that contains the eigenvalue: always, or except with the failure probability."""

    lower: float
    upper: float
    relative_gap: float | None
    """(upper − lower) / |λ_max|; for λ_min relative to the larger of |λ_max| and |λ_min|. Null if only that is 0."""
    kind: Kind
    failure_probability: Probability | None
    """Null for a deterministic interval."""
