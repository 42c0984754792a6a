"""Responses about series."""

from __future__ import annotations

from typing import Self
from uuid import UUID

from pydantic import BaseModel, Field

from service.series.checkpoints import Checkpoint as FoundCheckpoint
from service.series.checkpoints import Series as FoundSeries
from service.series.quantities import SCALARS, Value


class SeriesValue(BaseModel):
    """What a report says about one quantity."""

    value: float | None = Field(description="The number, or the middle of an enclosure; null if it is only bounded.")
    lower: float | None = Field(description="Lower end of the enclosure or of the bound; null for a plain number.")
    upper: float | None = Field(description="Upper end.")
    by: str = Field(
        description="`enclosure`, the name of a bound, how the moments were computed, or the kind of the loss."
    )
    failure_probability: float | None = Field(
        description="Probability with which the interval does not hold; null if it is certain, or for a plain number."
    )

    @classmethod
    def of(cls, value: Value) -> Self:
        return cls(**{name: getattr(value, name) for name in cls.model_fields})


class Checkpoint(BaseModel):
    """One analysis of a series; what its report lacks is null."""

    analysis: UUID
    name: str | None
    position: str = Field(
        description="Value of the label `epoch` or `step`; without one, the beginning of the identifier."
    )
    kind: str | None = Field(description="`epoch` or `step`; null without one.")
    number: float | None = Field(description="The position as a number; null if it is none.")
    learning_rate: float | None
    stability_limit: float | None = Field(
        description="2 / learning rate, below which gradient descent is stable on the quadratic model."
    )
    reliable: bool = Field(description="False if a check of the report has failed.")
    lambda_max: SeriesValue | None
    lambda_min: SeriesValue | None
    trace: SeriesValue | None
    loss: SeriesValue | None
    accuracy: SeriesValue | None
    eigenvalues: list[float] = Field(description="The largest eigenvalues of the spectrum, descending; not certified.")

    @classmethod
    def of(cls, found: FoundCheckpoint) -> Self:
        same = ("analysis", "name", "position", "number", "learning_rate", "stability_limit", "reliable")
        return cls(
            **{name: getattr(found, name) for name in same},
            kind=found.kind or None,
            **{name: SeriesValue.of(found.scalars[name]) if name in found.scalars else None for name in SCALARS},
            eigenvalues=[each.value for each in found.eigenvalues if each.value is not None],
        )


class Series(BaseModel):
    """The analyses with one label that have a report, ordered by epoch or step."""

    label: str
    checkpoints: list[Checkpoint]
    complete: bool = Field(description="False if there are older checkpoints too, which a limit leaves out.")
    unreadable: int = Field(description="Number of further reports, of a version that can no longer be read.")

    @classmethod
    def of(cls, found: FoundSeries) -> Self:
        return cls(
            label=found.label,
            checkpoints=[Checkpoint.of(each) for each in found.checkpoints],
            complete=not found.is_cut,
            unreadable=found.unreadable,
        )


class TrainingRun(BaseModel):
    """A value of the label `run`."""

    label: str = Field(description="Label of its series, `run:name`.")
    checkpoints: int = Field(description="Number of its analyses that have a report.")


class TrainingRunList(BaseModel):
    """Runs of a tenant, those with the newest checkpoints first."""

    items: list[TrainingRun]
    complete: bool = Field(description="False if there are more runs, which a limit leaves out.")
