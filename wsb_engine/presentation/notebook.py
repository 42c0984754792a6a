"""A report as a fragment of HTML for notebooks: no style sheet, no script, colours of the notebook's theme."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from wsb_engine.presentation import wording
from wsb_engine.presentation.headline import headline
from wsb_engine.presentation.population import CAVEAT, advice
from wsb_engine.presentation.text import clean, cut
from wsb_engine.report import Report

MAX_ITEMS = 10
"""Most doubts, warnings and sources that are listed."""

# Text has the colour of the notebook, and lines are of a grey that shows on light and dark.
_CELL = "padding: 2px 12px 2px 0; text-align: left; vertical-align: top; background: transparent;"
# A page without a document type would give the table colours and sizes other than those of the text around it.
_TABLE = (
    "border-collapse: collapse; border-top: 1px solid rgba(128, 128, 128, 0.5); color: inherit; font-size: inherit;"
)
_QUIET = "opacity: 0.75;"


def summary(report: Report) -> str:
    """Return the headline, its sentence, the numbers in a table, warnings and sources. All text is escaped."""
    found = headline(report)
    quantities = [*wording.curvature(report), *wording.fit(report)]
    rows = "".join(f"<tr>{_head(each.label)}{_cell(each.value)}{_cell(each.note, _QUIET)}</tr>" for each in quantities)
    parts = [
        _paragraph(f"<strong>{_text(found.value)}</strong>"),
        _paragraph(_text(found.sentence)),
        *(_paragraph(_text(each)) for each in (advice(report), CAVEAT) if advice(report)),
        _list("Failed checks", wording.doubts(report), is_open=True),
        _paragraph(_text(wording.subject(report)), _QUIET),
        f'<table style="{_TABLE}"><tbody>{rows}</tbody></table>',
        _list("What to be wary of", (f"{each.message} [{each.code}]" for each in wording.cautions(report))),
        _list("Sources", map(wording.cited, report.citations or [])),
    ]
    return f'<div style="color: inherit; max-width: 60em;">{"".join(parts)}</div>'


def _list(title: str, items: Iterable[str], *, is_open: bool = False) -> str:
    """Fold a list, unless it is open, under its title and number of items; empty without items."""
    shown, rest = cut(list(items), MAX_ITEMS)
    if not shown:
        return ""
    texts = [*shown, *([f"… and {rest} more"] if rest else [])]
    listed = "".join(f"<li>{_text(text)}</li>" for text in texts)
    summary = f"<summary>{_text(title)} ({len(shown) + rest})</summary>"
    return f'<details{" open" if is_open else ""}>{summary}<ul style="margin: 4px 0;">{listed}</ul></details>'


def _paragraph(content: str, style: str = "") -> str:
    return f'<p style="margin: 4px 0; {style}">{content}</p>'


def _head(text: str) -> str:
    return f'<th scope="row" style="{_CELL} font-weight: normal;">{_text(text)}</th>'


def _cell(text: str, style: str = "") -> str:
    return f'<td style="{_CELL} {style}">{_text(text)}</td>'


def _text(text: str) -> str:
    return escape(clean(text))
