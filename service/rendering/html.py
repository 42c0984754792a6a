"""A report as one HTML file that loads nothing: no script, no font, no image but its own SVG."""

from __future__ import annotations

import base64
import hashlib
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from service.policies.verdict import Verdict
from service.rendering import facts, numbers, text
from service.rendering.figures import figures, shown_layers
from wsb_engine.report import Report

MAX_ROWS = 50
"""Rows of a table that are shown: rules, eigenvalues, layers, samples, checks, warnings, tensors."""


def render_html(
    report: Report, verdict: Verdict | None = None, *, title: str | None = None, reproduce: str | None = None
) -> str:
    """The whole page. ``title`` heads it; ``reproduce`` is the command to show in place of the one made here."""
    style = stylesheet()
    return (
        _environment()
        .get_template("report.html")
        .render(
            report=report,
            verdict=verdict,
            title=title or "Sharpness report",
            reproduce=reproduce or facts.command(report),
            style=Markup(style),  # noqa: S704 - ours, without any value
            style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
            plots=figures(report, verdict),
            layers=shown_layers(report),
        )
    )


def render_sections(report: Report, verdict: Verdict | None = None) -> Markup:
    """What the page has between its header and its footer, for a page that links ``stylesheet``."""
    template = _environment().get_template("sections.html")
    plots = figures(report, verdict)
    rendered = template.render(
        report=report,
        verdict=verdict,
        reproduce=facts.command(report),
        plots=plots,
        layers=shown_layers(report),
    )
    return Markup(rendered)  # noqa: S704 - escaped by the template


def render_verdict(verdict: Verdict) -> Markup:
    """The section about the verdict alone."""
    return Markup(_environment().get_template("sections.html").render(report=None, verdict=verdict))  # noqa: S704


def stylesheet() -> str:
    """The style of the page, plots included."""
    return _environment().get_template("report.css").render()


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("service.rendering"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.globals.update(facts=facts, MAX_ROWS=MAX_ROWS)
    environment.filters.update(
        cut=text.cut,
        ends=numbers.ends,
        interval=numbers.interval,
        middle=numbers.middle,
        name=text.name,
        number=numbers.number,
        percent=numbers.percent,
        root=lambda square: max(square, 0.0) ** 0.5,
        symbols=symbols,
    )
    return environment


def symbols(label: str) -> Markup:
    """Our own labels with their indices set as such."""
    written = str(escape(label))
    for symbol, index in (("λ", "max"), ("λ", "min"), ("‖", "F")):
        written = written.replace(f"{symbol}_{index}", f"{symbol}<sub>{index}</sub>")
    return Markup(written)  # noqa: S704 - escaped above


def _shown(value: object) -> object:
    """What ``{{ … }}`` prints: strangers' text made visible, numbers to six digits."""
    if isinstance(value, Markup):
        return value
    if value is None:
        return "—"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return numbers.number(value)
    return text.clean(value) if isinstance(value, str) else value
