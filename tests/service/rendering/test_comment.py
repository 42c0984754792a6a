"""The comment on a pull request: what has changed, in a few lines."""

from __future__ import annotations

from typing import Any

import pytest
from markdown_it import MarkdownIt

from service.policies import Policy, evaluate
from service.rendering import wording
from service.rendering.comment import MAX_RULES, render_comment
from wsb_engine.presentation.numbers import interval
from wsb_engine.report import Report

RISE = {"metric": "enclosure.lambda_max", "max_increase": 0.1}


def moved(report: Report, by: float) -> Report:
    """The report with another λ_max."""
    enclosure = report.enclosure
    assert enclosure is not None
    ends = {name: getattr(enclosure.lambda_max, name) + by for name in ("lower", "upper")}
    largest = enclosure.lambda_max.model_copy(update=ends)
    return report.model_copy(update={"enclosure": enclosure.model_copy(update={"lambda_max": largest})})


def row_of(text: str) -> list[str]:
    [row] = [line for line in text.splitlines() if line.startswith("| λ_max")]
    return [cell.strip() for cell in row.strip("|").split("|")]


@pytest.mark.parametrize(
    ("by", "outcome", "told"),
    [
        (0.5, "failed", "sharper, certainly"),
        (-0.5, "passed", "flatter, certainly"),
        (0, "passed", "the intervals overlap"),
    ],
)
def test_both_intervals_and_what_is_certain_of_the_change(perceptron: Any, by: float, outcome: str, told: str) -> None:
    before, after = perceptron.report, moved(perceptron.report, by)
    text = render_comment(after, evaluate(Policy.model_validate({"rule": [RISE]}), after, before), before)
    assert text.splitlines()[0].endswith(f" Sharpness: {outcome}")
    shown = [interval(each.enclosure.lambda_max) for each in (before, after)]
    assert row_of(text) == ["λ_max", *shown, told]
    assert ("- ✗ `enclosure.lambda_max`" in text) == (outcome == "failed")
    assert any(token.type == "table_open" for token in MarkdownIt("commonmark").enable("table").parse(text))


def test_reports_that_can_not_be_compared_say_nothing_of_the_change(perceptron: Any, general: Any) -> None:
    policy = Policy.model_validate({"rule": [RISE]})
    text = render_comment(perceptron.report, evaluate(policy, perceptron.report, general.report), general.report)
    assert row_of(text)[-1] == "not comparable"


def test_without_a_baseline_there_is_no_before(perceptron: Any) -> None:
    text = render_comment(perceptron.report, perceptron.verdict)
    assert row_of(text)[1::2] == ["—", ""]


def test_nothing_in_a_report_is_markup_and_the_comment_stays_short(hostile: Any) -> None:
    rules = hostile.verdict.rules[:1] * 200
    rules = [rule.model_copy(update={"outcome": "fail", "message": "<b>@you</b> " * 2000}) for rule in rules]
    text = render_comment(hostile.report, hostile.verdict.model_copy(update={"rules": rules}), hostile.report)
    assert len(text) < 65_536
    assert f"… and {200 - MAX_RULES} more" in text
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    inline = [child for token in tokens for child in token.children or ()]
    assert not [token for token in [*tokens, *inline] if token.type.startswith("html")]


def test_doubts_come_before_the_numbers(case: Any, perceptron: Any) -> None:
    text = render_comment(case.report, perceptron.verdict)
    assert ("can't be relied on" in text) == bool(wording.doubts(case.report))
    assert text.index("λ_max") > text.find("can't be relied on")
