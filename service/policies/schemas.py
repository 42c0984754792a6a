"""The verdict of a policy on a report, rule by rule."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

Operator = Literal["<", "<=", ">", ">=", "=="]
Severity = Literal["fail", "warn"]
Outcome = Literal["pass", "warn", "fail", "error"]
"""``error``: the rule, or the policy, could not be decided."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Range(_Part):
    """Interval that contains the number that the rule is about."""

    lower: float
    upper: float


class RuleResult(_Part):
    """One rule and its outcome."""

    metric: str = Field(description="Path into the report, or `stability_ratio`.")
    op: Operator | None = Field(None, description="Null for a rule against the baseline.")
    limit: float | None = None
    max_relative_increase: float | None = None
    max_increase: float | None = None
    severity: Severity = "fail"
    outcome: Outcome
    code: str | None = Field(None, description="Why a rule is an error, such as `undecided` or `missing`.")
    value: float | None = Field(None, description="Value of the report at the metric's path.")
    interval: Range | None = Field(None, description="Certified interval of the number, if the report encloses it.")
    baseline: float | None = Field(None, description="Value of the baseline at the same path.")
    baseline_interval: Range | None = None
    message: str
    advice: str | None = None


class Difference(_Part):
    """A difference that makes two reports incomparable."""

    name: str = Field(description="Name for `allow_mismatch`.")
    path: str
    candidate: JsonValue
    baseline: JsonValue


class BaselineComparison(_Part):
    """Whether the baseline was produced with the same settings as the report."""

    compatible: bool
    differences: list[Difference]
    allowed: list[str] = Field(description="Names of differences that the policy allows.")


class Verdict(_Part):
    """The verdict of a policy on a report."""

    outcome: Outcome
    code: str | None = Field(None, description="Why the verdict is an error.")
    message: str
    advice: str | None = None
    rules: list[RuleResult]
    baseline: BaselineComparison | None = Field(None, description="Null without a baseline.")
