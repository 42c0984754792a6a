"""Whole renderings of fixed reports, without the style sheet, which is no part of what a report says.

WSB_UPDATE_SNAPSHOTS=1 renews them; read the difference before you keep it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from service.rendering import render_html, render_junit, render_markdown


def without_style(page: str) -> str:
    """Replace the style sheet and its digest by placeholders."""
    page, styles = re.subn(r"<style>.*</style>", "<style></style>", page, flags=re.DOTALL)
    page, digests = re.subn(r"'sha256-[A-Za-z0-9+/=]{44}'", "'sha256-…'", page)
    assert (styles, digests) == (1, 1)
    return page


def test_the_html_is_as_it_was(case: Any, matches_snapshot: Callable[[str, str], None]) -> None:
    matches_snapshot(f"{case.name}.html", without_style(render_html(case.report, case.verdict)))


def test_the_markdown_is_as_it_was(case: Any, matches_snapshot: Callable[[str, str], None]) -> None:
    matches_snapshot(f"{case.name}.md", render_markdown(case.report, case.verdict))


def test_the_junit_is_as_it_was(case: Any, matches_snapshot: Callable[[str, str], None]) -> None:
    matches_snapshot(f"{case.name}.xml", render_junit(case.report, case.verdict))


def test_rendering_twice_gives_the_same(case: Any) -> None:
    for render in (render_html, render_junit, render_markdown):
        assert render(case.report, case.verdict) == render(case.report, case.verdict)
