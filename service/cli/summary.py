"""Summarises a report in a few lines."""

from __future__ import annotations

from service.rendering import facts
from service.rendering.numbers import interval
from wsb_engine.report import Report


def summarize(report: Report) -> str:
    """Summarise what was analysed, the bounds, what confirms them, and warnings."""
    rows = doubts(report)
    rows += [
        ("model", _model(report)),
        ("batch", f"{report.batch.samples} samples, {report.batch.classes} classes"),
        (
            "loss",
            f"{report.loss.kind.replace('_', ' ')} {report.loss.value:.6g}, accuracy {report.loss.accuracy:.4g}, "
            f"gradient norm {report.loss.gradient_norm:.6g}",
        ),
    ]
    if report.moments is not None:
        moments = report.moments
        exact = "exact" if moments.exact else "estimated"
        norm = moments.frobenius_squared**0.5
        rows.append(
            ("moments", f"tr H = {moments.trace:.6g}, ‖H‖_F = {norm:.6g} ({moments.method.replace('_', ' ')}, {exact})")
        )
    rows += _extremes(report)
    rows += [("warning", f"{warning.message} [{warning.code}]") for warning in facts.cautions(report)]
    if "total" in report.timings:
        rows.append(("time", f"{report.timings['total']:.3g} s on {report.engine.device} in {report.engine.dtype}"))
    return "\n".join(f"{name:<10}{text}" for name, text in rows)


def _model(report: Report) -> str:
    model = report.model
    smooth = "" if model.smooth else f"; not smooth: {', '.join(model.nonsmooth_operators)}"
    activations = ", ".join(model.activations) or "no activation"
    kind = "MLP" if model.architecture == "mlp" else "general model"
    return f"{kind} with {activations}, {model.parameters.count} parameters, from {model.format}{smooth}"


def _extremes(report: Report) -> list[tuple[str, str]]:
    rows = []
    eigenvalues = report.spectrum.eigenvalues if report.spectrum is not None else []
    if report.bounds is not None:
        upper = report.bounds.wolkowicz_styan.lambda_max.upper
        rows.append(("λ_max", f"in {interval(report.bounds.wolkowicz_styan.lambda_max)} (Wolkowicz-Styan)"))
        if eigenvalues:
            ratio = f"; the bound is {upper / eigenvalues[0]:.3g} times that" if eigenvalues[0] > 0 else ""
            rows.append(("", f"{eigenvalues[0]:.6g} by the {_spectrum(report)} spectrum{ratio}"))
        rows.append(("λ_min", f"in {interval(report.bounds.wolkowicz_styan.lambda_min)} (Wolkowicz-Styan)"))
    elif eigenvalues:
        rows.append(("λ_max", f"{eigenvalues[0]:.6g} by the {_spectrum(report)} spectrum"))
    if report.enclosure is not None:
        for name, found in (("λ_max", report.enclosure.lambda_max), ("λ_min", report.enclosure.lambda_min)):
            rows.append((name, f"in {interval(found)} ({facts.certainty(report, found)})"))
        if facts.stopping(report):
            rows.append(("", f"stopped: {facts.stopping(report)}"))
    elif facts.withheld(report):
        rows.append(("λ_max", f"no enclosure: {facts.withheld(report)}"))
    return rows


def doubts(report: Report) -> list[tuple[str, str]]:
    """Return rows that say why the numbers are unreliable; empty if every check passed."""
    told = facts.doubts(report)
    return [("IN DOUBT", facts.UNRELIABLE), *(("", text) for text in told)] if told else []


def _spectrum(report: Report) -> str:
    return report.spectrum.method if report.spectrum is not None else ""
