"""A report as GitHub-flavoured Markdown, for the summary of a CI step. GitHub refuses more than 1 MiB of it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from service.policies.schemas import Verdict
from service.rendering import wording
from service.rendering.numbers import number, percent
from service.rendering.text import MAX_NAME, MAX_TEXT, clean, cut, name
from wsb_engine.report import Report

MAX_ROWS = 50
"""Most rows of a table: even with texts of full length, the whole stays below GitHub's limit."""
MAX_MESSAGE = 500
"""Most characters of a message in a table."""

_ACTIVE = re.compile(r"[\\`*_\[\]<>#|~$&@]|:(?=//|\w)|(?<=www)\.|^[-+=]")
"""First characters of markup, HTML, mentions, links, emoji and lists."""
_NUMBERED = re.compile(r"^(\d+)(?=[.)](\s|$))")

Row = tuple[str, ...]


def render_markdown(report: Report, verdict: Verdict | None = None) -> str:
    """Render doubts and the verdict first, then the numbers, then warnings; details are folded."""
    parts = [*_doubts(report), *_verdict(verdict), *_numbers(report)]
    parts += [*_wary(report), *_details(report), *_origin(report)]
    return "\n\n".join(parts) + "\n"


def _doubts(report: Report) -> list[str]:
    shown, rest = cut(wording.doubts(report), MAX_ROWS)
    items = [f"- {wording.MARKS['fail']} {plain(text)}" for text in shown]
    if rest:
        items.append(f"- … and {rest} more")
    return [f"## {wording.MARKS['fail']} {wording.UNRELIABLE}", "\n".join(items)] if items else []


def _verdict(verdict: Verdict | None) -> list[str]:
    if verdict is None:
        return []
    code = f" ({plain(verdict.code)})" if verdict.code else ""
    advice = [plain(verdict.advice)] if verdict.advice else []
    parts = [f"## {wording.MARKS[verdict.outcome]} Sharpness: {wording.OUTCOMES[verdict.outcome].lower()}"]
    parts += [plain(verdict.message) + code, *advice]
    shown, rest = cut(verdict.rules, MAX_ROWS)
    rows: list[Row] = [
        (
            f"{wording.MARKS[rule.outcome]} {wording.RULE_OUTCOMES[rule.outcome]}",
            f"{code_span(rule.metric)} {plain(wording.condition(rule))}",
            wording.found(rule),
            *([wording.baseline(rule)] if verdict.baseline is not None else []),
            plain(rule.message, MAX_MESSAGE) + (f" {plain(rule.advice, MAX_MESSAGE)}" if rule.advice else ""),
        )
        for rule in shown
    ]
    if rows:
        baseline = ("Baseline",) if verdict.baseline is not None else ()
        parts.append(_table(("Outcome", "Rule", "Found", *baseline, "Why"), rows, rest))
    if verdict.baseline is not None and verdict.baseline.differences:
        differences, others = cut(verdict.baseline.differences, MAX_ROWS)
        rows = [
            (code_span(d.name), code_span(d.path), code_span(str(d.candidate)), code_span(str(d.baseline)))
            for d in differences
        ]
        parts.append("Differences from the baseline:")
        parts.append(_table(("What", "Where", "Here", "Baseline"), rows, others))
    return parts


def _numbers(report: Report) -> list[str]:
    rows = [
        (plain(label), value, plain(note)) for label, value, note in (*wording.curvature(report), *wording.fit(report))
    ]
    return [f"### Numbers\n\n{plain(wording.subject(report))}", _table(("Quantity", "Value", "How"), rows)]


def _wary(report: Report) -> list[str]:
    warned, others = cut(wording.cautions(report), MAX_ROWS)
    items = [f"- {wording.MARKS['warn']} {plain(each.message)} ({code_span(each.code)})" for each in warned]
    if others:
        items.append(f"- … and {others} more")
    return ["### What to be wary of", "\n".join(items)] if items else []


def _details(report: Report) -> list[str]:
    parts = []
    if report.layers:
        shown, rest = cut(report.layers, MAX_ROWS)
        rows: list[Row] = [
            (
                code_span(layer.name),
                number(layer.parameters),
                number(layer.trace),
                number(max(layer.frobenius_squared, 0.0) ** 0.5),
                number(layer.wolkowicz_styan_upper),
            )
            for layer in shown
        ]
        parts.append(
            _folded("Layers", _table(("Layer", "Parameters", "Trace", "‖H_ll‖_F", "Bound on λ_max"), rows, rest))
        )
    if report.orthogonality is not None and report.orthogonality.sample_shares:
        samples, rest = cut(report.orthogonality.sample_shares, MAX_ROWS)
        table = _table(
            ("Row of the batch", "Share of ‖H‖_F²"), [(str(each.row), percent(each.share)) for each in samples], rest
        )
        parts.append(_folded("Samples with the largest shares", table))
    if report.checks:
        checks, rest = cut(report.checks, MAX_ROWS)
        rows = [
            (
                code_span(check.name),
                "passed" if check.passed else "**failed**",
                number(check.value, 3),
                number(check.tolerance, 3),
            )
            for check in checks
        ]
        parts.append(_folded("Checks", _table(("Check", "Outcome", "Value", "Tolerance"), rows, rest)))
    return parts


def _origin(report: Report) -> list[str]:
    engine = report.engine
    rows = [
        ("Model", code_span(f"sha256:{report.model.sha256}" if report.model.sha256 else "a live module")),
        ("Batch", code_span(f"sha256:{report.batch.sha256}" if report.batch.sha256 else "arrays")),
        (
            "Engine",
            plain(f"wsb {engine.version}, torch {engine.torch}, {engine.device}, {engine.dtype}, seed {engine.seed}"),
        ),
        ("Command", code_span(wording.command(report), MAX_TEXT)),
    ]
    return [_folded("How to reproduce it", _table(("What", "Value"), rows))]


def plain(text: str, limit: int = MAX_TEXT) -> str:
    """Escape text so that nothing in it is markup, HTML, a mention or a link, inside a table or outside."""
    escaped = _ACTIVE.sub(lambda match: f"\\{match[0]}", clean(text, limit).strip())
    return _NUMBERED.sub(r"\1\\", escaped)


def code_span(text: str, limit: int = MAX_NAME) -> str:
    """Format a name as code, inside a table or outside; pipes become bars that look alike."""
    # Outside a table a backslash before a pipe would show; inside, a bare pipe would end a cell.
    shown = name(text, limit).replace("|", "∣")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    room = " " if len(fence) > 1 else ""
    return f"{fence}{room}{shown}{room}{fence}"


def _table(heads: Row, rows: Iterable[Row], rest: int = 0) -> str:
    lines = [heads, ("---",) * len(heads), *rows]
    written = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"{written}\n\n… and {rest} more" if rest else written


def _folded(title: str, content: str) -> str:
    return f"<details>\n<summary>{title}</summary>\n\n{content}\n\n</details>"
