"""What a notebook shows of a report: the words of all renderings, escaped, in the colours of its theme."""

from __future__ import annotations

import re
from html import unescape
from html.parser import HTMLParser

import pytest
from support.stored import stored_report

from wsb_engine.presentation import wording
from wsb_engine.presentation.headline import headline
from wsb_engine.presentation.notebook import MAX_ITEMS
from wsb_engine.report import ReportWarning

NAMES = ("perceptron", "general", "nothing", "hostile", "doubtful")
OURS = {"div", "p", "strong", "table", "tbody", "tr", "th", "td", "details", "summary", "ul", "li"}


class Fragment(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += f"{data}\n"


@pytest.mark.parametrize("name", NAMES)
def test_the_headline_and_every_number_are_shown(name: str) -> None:
    report = stored_report(name)
    text = Fragment(report._repr_html_()).text
    assert text.startswith(headline(report).value)
    assert f"\n{headline(report).sentence}\n" in text
    for quantity in [*wording.curvature(report), *wording.fit(report)][:5]:
        assert quantity.value in text


@pytest.mark.parametrize("name", NAMES)
def test_no_element_comes_from_the_report(name: str) -> None:
    found = Fragment(stored_report(name)._repr_html_())
    assert found.open == []
    assert found.tags <= OURS
    assert found.attributes <= {"style", "scope", "open"}


def test_markup_in_names_is_shown_as_text() -> None:
    html = stored_report("hostile")._repr_html_()
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "\u202e" not in unescape(html)


@pytest.mark.parametrize("name", NAMES)
def test_text_has_the_colour_of_the_notebook(name: str) -> None:
    styles = re.findall(r'style="([^"]*)"', stored_report(name)._repr_html_())
    colours = {
        rule.strip() for style in styles for rule in style.split(";") if re.match(r"\s*(color|background)", rule)
    }
    assert colours == {"color: inherit", "background: transparent"}


def test_failed_checks_are_not_folded() -> None:
    assert "<details open><summary>Failed checks" in stored_report("doubtful")._repr_html_()
    assert "<details open>" not in stored_report("perceptron")._repr_html_()


def test_the_sources_are_listed() -> None:
    html = stored_report("perceptron")._repr_html_()
    assert "<summary>Sources (6)</summary>" in html
    assert "arXiv:2604.10202" in html


def test_of_many_warnings_the_first_are_listed() -> None:
    warnings = [ReportWarning(code="w", message=f"message {i}") for i in range(1000)]
    html = stored_report("perceptron").model_copy(update={"warnings": warnings})._repr_html_()
    assert html.count("message ") == MAX_ITEMS
    assert "(1000)" in html
    assert f"… and {1000 - MAX_ITEMS} more" in html
