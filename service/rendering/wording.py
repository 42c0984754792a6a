"""The words in which every rendering says what a report and a verdict hold; those about a report are the engine's."""

from __future__ import annotations

from service.policies.schemas import Outcome, RuleResult
from wsb_engine.presentation.numbers import Ends, interval, number, percent
from wsb_engine.presentation.wording import UNRELIABLE as UNRELIABLE
from wsb_engine.presentation.wording import cautions as cautions
from wsb_engine.presentation.wording import certainty as certainty
from wsb_engine.presentation.wording import command as command
from wsb_engine.presentation.wording import curvature as curvature
from wsb_engine.presentation.wording import doubts as doubts
from wsb_engine.presentation.wording import fit as fit
from wsb_engine.presentation.wording import looseness as looseness
from wsb_engine.presentation.wording import loss as loss
from wsb_engine.presentation.wording import samples as samples
from wsb_engine.presentation.wording import source as source
from wsb_engine.presentation.wording import stopping as stopping
from wsb_engine.presentation.wording import subject as subject
from wsb_engine.presentation.wording import supported as supported
from wsb_engine.presentation.wording import withheld as withheld

OUTCOMES: dict[Outcome, str] = {
    "pass": "Passed",
    "warn": "Passed with warnings",
    "fail": "Failed",
    "error": "Not decided",
}
RULE_OUTCOMES: dict[Outcome, str] = {**OUTCOMES, "warn": "Warning"}
MARKS: dict[Outcome, str] = {"pass": "✓", "warn": "!", "fail": "✗", "error": "?"}
"""A sign next to the colour."""
_SIGNS = {"<=": "≤", ">=": "≥", "==": "="}


def condition(rule: RuleResult) -> str:
    """Say what a rule requires."""
    parts = []
    if rule.limit is not None:
        parts.append(f"{_SIGNS.get(rule.op or '<=', rule.op)} {number(rule.limit)}")
    if rule.max_relative_increase is not None:
        parts.append(f"at most {percent(rule.max_relative_increase)} above the baseline")
    if rule.max_increase is not None:
        parts.append(f"at most {number(rule.max_increase)} above the baseline")
    return " and ".join(parts)


def found(rule: RuleResult) -> str:
    """Say what the report has for a rule's metric."""
    return _interval_or_number(rule.interval, rule.value)


def baseline(rule: RuleResult) -> str:
    """Say what the baseline has for a rule's metric."""
    return _interval_or_number(rule.baseline_interval, rule.baseline)


def _interval_or_number(ends: Ends | None, value: float | None) -> str:
    if ends is not None:
        return interval(ends)
    return "—" if value is None else number(value, 10)
