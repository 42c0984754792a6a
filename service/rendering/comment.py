"""A verdict as a comment on a pull request: λ_max before and after in a few lines. GitHub refuses more than 65,536
characters."""

from __future__ import annotations

from service.policies.schemas import RuleResult, Verdict
from service.rendering import wording
from service.rendering.markdown import code_span, plain
from wsb_engine.presentation.numbers import interval, number
from wsb_engine.report import Report

MAX_RULES = 20
"""Most rules that are listed."""
_MAX_MESSAGE = 300
_NONE = "—"


def render_comment(report: Report, verdict: Verdict, baseline: Report | None = None) -> str:
    """Render the outcome, the numbers of both reports, and the rules that do not hold.

    Args:
        report: The report after the change.
        verdict: Verdict on it.
        baseline: The report before the change; None if there is none yet.
    """
    parts = [f"### {wording.MARKS[verdict.outcome]} Sharpness: {wording.OUTCOMES[verdict.outcome].lower()}"]
    if wording.doubts(report):
        parts.append(f"**{wording.UNRELIABLE}**")
    parts.append(plain(verdict.message) + (f" ({plain(verdict.code)})" if verdict.code else ""))
    rows = [("", "before", "after", ""), ("---", "---", "---", "---"), _largest(report, baseline, verdict)]
    for label, after, before in (
        ("loss", report.loss.value, None if baseline is None else baseline.loss.value),
        ("accuracy", report.loss.accuracy, None if baseline is None else baseline.loss.accuracy),
    ):
        rows.append((label, number(before), number(after), ""))
    parts.append("\n".join(f"| {' | '.join(row)} |" for row in rows))
    broken = [rule for rule in verdict.rules if rule.outcome != "pass"]
    if broken:
        parts.append("\n".join(map(_rule, broken[:MAX_RULES])))
    if len(broken) > MAX_RULES:
        parts.append(f"… and {len(broken) - MAX_RULES} more")
    return "\n\n".join(parts) + "\n"


def _largest(report: Report, baseline: Report | None, verdict: Verdict) -> tuple[str, ...]:
    """The row of λ_max: both intervals, and what is certain of the change."""
    after, before = report.lambda_max, None if baseline is None else baseline.lambda_max
    shown = [_NONE if each is None else interval(each.interval) for each in (before, after)]
    if before is None or after is None:
        return "λ_max", *shown, ""
    if verdict.baseline is not None and not verdict.baseline.compatible:
        return "λ_max", *shown, "not comparable"
    # Ends that touch leave open whether there is any change.
    if after.interval.lower > before.interval.upper:
        return "λ_max", *shown, "sharper, certainly"
    if after.interval.upper < before.interval.lower:
        return "λ_max", *shown, "flatter, certainly"
    return "λ_max", *shown, "the intervals overlap"


def _rule(rule: RuleResult) -> str:
    found = f"{wording.MARKS[rule.outcome]} {code_span(rule.metric)}"
    return f"- {found}: {plain(rule.message, _MAX_MESSAGE)}"
