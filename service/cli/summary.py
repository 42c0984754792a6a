"""Summarises a report in a few lines."""

from __future__ import annotations

from wsb_engine.presentation import bounds, local, population, scaling, wording
from wsb_engine.presentation.headline import Yardstick, headline
from wsb_engine.presentation.numbers import interval
from wsb_engine.presentation.text import clean, name
from wsb_engine.report import Report

MAX_SOURCES = 50
"""Most sources that are listed."""
MAX_PARTS = 50
"""Most layers, groups and classes that are listed."""


def summarize(report: Report, yardstick: Yardstick | None = None, *, verbose: bool = False) -> str:
    """Summarise a report: doubts, the headline, what was analysed, the bounds, what confirms them, and warnings.

    Args:
        report: The report.
        yardstick: What the first sentence compares λ_max with.
        verbose: True to add the sources that the numbers rest on.
    """
    lines = [f"{name:<10}{text}" for name, text in _doubts(report)]
    lines += [*headline(report, yardstick), "", *(f"{name:<10}{text}" for name, text in _rows(report))]
    if verbose:
        lines += [
            f"{'source':<10}{clean(wording.cited(citation))}" for citation in (report.citations or [])[:MAX_SOURCES]
        ]
    return "\n".join(lines)


def _rows(report: Report) -> list[tuple[str, str]]:
    rows = [
        ("model", _model(report)),
        ("batch", ", ".join(wording.samples(report))),
        ("loss", _loss(report)),
    ]
    if report.moments is not None:
        moments = report.moments
        exact = "exact" if moments.exact else "estimated"
        norm = moments.frobenius_squared**0.5
        rows.append(
            ("moments", f"tr H = {moments.trace:.6g}, ‖H‖_F = {norm:.6g} ({moments.method.replace('_', ' ')}, {exact})")
        )
    rows += _extremes(report)
    if report.population is not None:
        rows += [("data", population.advice(report)), ("", population.CAVEAT)]
    rows += _scaling(report)
    rows += _local(report)
    rows += [("warning", f"{warning.message} [{warning.code}]") for warning in wording.cautions(report)]
    if "total" in report.timings:
        rows.append(("time", f"{report.timings['total']:.3g} s on {report.engine.device} in {report.engine.dtype}"))
    return rows


def _loss(report: Report) -> str:
    kind, *settings = wording.loss(report).split(", ")
    accuracy = [] if report.loss.accuracy is None else [f"accuracy {report.loss.accuracy:.4g}"]
    norm = f"gradient norm {report.loss.gradient_norm:.6g}"
    return ", ".join([f"{kind} {report.loss.value:.6g}", *accuracy, norm, *settings])


def _model(report: Report) -> str:
    model = report.model
    smooth = "" if model.smooth else f"; not smooth: {', '.join(model.nonsmooth_operators)}"
    activations = ", ".join(model.activations) or "no activation"
    kind = "MLP" if model.architecture == "mlp" else "general model"
    return f"{kind} with {activations}, {model.parameters.count} parameters, from {model.format}{smooth}"


def _extremes(report: Report) -> list[tuple[str, str]]:
    rows, largest = [], report.largest_eigenvalue
    computed = ""
    if report.spectrum is not None and largest is not None:
        computed = f"{largest:.6g} by the {report.spectrum.method} spectrum"
    for bound in bounds.shown(report):
        title = bounds.words(bound.name).title
        rows.append(("λ_max", f"in {interval(bound.lambda_max)} ({title})"))
        if largest is not None:
            ratio = f"; the bound is {bound.lambda_max.upper / largest:.3g} times that" if largest > 0 else ""
            rows.append(("", computed + ratio))
        rows.append(("λ_min", f"in {interval(bound.lambda_min)} ({title})"))
    if computed and not rows:
        rows.append(("λ_max", computed))
    if report.enclosure is not None:
        for name, found in (("λ_max", report.enclosure.lambda_max), ("λ_min", report.enclosure.lambda_min)):
            rows.append((name, f"in {interval(found)} ({wording.certainty(report, found)})"))
        if wording.stopping(report):
            rows.append(("", f"stopped: {wording.stopping(report)}"))
    elif wording.withheld(report):
        rows.append(("λ_max", f"no enclosure: {wording.withheld(report)}"))
    return rows


def _scaling(report: Report) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for label, value, note in scaling.rows(report):
        shown = f"{label[:1].lower() if label[1:2].islower() else label[:1]}{label[1:]}"
        rows.append(("" if rows else "scaled", f"{shown}: {value} ({note})"))
    return rows


def _local(report: Report) -> list[tuple[str, str]]:
    """List what was asked about parts of the model and the batch."""
    layers = [layer for layer in report.layers or [] if layer.lambda_max is not None]
    rows = [("layer", f"{name(layer.name)}: λ_max in {local.enclosed(layer.lambda_max)}") for layer in layers]
    rows += [
        ("group", f"{name(each.name)}: λ_max in {local.enclosed(each.lambda_max)}") for each in report.groups or []
    ]
    for each in report.classes or []:
        rows.append(("class", f"{name(each.label or str(each.index))}: λ_max in {local.enclosed(each.lambda_max)}"))
    rows = rows[:MAX_PARTS] + ([("", f"and {len(rows) - MAX_PARTS} more")] if len(rows) > MAX_PARTS else [])
    for label, value, note in local.quantities(report):
        rows.append(("", f"{label}: {value}" + (f" ({note})" if note else "")))
    return rows


def _doubts(report: Report) -> list[tuple[str, str]]:
    told = wording.doubts(report)
    return [("IN DOUBT", wording.UNRELIABLE), *(("", text) for text in told)] if told else []
