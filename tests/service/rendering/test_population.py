"""What a batch tells of its distribution, in every rendering: asymptotic, and of rows that were not trained on."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import unescape

import pytest
from support.policies import population, report

from service.cli.summary import summarize
from service.rendering import render_html, render_markdown
from wsb_engine.presentation.notebook import summary
from wsb_engine.presentation.population import CAVEAT, advice, quantities
from wsb_engine.report import Report

SENTENCE = (
    "The distribution's λ_max is in [30, 60] at 95 % confidence (asymptotic): this batch tells it within a factor of "
    "1.5; about 1,600 rows would tell it within 10 %."
)


def text_of(page: str) -> str:
    """What a page says, without its markup."""
    return unescape(re.sub(r"<style>.*?</style>|<[^>]+>", "", page, flags=re.DOTALL))


RENDERINGS: dict[str, Callable[[Report], str]] = {
    "terminal": summarize,
    "markdown": lambda found: re.sub(r"\\(?=.)", "", render_markdown(found)),
    "html": lambda found: text_of(render_html(found)),
    "notebook": lambda found: text_of(summary(found)),
}


def asked() -> Report:
    return report(population=population())


@pytest.mark.parametrize("name", RENDERINGS)
def test_every_rendering_has_the_sentence_and_what_it_rests_on(name: str) -> None:
    text = RENDERINGS[name](asked()).replace("λmax", "λ_max")
    assert SENTENCE in text
    assert CAVEAT in text


@pytest.mark.parametrize("name", RENDERINGS)
def test_no_rendering_speaks_of_it_unless_asked(name: str) -> None:
    assert "distribution" not in RENDERINGS[name](report())


def test_no_factor_is_told_if_the_interval_reaches_down_to_0() -> None:
    found = advice(report(population=population(lower=-1.0, factor=None)))
    assert found.startswith("The distribution's λ_max is in [-1, 60] at 95 % confidence (asymptotic); about")


@pytest.mark.parametrize(
    ("rows", "told"), [(0, "0"), (7, "7"), (206, "210"), (200, "200"), (7401, "7,500"), (123_456, "130,000")]
)
def test_numbers_of_rows_are_rounded_up_to_two_digits(rows: int, told: str) -> None:
    assert f"about {told} rows would" in advice(report(population=population(rows_for_ten_percent=rows)))


def test_the_interval_is_called_asymptotic_beside_the_numbers() -> None:
    (label, value, note), *_ = quantities(asked())
    assert (label, value) == ("λ_max of the distribution", "[30, 60]")
    assert note.startswith("asymptotic: at 95 % confidence")
    assert "have not seen" in note


def test_the_command_that_reproduces_a_report_asks_for_it_again() -> None:
    assert "--population 0.95" in render_markdown(asked())
    assert "--population" not in render_markdown(report())


def test_its_sources_are_cited_only_with_it() -> None:
    from wsb_engine.citations import citations

    keys = {citation.key for citation in citations(asked())}
    assert {"hall_1992", "bayle_2020"} <= keys
    assert not {"hall_1992", "bayle_2020"} & {citation.key for citation in citations(report())}
