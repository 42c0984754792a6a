"""A report as GitHub-flavoured Markdown, for the summary of a CI step. GitHub refuses more than 1 MiB of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from service.policies.schemas import Difference, RuleResult, Verdict
from service.rendering import checks, wording
from wsb_engine.presentation import local
from wsb_engine.presentation.headline import Yardstick, headline
from wsb_engine.presentation.numbers import number, percent
from wsb_engine.presentation.population import CAVEAT, advice
from wsb_engine.presentation.text import MAX_NAME, MAX_TEXT, Item, clean, cut, name
from wsb_engine.report import Check, Citation, LayerCurvature, Report

MAX_ROWS = 50
"""Most rows of a table: even with texts of full length, the whole stays below GitHub's limit."""
MAX_MESSAGE = 500
"""Most characters of a message in a table."""

_ACTIVE = re.compile(r"[\\`*_\[\]<>#|~$&@]|:(?=//|\w)|(?<=www)\.|^[-+=]")
"""First characters of markup, HTML, mentions, links, emoji and lists."""
_NUMBERED = re.compile(r"^(\d+)(?=[.)](\s|$))")

Row = tuple[str, ...]


def render_markdown(report: Report, verdict: Verdict | None = None, yardstick: Yardstick | None = None) -> str:
    """Render doubts, the headline and the verdict first, then the numbers, then warnings; details are folded."""
    parts = [*_doubts(report), *_headline(report, yardstick), *_verdict(verdict), *_numbers(report)]
    parts += [*_wary(report), *_details(report), *_origin(report)]
    return "\n\n".join(parts) + "\n"


def _doubts(report: Report) -> list[str]:
    mark, doubts = wording.MARKS["fail"], wording.doubts(report)
    return [f"## {mark} {wording.UNRELIABLE}", _list(doubts, lambda text: f"{mark} {plain(text)}")] if doubts else []


def _headline(report: Report, yardstick: Yardstick | None) -> list[str]:
    found = headline(report, yardstick)
    told = [f"{plain(advice(report))} {plain(CAVEAT)}"] if advice(report) else []
    return [f"**{plain(found.value)}**", plain(found.sentence), *told]


def _verdict(verdict: Verdict | None) -> list[str]:
    if verdict is None:
        return []
    code = f" ({plain(verdict.code)})" if verdict.code else ""
    advice = [plain(verdict.advice)] if verdict.advice else []
    parts = [f"## {wording.MARKS[verdict.outcome]} Sharpness: {wording.OUTCOMES[verdict.outcome].lower()}"]
    parts += [plain(verdict.message) + code, *advice]

    def row(rule: RuleResult) -> Row:
        return (
            f"{wording.MARKS[rule.outcome]} {wording.RULE_OUTCOMES[rule.outcome]}",
            f"{code_span(rule.metric)} {plain(wording.condition(rule))}",
            wording.found(rule),
            *([wording.baseline(rule)] if verdict.baseline is not None else []),
            plain(rule.message, MAX_MESSAGE) + (f" {plain(rule.advice, MAX_MESSAGE)}" if rule.advice else ""),
        )

    if verdict.rules:
        baseline = ("Baseline",) if verdict.baseline is not None else ()
        parts.append(_table(("Outcome", "Rule", "Found", *baseline, "Why"), verdict.rules, row))
    if verdict.baseline is not None and verdict.baseline.differences:
        heads = ("What", "Where", "Here", "Baseline")
        parts.append("Differences from the baseline:")
        parts.append(_table(heads, verdict.baseline.differences, _difference))
    return parts


def _difference(found: Difference) -> Row:
    return tuple(code_span(str(each)) for each in (found.name, found.path, found.candidate, found.baseline))


def _numbers(report: Report) -> list[str]:
    quantities = [*wording.curvature(report), *wording.fit(report)]
    table = _table(("Quantity", "Value", "How"), quantities, lambda q: (plain(q.label), q.value, plain(q.note)))
    return [f"### Numbers\n\n{plain(wording.subject(report))}", table]


def _wary(report: Report) -> list[str]:
    mark, cautions = wording.MARKS["warn"], wording.cautions(report)
    written = _list(cautions, lambda each: f"{mark} {plain(each.message)} ({code_span(each.code)})")
    return ["### What to be wary of", written] if cautions else []


def _details(report: Report) -> list[str]:
    parts = []
    if report.layers:
        certified = any(layer.lambda_max is not None for layer in report.layers)
        more = ("λ_max, certified",) if certified else ()
        heads: Row = ("Layer", "Parameters", "Trace", "‖H_ll‖_F", "Bound on λ_max", *more)
        parts.append(_folded("Layers", _table(heads, report.layers, lambda layer: _layer(layer)[: len(heads)])))
    parts += [_folded(table.title, _table(table.heads, table.rows, _named)) for table in local.tables(report)]
    if report.orthogonality is not None and report.orthogonality.sample_shares:
        heads, shares = ("Row of the batch", "Share of ‖H‖_F²"), report.orthogonality.sample_shares
        table = _table(heads, shares, lambda each: (str(each.row), percent(each.share)))
        parts.append(_folded("Samples with the largest shares", table))
    if report.checks:
        heads = ("Check", "Outcome", "Value", "Tolerance")
        parts.append(_folded("Checks", _table(heads, report.checks, _check)))
    if report.citations:
        parts.append(_folded("Sources", _table(("Source", "What rests on it"), report.citations, _citation)))
    return parts


def _named(row: Row) -> Row:
    return (code_span(row[0]), *(plain(cell, MAX_MESSAGE) for cell in row[1:]))


def _layer(layer: LayerCurvature) -> Row:
    norm = None if layer.frobenius_squared is None else max(layer.frobenius_squared, 0.0) ** 0.5
    numbers = (layer.parameters, layer.trace, norm, layer.wolkowicz_styan_upper)
    return (code_span(layer.name), *map(number, numbers), plain(local.enclosed(layer.lambda_max)))


def _check(check: Check) -> Row:
    outcome = "passed" if check.passed else "**failed**"
    return (
        f"{plain(checks.words(check.name))} ({code_span(check.name)})",
        outcome,
        number(check.value, 3),
        number(check.tolerance, 3),
    )


def _citation(citation: Citation) -> Row:
    source = f"{citation.reference} {citation.url}"
    return (plain(source, MAX_MESSAGE), plain(wording.supported(citation), MAX_MESSAGE))


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
    return [_folded("How to reproduce it", _table(("What", "Value"), rows, lambda row: row))]


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


def _table(heads: Row, items: Sequence[Item], row: Callable[[Item], Row]) -> str:
    shown, rest = cut(items, MAX_ROWS)
    lines = [heads, ("---",) * len(heads), *map(row, shown)]
    written = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"{written}\n\n… and {rest} more" if rest else written


def _list(items: Sequence[Item], line: Callable[[Item], str]) -> str:
    shown, rest = cut(items, MAX_ROWS)
    return "\n".join(f"- {text}" for text in [*map(line, shown), *([f"… and {rest} more"] if rest else [])])


def _folded(title: str, content: str) -> str:
    return f"<details>\n<summary>{title}</summary>\n\n{content}\n\n</details>"
