"""The HTML report as a browser shows it, with the network off."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page
from support.forms import crossed, thinned

from service.policies.schemas import Verdict
from service.rendering import render_html
from wsb_engine.report import Report

CASES = Path(__file__).parents[1] / "service" / "rendering" / "cases"
NAMES = ("perceptron", "general", "nothing", "hostile")
WIDTHS = (375, 1280)
THEMES = ("light", "dark")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    written = {}
    for name in NAMES:
        content = json.loads((CASES / f"{name}.json").read_text(encoding="utf-8"))
        verdict = content["verdict"] and Verdict.model_validate(content["verdict"])
        written[name] = folder / f"{name}.html"
        written[name].write_text(render_html(Report.model_validate(content["report"]), verdict), encoding="utf-8")
    return written


@contextmanager
def opened(
    browser: Browser, file: Path, *, width: int = 1280, theme: Any = "light"
) -> Iterator[tuple[Page, list[str]]]:
    """The page, and what it asked for or complained of."""
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=theme, offline=True)
    page, noticed = context.new_page(), []
    page.on("request", lambda request: noticed.append(request.url))
    page.on("console", lambda message: noticed.append(message.text))
    page.on("pageerror", lambda error: noticed.append(str(error)))
    page.on("dialog", lambda dialog: (noticed.append(dialog.message), dialog.dismiss()))
    page.goto(file.as_uri(), wait_until="load")
    yield page, noticed
    context.close()


@pytest.mark.parametrize(("name", "width", "theme"), crossed(NAMES, WIDTHS, THEMES))
def test_it_loads_nothing_complains_of_nothing_and_fits(
    browser: Browser, files: dict[str, Path], name: str, width: int, theme: str
) -> None:
    with opened(browser, files[name], width=width, theme=theme) as (page, noticed):
        page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        outside = "[...document.querySelectorAll('section, figure, svg, table.facts, p, h1, h2')]"
        rights = page.evaluate(f"{outside}.map(each => each.getBoundingClientRect().right)")
        assert max(rights) <= width
        assert noticed == [files[name].as_uri()]


@pytest.mark.parametrize("name", thinned(NAMES, keep=1))
def test_its_colours_follow_the_theme(browser: Browser, files: dict[str, Path], name: str) -> None:
    brightness = []
    for theme in THEMES:
        with opened(browser, files[name], theme=theme) as (page, _):
            colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
            brightness.append(sum(int(part) for part in colour.strip("rgb()").split(",")))
    assert brightness[0] > 600 > 100 > brightness[1]


def test_text_of_plots_stays_inside_them(browser: Browser, files: dict[str, Path]) -> None:
    script = """[...document.querySelectorAll('svg text')].filter(text => {
        const box = text.getBBox(), view = text.ownerSVGElement.viewBox.baseVal
        return box.x < -1 || box.y < -1 || box.x + box.width > view.width + 1 || box.y + box.height > view.height + 1
    }).map(text => text.textContent)"""
    for name in NAMES:
        with opened(browser, files[name]) as (page, _):
            assert page.evaluate(script) == []


def test_names_of_strangers_make_no_elements(browser: Browser, files: dict[str, Path]) -> None:
    with opened(browser, files["hostile"]) as (page, _):
        assert page.locator("script, img, a, iframe").count() == 0
        assert page.title() == "Sharpness report"


def test_folded_tables_are_printed(browser: Browser, files: dict[str, Path]) -> None:
    with opened(browser, files["perceptron"]) as (page, _):
        table = page.get_by_role("table", name="Parameters by tensor")
        assert not table.is_visible()
        page.emulate_media(media="print")
        assert (
            page.evaluate("getComputedStyle(document.querySelector('details'), '::details-content').contentVisibility")
            == "visible"
        )


@pytest.mark.slow
def test_paper_is_white_in_the_dark_theme_too(browser: Browser, files: dict[str, Path]) -> None:
    with opened(browser, files["perceptron"], theme="dark") as (page, _):
        page.emulate_media(media="print", color_scheme="dark")
        assert page.evaluate("getComputedStyle(document.body).color") == "rgb(26, 31, 38)"
