"""Derive a verdict again from its report, rule by rule, without the code that judged it."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, NamedTuple

from service.policies.schemas import RuleResult, Verdict
from wsb_engine.presentation.numbers import rounded
from wsb_engine.report import Report
from wsb_engine.verification.findings import Ledger

RATIO = "stability_ratio"
WORDS = {"fail": "failed", "error": "not decided", "warn": "warned", "pass": "passed"}
"""Outcomes from the gravest, as the message counts them."""
BY_MISMATCH = ("baseline_mismatch", "failed_check", "policy_outdated")
"""Codes of verdicts that do not follow from the outcomes of their rules."""


class Known(NamedTuple):
    """A number that is known to lie between two ends, in exact arithmetic."""

    low: Fraction
    high: Fraction
    value: float | None
    enclosed: bool


def check_verdict(verdict: Verdict, report: Report, baseline: Report | None, ledger: Ledger) -> None:
    """Record whether each rule and the verdict as a whole follow from the report.

    Args:
        verdict: As ``wsb check --verdict`` or the API gives it.
        report: The report that it is about.
        baseline: Report that rules about increases compare with; None to take what the verdict says of it.
        ledger: Receives the findings.
    """
    for index, rule in enumerate(verdict.rules):
        _check_rule(f"verdict.rules.{index}", rule, report, baseline, ledger)
    _check_whole(verdict, report, baseline, ledger)


def _check_rule(place: str, rule: RuleResult, report: Report, baseline: Report | None, ledger: Ledger) -> None:
    number = _measured(report, rule.metric)
    if number is None and rule.metric == RATIO and rule.value is not None:
        for name in ("value", "outcome"):
            ledger.skip(f"{place}.{name}", "the learning rate is the policy's, which neither file states")
        return
    ledger.equal(f"{place}.value", rule.value, None if number is None else number.value, "the report's number")
    _check_interval(f"{place}.interval", rule.interval, number, ledger)
    if number is None:
        ledger.equal(f"{place}.code", rule.code if rule.outcome == "error" else "missing", "missing", "no such number")
        return
    base = _of_baseline(place, rule, baseline, ledger)
    if rule.limit is None and base is None:
        codes = ("baseline_missing", "baseline_mismatch", "baseline_decided", "missing")
        known = rule.outcome in ("pass", rule.severity) or rule.code in codes
        ledger.refute(f"{place}.outcome", known, "a rule without a number of the baseline", rule.outcome)
        ledger.skip(f"{place}.outcome", "what the policy does without a number of the baseline")
        return
    decided = _decision(rule, number, base)
    if decided is None:
        outcome = "warn" if rule.severity == "warn" else "error"
        ledger.equal(f"{place}.code", rule.code, "undecided", "the interval contains the limit")
    else:
        outcome = "pass" if decided else rule.severity
        ledger.equal(f"{place}.code", rule.code, None, "the number decides the rule")
    ledger.equal(f"{place}.outcome", rule.outcome, outcome, "the rule, judged again in exact arithmetic")


def _check_interval(path: str, stated: Any, number: Known | None, ledger: Ledger) -> None:
    if stated is None or number is None or not number.enclosed:
        known = stated is None and (number is None or not number.enclosed)
        ledger.judge(path, known, "a number that is enclosed has an interval")
        return
    for name, end, exact in (("lower", stated.lower, number.low), ("upper", stated.upper, number.high)):
        ledger.equal(f"{path}.{name}", end, rounded(exact), "the interval that the report certifies")


def _of_baseline(place: str, rule: RuleResult, baseline: Report | None, ledger: Ledger) -> Known | None:
    """Return the baseline's number: of the report, or else as the rule repeats it."""
    if rule.limit is not None:
        return None
    if baseline is not None and rule.code not in ("baseline_mismatch", "baseline_decided"):
        found = _measured(baseline, rule.metric)
        if found is not None:
            ledger.equal(f"{place}.baseline", rule.baseline, found.value, "the baseline's number")
            _check_interval(f"{place}.baseline_interval", rule.baseline_interval, found, ledger)
            return found
    if rule.baseline_interval is not None:
        ends = rule.baseline_interval
        return Known(_exact(ends.lower), _exact(ends.upper), rule.baseline, True)
    if rule.baseline is not None:
        return Known(_exact(rule.baseline), _exact(rule.baseline), rule.baseline, False)
    return None


def _decision(rule: RuleResult, number: Known, base: Known | None) -> bool | None:
    """Return whether the rule holds for all values in the interval, for none (False), or for some (None)."""
    if rule.limit is not None:
        limit = Fraction(repr(rule.limit))
        always, never = {
            "<=": (number.high <= limit, number.low > limit),
            "<": (number.high < limit, number.low >= limit),
            ">=": (number.low >= limit, number.high < limit),
            ">": (number.low > limit, number.high <= limit),
            "==": (number.low == number.high == limit, not number.low <= limit <= number.high),
        }[str(rule.op)]
        return True if always else False if never else None
    if base is None:
        return None
    ends = [base.low, base.high] + ([Fraction(0)] if base.low < 0 < base.high else [])
    if rule.max_increase is not None:
        most = Fraction(repr(rule.max_increase))
        allowed = [base.low + most, base.high + most]
    else:
        share = Fraction(repr(rule.max_relative_increase or 0.0))
        allowed = [end + share * abs(end) for end in ends]
    return True if number.high <= min(allowed) else False if number.low > max(allowed) else None


def _measured(report: Report, metric: str) -> Known | None:
    """Look up a number by its path in the report's JSON."""
    if metric == RATIO:
        closest = report.lambda_max
        rate = None if report.evidence is None else report.evidence.options.learning_rate
        if closest is None or rate is None:
            return None
        factor = _exact(rate) / 2
        low, high = factor * _exact(closest.interval.lower), factor * _exact(closest.interval.upper)
        return Known(low, high, rounded(high), True)
    document: Any = report.model_dump(mode="json")
    parent: Any = None
    parts = metric.split(".")
    if parts[0] == "bounds_list":
        document["bounds_list"] = {each.name: each.model_dump() for each in reversed(report.named_bounds)}
    for part in parts:
        parent = document
        if isinstance(document, dict):
            document = document.get(part)
        elif isinstance(document, list) and part.isdecimal():
            document = document[int(part)] if int(part) < len(document) else None
        else:
            return None
        if document is None:
            return None
    is_end = parts[-1] in ("lower", "upper")
    if is_end and isinstance(parent, dict) and {"lower", "upper", "kind"} <= set(parent):
        return Known(_exact(parent["lower"]), _exact(parent["upper"]), float(document), True)
    if isinstance(document, dict):
        return Known(_exact(document["lower"]), _exact(document["upper"]), None, True)
    return Known(_exact(document), _exact(document), float(document), False)


def _exact(number: float) -> Fraction:
    """Return the decimal number that JSON has, as rules and their limits are written."""
    return Fraction(repr(float(number)))


def _check_whole(verdict: Verdict, report: Report, baseline: Report | None, ledger: Ledger) -> None:
    if verdict.code in BY_MISMATCH:
        ledger.equal("verdict.outcome", verdict.outcome, "error", "a verdict that could not be reached")
        if verdict.code == "failed_check":
            failed = [*report.failed_checks, *(baseline.failed_checks if baseline is not None else [])]
            if failed or baseline is not None or not any(rule.limit is None for rule in verdict.rules):
                ledger.judge("verdict.code", bool(failed), "a check of the report or of the baseline has failed")
        elif verdict.code == "baseline_mismatch":
            mismatched = verdict.baseline is not None and not verdict.baseline.compatible
            ledger.judge("verdict.code", mismatched, "the baseline differs")
        return
    gravest = next((name for name in WORDS if any(rule.outcome == name for rule in verdict.rules)), "error")
    ledger.equal("verdict.outcome", verdict.outcome, gravest, "the gravest outcome of the rules")
    first = next((rule for rule in verdict.rules if rule.outcome == gravest), None)
    code = first.code if first is not None and gravest == "error" else None
    ledger.equal("verdict.code", verdict.code, code, "that of the first rule with this outcome")
    counts = {name: sum(rule.outcome == name for rule in verdict.rules) for name in WORDS}
    total = len(verdict.rules)
    told = ", ".join(f"{count} {WORDS[name]}" for name, count in counts.items() if count)
    text = f"{total} {'rule' if total == 1 else 'rules'}: {told}."
    ledger.equal("verdict.message", verdict.message, text, "outcomes of the rules, counted")
