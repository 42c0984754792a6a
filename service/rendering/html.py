"""A report as one HTML file that loads nothing: no script, no font, no image but inline SVG."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from service.policies.schemas import Verdict
from service.rendering import checks, wording
from service.rendering.report_plots import report_plots, shown_layers
from wsb_engine.presentation import bounds, local, numbers, population, text
from wsb_engine.presentation.headline import Yardstick, headline
from wsb_engine.report import Report

MAX_ROWS = 50
"""Rows shown of a table: rules, eigenvalues, layers, samples, checks, warnings, tensors."""


def render_html(
    report: Report,
    verdict: Verdict | None = None,
    yardstick: Yardstick | None = None,
    *,
    title: str | None = None,
    reproduce: str | None = None,
) -> str:
    """Render the whole page.

    Args:
        report: The report.
        verdict: What a policy says about it.
        yardstick: What the first sentence compares λ_max with.
        title: Heading of the page.
        reproduce: Command to show in place of ``wording.command``.
    """
    style = stylesheet()
    return (
        _environment()
        .get_template("report.html")
        .render(
            report=report,
            verdict=verdict,
            headline=headline(report, yardstick),
            title=title or "Sharpness report",
            reproduce=reproduce or wording.command(report),
            style=Markup(style),  # noqa: S704 - static
            style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
            plots=report_plots(report, verdict),
            layers=shown_layers(report),
        )
    )


def render_sections(report: Report, verdict: Verdict | None = None, yardstick: Yardstick | None = None) -> Markup:
    """Render the sections between header and footer, for a page that links ``stylesheet``."""
    template = _environment().get_template("sections.html")
    plots = report_plots(report, verdict)
    rendered = template.render(
        report=report,
        verdict=verdict,
        headline=headline(report, yardstick),
        reproduce=wording.command(report),
        plots=plots,
        layers=shown_layers(report),
    )
    return Markup(rendered)  # noqa: S704 - escaped by the template


def render_verdict(verdict: Verdict) -> Markup:
    """Render the section about the verdict alone."""
    return Markup(_environment().get_template("sections.html").render(report=None, verdict=verdict))  # noqa: S704


def stylesheet() -> str:
    """Return the style sheet of the page, plots included."""
    return _environment().get_template("report.css").render()


@cache
def _environment() -> Environment:
    environment = templates("service.rendering", _shown)
    environment.globals.update(bounds=bounds, checks=checks, local=local, population=population, wording=wording)
    environment.globals.update(MAX_ROWS=MAX_ROWS)
    environment.filters.update(
        cut=text.cut,
        ends=numbers.ends,
        interval=numbers.interval,
        middle=numbers.middle,
        name=text.name,
        number=numbers.number,
        percent=numbers.percent,
        root=lambda square: None if square is None else max(square, 0.0) ** 0.5,
        symbols=symbols,
    )
    return environment


def templates(package: str, shown: Callable[[object], object]) -> Environment:
    """Return the templates of a package, which escape and pass through ``shown`` whatever they print."""
    return Environment(
        loader=PackageLoader(package),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=shown,
    )


def symbols(label: str) -> Markup:
    """Set the indices of our labels as such."""
    written = str(escape(label))
    for symbol, index in (("λ", "max"), ("λ", "min"), ("‖", "F")):
        written = written.replace(f"{symbol}_{index}", f"{symbol}<sub>{index}</sub>")
    return Markup(written)  # noqa: S704 - escaped above


def _shown(value: object) -> object:
    """Format what ``{{ … }}`` prints: untrusted text made visible, numbers to six digits."""
    if isinstance(value, Markup):
        return value
    if value is None:
        return "—"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return numbers.number(value)
    return text.clean(value) if isinstance(value, str) else value
