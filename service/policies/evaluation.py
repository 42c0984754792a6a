"""evaluate(): policy + report → verdict, rule by rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from service.policies.baseline import compare
from service.policies.decision import holds
from service.policies.metrics import BOUNDS_LIST, STABILITY_RATIO, Measurement, measure
from service.policies.policy import Policy, Rule, stopped_when_decided
from service.policies.schemas import BaselineComparison, Outcome, Range, RuleResult, Verdict
from wsb_engine.presentation.numbers import rounded
from wsb_engine.report import Report

_TIGHTEN = (
    "Ask for a tighter enclosure (a smaller relative_gap, more max_products, dtype float64), or move the limit away "
    "from the number."
)
_MORE_ROWS = "Send more rows, which narrow the interval, or move the limit away from the number."
_RUN_ON = "Run the analysis with this policy, or with the option stop at gap: it ended once its own policy was decided."
BASELINE_DECIDED = (
    "The baseline's analysis stopped as soon as its policy was decided, which is too soon to compare with."
)
PRODUCE_AGAIN = "Produce the baseline with the option stop at gap, its default."


@dataclass(frozen=True)
class _Candidate:
    """A report under judgement, and what its rules compare it with."""

    report: Report
    baseline: Report | None
    learning_rate: float | None
    comparison: BaselineComparison | None
    refused: bool
    """True if the baseline stopped too soon to be compared with."""


def evaluate(
    policy: Policy, report: Report, baseline: Report | None = None, learning_rate: float | None = None
) -> Verdict:
    """Judge a report by a policy.

    Args:
        policy: The rules.
        report: The report to judge.
        baseline: Report for rules about increases.
        learning_rate: Learning rate for ``stability_ratio``; None takes the policy's.
    """
    comparison = None if baseline is None else compare(policy, report, baseline)
    refused = baseline is not None and policy.refuses(baseline)
    candidate = _Candidate(report, baseline, policy.rate(learning_rate), comparison, refused)
    rules = [_judge(rule, candidate) for rule in policy.rule]
    return (
        _refused(rules, candidate)
        or _mismatch(rules, comparison)
        or _failed_check(policy, rules, candidate)
        or _sum_up(rules, comparison)
    )


def _judge(rule: Rule, candidate: _Candidate) -> RuleResult:
    number = measure(candidate.report, rule.metric, candidate.learning_rate)
    if number is None:
        return _missing(rule, candidate, candidate.report, "missing", f"The report has no {rule.metric}.")
    advice = _MORE_ROWS if rule.metric.startswith("population.") else _TIGHTEN
    advice = _RUN_ON if stopped_when_decided(candidate.report) else advice
    if not rule.needs_baseline:
        return _against_limit(rule, number, advice)
    if candidate.baseline is None:
        text = "There is no baseline to compare with."
        return _missing(rule, candidate, candidate.report, "baseline_missing", text, number)
    if candidate.refused:
        return _result(rule, number, outcome="error", code="baseline_decided", message=BASELINE_DECIDED)
    if candidate.comparison is not None and not candidate.comparison.compatible:
        text = "The baseline can't be compared with."
        return _result(rule, number, outcome="error", code="baseline_mismatch", message=text)
    base = measure(candidate.baseline, rule.metric, candidate.learning_rate)
    if base is None:
        text = f"The baseline has no {rule.metric}."
        return _missing(rule, candidate, candidate.baseline, "missing", text, number)
    return _against_baseline(rule, number, base, advice)


def _against_limit(rule: Rule, number: Measurement, advice: str) -> RuleResult:
    target = f"{rule.op} {rule.limit:.9g}"
    texts = f"it is {target}", f"it is not {target}", f"it is {target}"
    return _decided(rule, number, holds(rule, number), f"{_subject(rule)} is {_text(number)}", texts, advice)


def _against_baseline(rule: Rule, number: Measurement, base: Measurement, advice: str) -> RuleResult:
    share, increase = rule.max_relative_increase, rule.max_increase
    most = f"{increase:.9g}" if share is None else f"{100 * share:.9g} %"
    found = f"{_subject(rule)} is {_text(number)}, and {_text(base)} in the baseline"
    risen = f"it has risen by more than {most}"
    texts = risen.replace("has risen by", "has not risen by"), risen, risen
    result = _decided(rule, number, holds(rule, number, base), found, texts, advice)
    return result.model_copy(update={"baseline": base.value, "baseline_interval": _interval(base)})


def _decided(
    rule: Rule, number: Measurement, decision: bool | None, found: str, texts: tuple[str, str, str], advice: str
) -> RuleResult:
    """Return the result of a rule.

    Args:
        rule: The rule.
        number: The number that it is about.
        decision: Whether it holds; None if that is undecided.
        found: What the report says, as a sentence without its end.
        texts: How the sentence goes on if the rule holds, does not hold, or is undecided.
        advice: What to do if it is undecided.
    """
    yes, no, whether = texts
    if decision is None:
        # Either way, a rule that only warns stops nobody.
        outcome: Outcome = "warn" if rule.severity == "warn" else "error"
        message = f"{found}: that does not decide whether {whether}."
        return _result(rule, number, outcome=outcome, code="undecided", message=message, advice=advice)
    return _result(
        rule, number, outcome="pass" if decision else rule.severity, message=f"{found}: {yes if decision else no}."
    )


def _missing(
    rule: Rule, candidate: _Candidate, report: Report, code: str, message: str, number: Measurement | None = None
) -> RuleResult:
    """Return the result of a rule whose number this report lacks."""
    outcome: Outcome = rule.severity if rule.on_missing == "fail" else rule.on_missing
    advice = "Ask for the part of the report that has it, or set the rule's on_missing."
    if code == "baseline_missing":
        advice = "Give a baseline, or set the rule's on_missing to pass until there is one."
    elif rule.metric == STABILITY_RATIO and candidate.learning_rate is None:
        message, advice = "There is no learning rate.", "Give the option learning_rate, or set it in the policy."
    elif rule.metric.startswith(BOUNDS_LIST) and report.named_bounds:
        message = f"{message[:-1]}; its bounds are {', '.join(bound.name for bound in report.named_bounds)}."
    elif rule.metric.partition(".")[0] in ("enclosure", STABILITY_RATIO) and (
        reasons := report.messages("enclosure_withheld")
    ):
        message = f"{message[:-1]}: the enclosure is withheld ({reasons[0].rstrip('.')})."
        advice = "Allow what it lacks, or judge another metric."
    elif rule.metric.startswith("population.") and (reasons := _without_population(report)):
        message, advice = f"{message[:-1]}: {reasons[0].rstrip('.')}.", "Send what it lacks, or judge another metric."
    elif report.messages("time_limit"):
        message, advice = f"{message[:-1]}, which was cut short by its time limit.", "Allow it more time."
    elif rule.metric.startswith("population."):
        advice = "Set the option population to a confidence, such as 0.95, or the rule's on_missing."
    return _result(rule, number, outcome=outcome, code=code, message=message, advice=advice)


def _without_population(report: Report) -> list[str]:
    """Return why the distribution's λ_max is left out."""
    return [each.message for each in report.warnings if each.code.startswith("population_")]


def _result(rule: Rule, number: Measurement | None, **fields: Any) -> RuleResult:
    return RuleResult(
        **rule.model_dump(exclude={"on_missing"}),
        value=None if number is None else number.value,
        interval=None if number is None else _interval(number),
        **fields,
    )


def _refused(rules: list[RuleResult], candidate: _Candidate) -> Verdict | None:
    if not candidate.refused:
        return None
    return Verdict(
        outcome="error",
        code="baseline_decided",
        message=BASELINE_DECIDED,
        advice=PRODUCE_AGAIN,
        rules=rules,
        baseline=candidate.comparison,
    )


def _mismatch(rules: list[RuleResult], comparison: BaselineComparison | None) -> Verdict | None:
    if comparison is None or comparison.compatible:
        return None
    refused = [found for found in comparison.differences if found.name not in comparison.allowed]
    paths = ", ".join(f"{found.path} ({found.candidate} here, {found.baseline} there)" for found in refused)
    names = ", ".join(sorted({found.name for found in refused}))
    return Verdict(
        outcome="error",
        code="baseline_mismatch",
        message=f"The baseline was produced with different settings: {paths}.",
        advice=f"Produce the baseline with the same settings, or allow the difference: allow_mismatch with {names}.",
        rules=rules,
        baseline=comparison,
    )


def _failed_check(policy: Policy, rules: list[RuleResult], candidate: _Candidate) -> Verdict | None:
    if policy.allow_failed_checks:
        return None
    for name, report in (("report", candidate.report), ("baseline", candidate.baseline)):
        if report is None:
            continue
        failed = [check.name for check in report.failed_checks]
        causes = "".join(f" {message.rstrip('.')}." for message in report.messages("check_failed"))
        if failed:
            return Verdict(
                outcome="error",
                code="failed_check",
                message=f"Consistency checks of the {name} failed: {', '.join(failed)}.{causes}",
                advice="Its numbers can't be relied on. Find out why, or set allow_failed_checks.",
                rules=rules,
                baseline=candidate.comparison,
            )
    return None


def _sum_up(rules: list[RuleResult], comparison: BaselineComparison | None) -> Verdict:
    """Find the gravest outcome; a rule that certainly fails weighs more than one that can't be decided."""
    order: tuple[Outcome, ...] = ("fail", "error", "warn", "pass")
    gravest = next(outcome for outcome in order if any(rule.outcome == outcome for rule in rules))
    first = next(rule for rule in rules if rule.outcome == gravest)
    words = {"fail": "failed", "error": "not decided", "warn": "warned", "pass": "passed"}
    counts = {outcome: sum(rule.outcome == outcome for rule in rules) for outcome in order}
    found = ", ".join(f"{count} {words[outcome]}" for outcome, count in counts.items() if count)
    return Verdict(
        outcome=gravest,
        code=first.code if gravest == "error" else None,
        message=f"{len(rules)} {'rule' if len(rules) == 1 else 'rules'}: {found}.",
        advice=first.advice if gravest == "error" else None,
        rules=rules,
        baseline=comparison,
    )


def _interval(number: Measurement) -> Range | None:
    return Range(lower=rounded(number.low), upper=rounded(number.high)) if number.enclosed else None


def _subject(rule: Rule) -> str:
    """Name the quantity that the metric is about."""
    path, _, end = rule.metric.rpartition(".")
    return path if path.startswith("enclosure.") and end in ("lower", "upper") else rule.metric


def _text(number: Measurement) -> str:
    low, high = rounded(number.low), rounded(number.high)
    if not number.enclosed:
        return f"{low:.9g}"
    digits = next((n for n in (6, 9, 12) if f"{low:.{n}g}" != f"{high:.{n}g}"), 17)
    return f"in [{low:.{digits}g}, {high:.{digits}g}]"
