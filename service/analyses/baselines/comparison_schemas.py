"""Requests and responses about comparisons."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from service.analyses.baselines.references import ReportReference
from service.policies import Policy, Verdict


class ComparisonRequest(BaseModel):
    """A policy and the reports to apply it to: each a report, its analysis's identifier, or the name of a baseline."""

    model_config = ConfigDict(
        extra="forbid",
        allow_inf_nan=False,
        json_schema_extra={
            "examples": [
                {
                    "candidate": "7b0f5c1e-52cf-4c3e-9d5b-0f8a1b5b7a55",
                    "baseline": "0d7a1b52-9a3c-4f0e-8c43-7a3c1f7f0f11",
                    "policy": {"rule": [{"metric": "enclosure.lambda_max", "max_relative_increase": 0.1}]},
                }
            ]
        },
    )

    candidate: ReportReference = Field(description="The report to judge.")
    baseline: ReportReference | None = Field(None, description="The report to compare with.")
    policy: Policy
    learning_rate: float | None = Field(
        None,
        gt=0,
        description="For `stability_ratio`; defaults to that of the candidate's analysis, then of the policy.",
    )


class Comparison(BaseModel):
    verdict: Verdict
