"""A report in a notebook as a browser shows it: readable in light and dark notebooks, and nothing in it runs."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser
from support.forms import crossed
from support.stored import stored_report

THEMES = {"light": ("#ffffff", "rgb(17, 17, 17)"), "dark": ("#111111", "rgb(221, 221, 221)")}
STYLES = """
(elements) => [...new Set(elements.map((each) => {
  const style = getComputedStyle(each);
  return `${style.color} on ${style.backgroundColor} at ${style.fontSize}`;
}))]
"""


@pytest.mark.slow
@pytest.mark.parametrize(("theme", "document"), crossed(THEMES, ["<!DOCTYPE html>", ""]))
def test_every_text_has_the_colour_and_the_size_of_the_notebook(browser: Browser, theme: str, document: str) -> None:
    background, color = THEMES[theme]
    fragment = stored_report("doubtful")._repr_html_()
    page = browser.new_page()
    page.set_content(f'{document}<body style="background: {background}; color: {color}; font-size: 13px">{fragment}')
    assert page.locator("div *").evaluate_all(STYLES) == [f"{color} on rgba(0, 0, 0, 0) at 13px"]
    page.close()


def test_nothing_of_a_hostile_report_runs_or_is_loaded(browser: Browser) -> None:
    noticed: list[str] = []
    page = browser.new_page()
    page.on("request", lambda request: noticed.append(request.url))
    page.on("dialog", lambda dialog: (noticed.append(dialog.message), dialog.dismiss()))
    page.set_content(f"<!DOCTYPE html>{stored_report('hostile')._repr_html_()}")
    assert page.locator("div").count() == 1
    assert noticed == []
    page.close()
