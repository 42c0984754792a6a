"""The numbers of a report that lists show and sort by; they are stored with the analysis, so no list reads reports."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field, ValidationError

from service.analyses.table import AnalysisRow
from wsb_engine.presentation.text import clean
from wsb_engine.report import Interval, Report

MAX_DEVICE = 64
"""Most characters of the name of a device."""


class Numbers(BaseModel):
    """The main numbers of a report."""

    lambda_max: Interval | None = Field(description="The closest interval about λ_max in the report.")
    loss: float
    accuracy: float | None = Field(description="Null if the loss predicts no classes.")
    parameters: int = Field(description="Number of parameters of the model, P.")
    device: str
    seconds: float | None = Field(description="Duration of the analysis, from reading the files to the report.")
    reliable: bool = Field(description="False if a check of the report has failed.")


def columns(report: str) -> dict[str, Any]:
    """Return what the row of an analysis holds of its report; empty for a report that this version can't read."""
    try:
        found = Report.model_validate_json(report)
    except ValidationError:
        return {}
    closest = None if found.lambda_max is None else found.lambda_max.interval
    return {
        "lambda_max_lower": None if closest is None else closest.lower,
        "lambda_max_upper": None if closest is None else closest.upper,
        "loss": found.loss.value,
        "accuracy": found.loss.accuracy,
        "parameters": found.model.parameters.count,
        "device": clean(found.engine.device, MAX_DEVICE),
        "seconds": found.timings.get("total"),
        "reliable": not found.failed_checks,
    }


def numbers_of(row: AnalysisRow) -> Numbers | None:
    """Return the numbers of an analysis; None without a readable report."""
    if row.loss is None or row.parameters is None:
        return None
    lower, upper = row.lambda_max_lower, row.lambda_max_upper
    return Numbers(
        lambda_max=None if lower is None or upper is None else Interval(lower=lower, upper=upper),
        loss=row.loss,
        accuracy=row.accuracy,
        parameters=row.parameters,
        device=row.device or "",
        seconds=row.seconds,
        reliable=row.reliable is not False,
    )
