"""Chromium without a window: ``chromium`` on the path, or the program that WSB_TEST_CHROMIUM names."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from playwright.sync_api import Browser, Page, sync_playwright
from support.visits import Visit

ROOT = Path(__file__).parents[2]
AXE = ROOT / "build" / "axe" / "node_modules" / "axe-core" / "axe.min.js"
SCREENSHOTS = ROOT / "build" / "screenshots"
_IN_CI = os.environ.get("CI") == "true"


@pytest.fixture(scope="module")  # its event loop runs while it is open, and tests elsewhere run loops of their own
def browser() -> Iterator[Browser]:
    program = os.environ.get("WSB_TEST_CHROMIUM") or shutil.which("chromium")
    if program is None:
        _lacking("no chromium on the path, and WSB_TEST_CHROMIUM names none")
    with sync_playwright() as playwright:
        # its own sandbox does not work as root, and pages here are ours
        opened = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def axe() -> str:
    """axe-core's program."""
    if not AXE.exists():
        _lacking("no axe-core in build/axe: run scripts/accessibility")
    return AXE.read_text(encoding="utf-8")


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Visit]]:
    """Opens a browser of one's own on a service; what its pages complain of, or ask of others, fails the test.

    ``may_ask`` is what addresses that it asks for begin with, where that is not the service's.
    """
    visits: list[Visit] = []

    def open_(url: str, *, may_ask: str | None = None, **options: Any) -> Visit:
        context = browser.new_context(base_url=url, viewport={"width": 1280, "height": 800}, **options)
        context.set_default_timeout(20_000)
        visits.append(Visit(context, url if may_ask is None else may_ask))
        return visits[-1]

    yield open_
    for opened in visits:
        noticed = opened.noticed
        opened.context.close()
        assert noticed == []


@pytest.fixture(scope="session")
def photograph() -> Callable[[Page, str], None]:
    """Keeps a picture of a page for people to look at, which takes a second of a processor each; nobody does in CI."""
    if _IN_CI:
        return lambda _page, _name: None
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    return lambda page, name: page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True) and None


def _lacking(what: str) -> NoReturn:
    if _IN_CI:
        pytest.fail(what)
    pytest.skip(what)
