"""Every rendering of a report: the API, the pages and the command line offer this list."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.policies import Verdict
    from wsb_engine.presentation.headline import Yardstick
    from wsb_engine.report import Report

DOCUMENT_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""Content-Security-Policy of the HTML report; the report has a stricter one about styles itself."""


@dataclass(frozen=True)
class Rendering:
    """One form of a report with its verdict."""

    name: str
    """Also the flag of the command line."""
    media_type: str
    suffix: str
    help: str
    """Help text of the flag."""
    source: str
    """``module:function`` of (report, verdict or None, yardstick or None) → text; imported on first use."""
    of_verdicts: bool = False
    """True if it says little without a verdict, so that only ``wsb check`` offers it."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Further headers over HTTP."""

    def render(self, report: Report, verdict: Verdict | None, yardstick: Yardstick | None = None) -> str:
        module, function = self.source.split(":")
        text: str = getattr(importlib.import_module(module), function)(report, verdict, yardstick)
        return text


MARKDOWN = Rendering("markdown", "text/markdown", "md", "Write Markdown.", "service.rendering.markdown:render_markdown")
RENDERINGS = (
    MARKDOWN,
    Rendering(
        "html",
        "text/html",
        "html",
        "Write a self-contained page.",
        "service.rendering.html:render_html",
        headers={"Content-Security-Policy": DOCUMENT_POLICY},
    ),
    Rendering(
        "junit",
        "application/junit+xml",
        "xml",
        "Write JUnit XML.",
        "service.rendering.junit:render_junit",
        of_verdicts=True,
    ),
)
