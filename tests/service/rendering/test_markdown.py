from __future__ import annotations

import re
from typing import Any

import pytest
from markdown_it import MarkdownIt

from service.rendering import render_markdown
from service.rendering.markdown import MAX_ROWS, code_span, plain
from wsb_engine.report import Check, Modelled, ReportWarning

GITHUB_LIMIT = 1024 * 1024
FOLDS = {"<details>", "</details>", "<summary>Layers</summary>", "<summary>Samples with the largest shares</summary>"}
FOLDS |= {"<summary>Checks</summary>", "<summary>Sources</summary>", "<summary>How to reproduce it</summary>"}


def parsed(text: str) -> list[Any]:
    return MarkdownIt("commonmark").enable("table").parse(text)


def test_the_headline_comes_first_and_then_the_verdict_with_its_rules(perceptron: Any) -> None:
    first, _, text = render_markdown(perceptron.report, perceptron.verdict).split("\n\n", 2)
    assert first == r"**λ\_max = 0.837802378916 (certified, ± 3e-13)**"
    assert text.startswith(
        "## ✗ Sharpness: failed\n\n1 of 3 rules failed.\n\nTrain longer, or raise the limit.\n\n| Outcome |"
    )
    assert "| ✗ Failed | `enclosure.lambda_max.upper` ≤ 0.75 |" in text
    assert "| ! Warning | `bounds.wolkowicz_styan.lambda_max.upper` ≤ 1.59 |" in text
    assert "| ✓ Passed | `loss.accuracy` ≥ 0.25 |" in text


def test_without_a_verdict_the_numbers_follow_the_headline(perceptron: Any) -> None:
    assert render_markdown(perceptron.report).split("\n\n", 3)[2] == "### Numbers"


def test_what_a_model_of_rounding_says_is_not_called_certified(perceptron: Any) -> None:
    assert "Vectors kept" not in render_markdown(perceptron.report)
    enclosure = perceptron.report.enclosure.model_copy(
        update={"basis": "three_vectors", "floor": 1.25e-3, "modelled": Modelled(upper=0.8126)}
    )
    text = render_markdown(perceptron.report.model_copy(update={"enclosure": enclosure}))
    assert "| Vectors kept | three, without a basis | rounding limits the gap to 0.0013 |" in text
    assert "| λ\\_max, modelled | at most 0.8126 | if rounding is isotropic: a model, not certified |" in text


def test_warnings_are_not_folded(general: Any) -> None:
    text = render_markdown(general.report)
    assert text.index("the Hessian exists only almost everywhere") < text.index("<details>")


def test_no_html_link_or_image_comes_from_names(case: Any) -> None:
    for token in parsed(render_markdown(case.report, case.verdict)):
        if token.type == "html_block":
            assert set(token.content.strip().splitlines()) <= FOLDS
        for child in token.children or []:
            assert child.type not in ("html_inline", "link_open", "image")


def test_every_row_has_the_cells_of_its_table(case: Any) -> None:
    columns: list[int] = []
    for block in re.findall(r"(?:^\|.*\|\n)+", render_markdown(case.report, case.verdict), re.MULTILINE):
        counts = {len(re.findall(r"(?<!\\)\|", row)) for row in block.splitlines()}
        assert len(counts) == 1
        columns.append(counts.pop())
    assert columns


@pytest.mark.parametrize(
    "text",
    [
        "# a",
        "- a",
        "+ a",
        "12. a",
        "= a",
        "*a*",
        "_a_",
        "~~a~~",
        "`a`",
        "[a](b)",
        "![a](b)",
        "<b>a</b>",
        "a | b",
        "&lt;",
        r"\a",
        "> a",
    ],
)
def test_plain_text_is_shown_as_it_is(text: str) -> None:
    [opening, inline, _] = parsed(plain(text))
    assert opening.type == "paragraph_open"
    assert "".join(child.content for child in inline.children) == text


def test_mentions_and_web_addresses_are_taken_apart() -> None:
    assert plain("@everyone :tada: https://evil.example www.evil.example") == (
        r"\@everyone \:tada: https\://evil.example www\.evil.example"
    )


@pytest.mark.parametrize("name", ["a`b", "``", "`", "a``b`c", " "])
def test_a_name_with_backticks_is_one_piece_of_code(name: str) -> None:
    [_, inline, _] = parsed(code_span(name))
    assert [child.type for child in inline.children] == ["code_inline"]
    assert inline.children[0].content == (name if name.strip() else "(empty)")


def test_the_longest_report_is_below_the_limit(hostile: Any) -> None:
    emoji, many = "\U0001f600" * 8192, 10 * MAX_ROWS
    rule = hostile.verdict.rules[3].model_copy(update={"metric": emoji, "message": emoji, "advice": emoji})
    difference = hostile.verdict.baseline.differences[0].model_copy(
        update={"name": emoji, "path": emoji, "candidate": emoji, "baseline": emoji}
    )
    baseline = hostile.verdict.baseline.model_copy(update={"differences": [difference] * many})
    verdict = hostile.verdict.model_copy(
        update={"rules": [rule] * many, "baseline": baseline, "message": emoji, "advice": emoji}
    )
    report = hostile.report.model_copy(
        update={
            "layers": [hostile.report.layers[0].model_copy(update={"name": emoji})] * many,
            "checks": [Check(name=emoji, passed=False, value=1.0, tolerance=0.5)] * many,
            "warnings": [ReportWarning(code=emoji, message=emoji)] * many,
        }
    )
    text = render_markdown(report, verdict)
    assert len(text.encode()) < GITHUB_LIMIT
    assert f"… and {many - MAX_ROWS} more" in text
