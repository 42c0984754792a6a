from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from service.policies.schemas import BaselineComparison, Difference, RuleResult, Verdict
from service.rendering import render_junit
from wsb_engine.report import Check


@cache
def schema() -> Any:
    import xmlschema  # which takes long, in every process that collects these tests

    return xmlschema.XMLSchema(Path(__file__).parent / "junit.xsd")


def suite_of(report: Any, verdict: Verdict | None = None, **arguments: Any) -> ElementTree.Element:
    text = render_junit(report, verdict, **arguments)
    schema().validate(text)
    [suite] = ElementTree.fromstring(text)  # noqa: S314 - ours
    return suite


def cases_of(suite: ElementTree.Element) -> dict[str, str]:
    """What became of each case, by its name."""
    found = {}
    for case in suite.iter("testcase"):
        first = case.find("*")
        found[case.attrib["name"]] = "passed" if first is None else first.tag
    return found


def rule(outcome: Any, **fields: Any) -> RuleResult:
    return RuleResult(
        **{"metric": "loss.value", "op": "<=", "limit": 1.0, "message": "Why.", "outcome": outcome, **fields}
    )


@pytest.mark.slow
def test_the_schema_holds_for_every_fixed_report(case: Any) -> None:
    suite_of(case.report, case.verdict)


@pytest.mark.slow
def test_the_schema_refuses_what_is_not_junit(perceptron: Any) -> None:
    text = render_junit(perceptron.report, perceptron.verdict)
    for wrong in (
        text.replace("<failure", "<fault").replace("</failure", "</fault"),
        text.replace('tests="', 'tests="-'),
    ):
        with pytest.raises(ValueError, match="failed validating"):
            schema().validate(wrong)


def test_a_rule_is_a_case_with_its_outcome(general: Any) -> None:
    rules = [rule(outcome, metric=outcome) for outcome in ("pass", "warn", "fail", "error")]
    report = general.report.model_copy(update={"checks": []})
    suite = suite_of(report, Verdict(outcome="error", message="", rules=rules))
    assert cases_of(suite) == {
        "pass ≤ 1": "passed",
        "warn ≤ 1": "system-out",
        "fail ≤ 1": "failure",
        "error ≤ 1": "error",
    }
    assert (suite.attrib["tests"], suite.attrib["failures"], suite.attrib["errors"]) == ("4", "1", "1")


def test_a_failure_says_what_was_found_and_what_to_do(general: Any) -> None:
    failed = rule("fail", value=2.0, baseline=1.5, advice="Do this.", code="over")
    suite = suite_of(general.report, Verdict(outcome="fail", message="", rules=[failed]))
    failure = suite.find("testcase/failure")
    assert failure is not None
    assert failure.attrib == {"type": "over", "message": "Why."}
    assert failure.text == "Why.\nfound: 2\nbaseline: 1.5\nDo this."


def test_a_check_is_a_case(general: Any) -> None:
    checks = [
        Check(name="parity", passed=True, value=0.0, tolerance=1.0),
        Check(name="two", passed=False, value=2.0, tolerance=1.0),
    ]
    suite = suite_of(general.report.model_copy(update={"checks": checks}))
    assert cases_of(suite) == {"logits agree with another runtime [parity]": "passed", "two": "failure"}


@pytest.mark.slow
def test_a_verdict_that_no_rule_explains_is_a_case_of_its_own(general: Any) -> None:
    difference = Difference(name="batch", path="batch.sha256", candidate="a", baseline="b")
    verdict = Verdict(
        outcome="error",
        code="baseline_mismatch",
        message="The baseline is of another batch.",
        rules=[],
        baseline=BaselineComparison(compatible=False, differences=[difference], allowed=[]),
    )
    suite = suite_of(general.report, verdict)
    error = suite.find("testcase[@name='verdict']/error")
    assert error is not None
    assert error.attrib["type"] == "baseline_mismatch"
    assert error.text == "The baseline is of another batch.\nbatch.sha256: a, baseline b"


def test_a_passed_verdict_adds_no_case(general: Any) -> None:
    assert "verdict" not in cases_of(suite_of(general.report, Verdict(outcome="pass", message="", rules=[])))


def test_rules_of_one_name_are_told_apart(general: Any) -> None:
    suite = suite_of(general.report, Verdict(outcome="pass", message="", rules=[rule("pass"), rule("pass")]))
    assert {"loss.value ≤ 1", "loss.value ≤ 1 (2)"} <= set(cases_of(suite))


def test_the_suite_has_the_name_that_was_given(general: Any) -> None:
    assert suite_of(general.report, name="digits\x00").attrib["name"] == "digits⟨U+0000⟩"


def test_warnings_of_the_report_are_in_the_output_of_the_suite(general: Any) -> None:
    assert "[not_smooth]" in suite_of(general.report).findtext("system-out", "")
