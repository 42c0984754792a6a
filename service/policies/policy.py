"""Policies: rules over a report, as TOML or the same in JSON."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from service.fields import FieldError, field_errors
from service.policies.metrics import about_moments, check_metric, did_you_mean
from service.policies.schemas import Operator, Severity
from wsb_engine.report import Report

MAX_RULES = 200
MAX_POLICY_BYTES = 1 << 20
MAX_DOTS = 100
"""Dots in a line of a policy in TOML: the time to parse a dotted key grows with the square of its parts."""

OnMissing = Literal["error", "pass", "fail"]
Mismatch = Literal["method", "parameters", "batch", "loss", "dtype"]
"""Differences that make a baseline incomparable."""
Number = Annotated[float, Field(strict=True)]

_CRITERIA = ("limit", "max_relative_increase", "max_increase")


class PolicyError(Exception):
    """The policy is not valid.

    Args:
        errors: Errors, each with a JSON pointer into the policy.
        source: Text of a policy in TOML, to find lines.
    """

    def __init__(self, errors: Iterable[FieldError], source: str | None = None) -> None:
        self.errors = list(errors)
        super().__init__("\n".join(_located(error, source) for error in self.errors))


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, value: object) -> object:
        if isinstance(value, Mapping):
            for key in value:
                if key not in cls.model_fields:
                    context = {"key": str(key)[:80], "hint": did_you_mean(str(key), cls.model_fields)}
                    raise PydanticCustomError("unknown_key", "There is no key '{key}' here{hint}", context)
        return value


class Rule(_Part):
    """One condition on one number of the report."""

    metric: str = Field(max_length=200, description="Path into the report, or `stability_ratio`.")
    op: Operator | None = Field(None, description="How the number compares with `limit`.")
    limit: Number | None = None
    max_relative_increase: Number | None = Field(None, description="Increase over the baseline, relative to its size.")
    max_increase: Number | None = Field(None, description="Increase over the baseline.")
    severity: Severity = Field("fail", description="Outcome if the rule does not hold.")
    on_missing: OnMissing = Field("error", description="Outcome if the report has no such number.")

    @field_validator("metric")
    @classmethod
    def _metric_exists(cls, metric: str) -> str:
        try:
            check_metric(metric)
        except ValueError as error:
            raise PydanticCustomError("unknown_metric", "{text}", {"text": str(error)}) from error
        return metric

    @model_validator(mode="after")
    def _one_criterion(self) -> Rule:
        given = [name for name in _CRITERIA if getattr(self, name) is not None]
        if len(given) != 1:
            found = f"it has {' and '.join(given)}" if given else "it has none"
            raise PydanticCustomError(
                "criterion",
                "A rule has one of limit, max_relative_increase and max_increase; {found}",
                {"found": found},
            )
        if (self.op is None) == (self.limit is not None):
            raise PydanticCustomError(
                "operator", "op and limit belong together: op is one of {ops}", {"ops": ", ".join(get_args(Operator))}
            )
        return self

    @property
    def needs_baseline(self) -> bool:
        return self.limit is None


class Policy(_Part):
    """Rules that a report must satisfy."""

    rule: list[Rule] = Field(min_length=1, max_length=MAX_RULES)
    allow_mismatch: list[Mismatch] = Field(
        [], max_length=len(get_args(Mismatch)), description="Differences from the baseline to ignore."
    )
    allow_failed_checks: bool = Field(False, description="Judge a report even if one of its consistency checks failed.")
    learning_rate: Number | None = Field(
        None, gt=0, description="Learning rate for `stability_ratio` if the options of the analysis have none."
    )

    @field_validator("allow_mismatch", mode="before")
    @classmethod
    def _known_names(cls, names: object) -> object:
        known = get_args(Mismatch)
        for name in names if isinstance(names, list | tuple) else ():
            if name not in known:
                context = {"name": str(name)[:80], "known": ", ".join(known)}
                raise PydanticCustomError("unknown_mismatch", "'{name}' is none of {known}", context)
        return names

    def rate(self, learning_rate: float | None) -> float | None:
        """Return the learning rate for ``stability_ratio``: that of the analysis, or else the policy's."""
        return self.learning_rate if learning_rate is None else learning_rate

    @property
    def needs_moments(self) -> bool:
        """True if a rule is about a number that only moments provide."""
        return any(about_moments(rule.metric) for rule in self.rule)

    def refuses(self, baseline: Report) -> bool:
        """Return whether a baseline ended as soon as its own policy was decided, and a rule compares with it."""
        return stopped_when_decided(baseline) and any(rule.needs_baseline for rule in self.rule)

    def unmet_baseline(self) -> Rule | None:
        """Return the first rule that can't be decided without a baseline."""
        return next((rule for rule in self.rule if rule.needs_baseline and rule.on_missing == "error"), None)


def stopped_when_decided(report: Report) -> bool:
    """Return whether the enclosure is only as narrow as the policy of its analysis needed."""
    return report.enclosure is not None and report.enclosure.stopped_by == "decided"


def load_policy(path: Path) -> Policy:
    """Read a policy: JSON if the name ends in ``.json``, else TOML.

    Raises:
        PolicyError: the policy is invalid; the message names rule, key and line.
        OSError: the file is not readable.
    """
    with path.open("rb") as file:
        content = file.read(MAX_POLICY_BYTES + 1)
    if len(content) > MAX_POLICY_BYTES:
        raise PolicyError([FieldError(pointer="", detail=f"It is larger than {MAX_POLICY_BYTES} bytes")])
    if path.suffix.lower() == ".json":
        return _validated(lambda: Policy.model_validate_json(content))
    return parse_toml(content)


def parse_toml(content: bytes) -> Policy:
    """Parse the policy of a TOML document.

    Raises:
        PolicyError: the policy is invalid; the message names rule, key and line.
    """
    try:
        source = content.decode()
        if (line := _line_of_long_key(source)) is not None:
            raise PolicyError([FieldError(pointer="", detail=f"Line {line} has more than {MAX_DOTS} dots")])
        document = tomllib.loads(source)
    except (ValueError, RecursionError) as error:
        raise PolicyError([FieldError(pointer="", detail=f"It is no TOML: {error}")]) from error
    # Python's types include some of TOML that JSON lacks (dates); the schema rejects those.
    return _validated(lambda: Policy.model_validate(document), source)


def _line_of_long_key(source: str) -> int | None:
    """Return the number of the first line that may have a dotted key of too many parts; None if there is none."""
    lines = enumerate(source.splitlines(), start=1)
    return next((number for number, line in lines if line.count(".") > MAX_DOTS and line.lstrip()[:1] != "#"), None)


def _validated(validate: Any, source: str | None = None) -> Policy:
    try:
        policy: Policy = validate()
    except ValidationError as error:
        raise PolicyError(field_errors(error), source) from error
    return policy


def _located(error: FieldError, source: str | None) -> str:
    """Format an error with its place as people count: rules from 1, and the line where the rule begins."""
    parts = error.pointer.strip("/").split("/") if error.pointer else []
    if len(parts) < 2 or parts[0] != "rule" or not parts[1].isdecimal():
        where = ".".join(parts)
        return f"{where}: {error.detail}" if where else error.detail
    index = int(parts[1])
    lines = _rule_lines(source or "")
    line = f" (line {lines[index]})" if index < len(lines) else ""
    key = f", {'.'.join(parts[2:])}" if parts[2:] else ""
    return f"rule {index + 1}{line}{key}: {error.detail}"


def _rule_lines(source: str) -> list[int]:
    header = re.compile(r"\s*\[\[\s*rule\s*\]\]")
    return [number for number, line in enumerate(source.splitlines(), start=1) if header.match(line)]
