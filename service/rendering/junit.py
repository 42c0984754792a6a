"""A verdict as JUnit XML, which CI systems show as test results: a case for each rule and each check of the report."""

from __future__ import annotations

from collections import Counter
from xml.etree import ElementTree

from service.policies.schemas import RuleResult, Verdict
from service.rendering import checks, wording
from wsb_engine.presentation.headline import Yardstick, headline
from wsb_engine.presentation.numbers import number
from wsb_engine.presentation.text import clean
from wsb_engine.presentation.text import name as shown_name
from wsb_engine.report import Check, Report

MAX_CASE_NAME = 250
"""Most characters of the name of a case."""


def render_junit(
    report: Report, verdict: Verdict | None = None, yardstick: Yardstick | None = None, *, name: str = "wsb"
) -> str:
    """Render one suite; failed checks come first, since they void the rest, and the headline is the suite's output.

    A rule that warns passes with a note in its output; an undecided one is an error.
    """
    cases = [_check(check) for check in report.checks if not check.passed]
    cases += [_rule(rule) for rule in verdict.rules] if verdict is not None else []
    if verdict is not None and verdict.outcome in ("fail", "error") and not _shows(verdict):
        cases.append(_whole(verdict))
    cases += [_check(check) for check in report.checks if check.passed]
    _distinguish(cases)
    counts = {
        "tests": str(len(cases)),
        "failures": str(sum(case.find("failure") is not None for case in cases)),
        "errors": str(sum(case.find("error") is not None for case in cases)),
        "time": f"{report.timings.get('total', 0.0):.3f}",
    }
    title = clean(name)
    root = ElementTree.Element("testsuites", {"name": title, **counts})
    suite = ElementTree.SubElement(root, "testsuite", {"name": title, **counts, "skipped": "0"})
    suite.extend(cases)
    lines = [clean(line) for line in headline(report, yardstick)]
    lines += [f"{clean(warning.message)} [{shown_name(warning.code)}]" for warning in report.warnings]
    ElementTree.SubElement(suite, "system-out").text = "\n".join(lines)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _rule(rule: RuleResult) -> ElementTree.Element:
    case = _case("policy", f"{rule.metric} {wording.condition(rule)}")
    told = [
        clean(rule.message),
        f"found: {wording.found(rule)}",
        *([f"baseline: {wording.baseline(rule)}"] if wording.baseline(rule) != "—" else []),
        *([clean(rule.advice)] if rule.advice else []),
    ]
    if rule.outcome == "warn":
        ElementTree.SubElement(case, "system-out").text = "\n".join(["warning", *told])
    elif rule.outcome != "pass":
        _spoil(case, rule.outcome, rule.code or rule.outcome, told)
    return case


def _whole(verdict: Verdict) -> ElementTree.Element:
    """Make a case of what no rule shows, such as an incomparable baseline."""
    case = _case("policy", "verdict")
    told = [clean(verdict.message), *([clean(verdict.advice)] if verdict.advice else [])]
    if verdict.baseline is not None:
        told += [
            f"{clean(d.path)}: {clean(str(d.candidate))}, baseline {clean(str(d.baseline))}"
            for d in verdict.baseline.differences
        ]
    _spoil(case, verdict.outcome, verdict.code or verdict.outcome, told)
    return case


def _shows(verdict: Verdict) -> bool:
    return any(rule.outcome == verdict.outcome for rule in verdict.rules)


def _check(check: Check) -> ElementTree.Element:
    known = f"{checks.words(check.name)} [{check.name}]"
    case = _case("checks", known if check.name in checks.WORDS else check.name)
    if not check.passed:
        told = f"The check failed: {number(check.value)} where at most {number(check.tolerance)} was expected."
        _spoil(case, "fail", "check_failed", [told])
    return case


def _case(group: str, name: str) -> ElementTree.Element:
    return ElementTree.Element(
        "testcase", {"classname": f"wsb.{group}", "name": shown_name(name, MAX_CASE_NAME), "time": "0"}
    )


def _spoil(case: ElementTree.Element, outcome: str, code: str, told: list[str]) -> None:
    tag = "failure" if outcome == "fail" else "error"
    ElementTree.SubElement(case, tag, {"type": shown_name(code), "message": told[0]}).text = "\n".join(told)


def _distinguish(cases: list[ElementTree.Element]) -> None:
    """Number cases of the same name, which CI systems would take for one."""
    seen: Counter[tuple[str, str]] = Counter()
    for case in cases:
        key = (case.attrib["classname"], case.attrib["name"])
        seen[key] += 1
        if seen[key] > 1:
            case.attrib["name"] += f" ({seen[key]})"
