"""What a report and a verdict say, in words: shared by HTML and Markdown."""

from __future__ import annotations

import shlex
from typing import NamedTuple

from service.policies.verdict import Outcome, RuleResult
from service.rendering.numbers import Ends, interval, middle, number, percent
from wsb_engine.report import CertifiedInterval, Report, ReportWarning

OUTCOMES: dict[Outcome, str] = {
    "pass": "Passed",
    "warn": "Passed with warnings",
    "fail": "Failed",
    "error": "Not decided",
}
RULE_OUTCOMES: dict[Outcome, str] = {**OUTCOMES, "warn": "Warning"}
MARKS: dict[Outcome, str] = {"pass": "✓", "warn": "!", "fail": "✗", "error": "?"}
"""A sign beside the colour."""
_SIGNS = {"<=": "≤", ">=": "≥", "==": "="}


class Fact(NamedTuple):
    label: str
    value: str
    note: str = ""


def subject(report: Report) -> str:
    """What was analysed, in one line."""
    model, batch = report.model, report.batch
    kind = "MLP" if model.architecture == "mlp" else "General model"
    activations = f" with {', '.join(model.activations[:4])}" if model.activations else ""
    more = ", …" if len(model.activations) > 4 else ""
    return (
        f"{kind}{activations}{more}, {number(model.parameters.count)} parameters, "
        f"on {number(batch.samples)} samples of {number(batch.classes)} classes"
    )


def largest_eigenvalue(report: Report) -> tuple[str, Ends] | None:
    """The closest interval about λ_max that the report has, and what it is."""
    if report.enclosure is not None:
        rounding = report.enclosure.rounding
        measured = rounding is not None and rounding.how == "measured"
        return "enclosure up to measured rounding" if measured else "enclosure", report.enclosure.lambda_max
    if report.bounds is not None:
        return "Wolkowicz-Styan bounds", report.bounds.wolkowicz_styan.lambda_max
    return None


UNRELIABLE = "The numbers of this report can't be relied on."
"""Heads a report in which a check has failed."""


def doubts(report: Report) -> list[str]:
    """What failed checks say; empty if all of them passed."""
    told = [warning.message for warning in report.warnings if warning.code == "check_failed"]
    if told:
        return told
    # Reports before schema 1.2 have no such warnings.
    return [
        f"check {check.name}: {number(check.value)} where at most {number(check.tolerance)} was expected"
        for check in report.checks
        if not check.passed
    ]


def cautions(report: Report) -> list[ReportWarning]:
    """Warnings other than those of failed checks."""
    return [warning for warning in report.warnings if warning.code != "check_failed"]


def withheld(report: Report) -> str:
    """Why there is no enclosure; empty if there is one, or none was asked for."""
    return next((warning.message for warning in report.warnings if warning.code == "enclosure_withheld"), "")


def certainty(report: Report, found: CertifiedInterval) -> str:
    """How sure an interval of the enclosure is: whether chance enters it, and how rounding does."""
    rounding = None if report.enclosure is None else report.enclosure.rounding
    chance = found.failure_probability
    if rounding is None:  # a report before schema 1.2
        holds = "it always holds" if chance is None else f"it holds but for a probability of {number(chance)}"
        return f"{found.kind}: {holds}"
    how = ", rounding included" if rounding.how == "proven" else " up to measured rounding"
    but = "" if chance is None else f", but for a probability of {number(chance)}"
    return f"{found.kind}: certified{how}{but}"


_STOPPED = {
    "precision": "what is left is rounding",
    "products": "the number of products allowed was reached",
    "time": "the time limit passed",
    "memory": "the memory limit holds no more products",
}


def stopping(report: Report) -> str:
    """Why an enclosure is no narrower; empty if it is as narrow as asked."""
    reason = None if report.enclosure is None else report.enclosure.stopped_by
    told = _STOPPED.get(reason or "", "")
    limit = ": the limit of float32, float64 goes further" if report.engine.dtype == "float32" else ""
    return told + (limit if reason == "precision" else "")


def looseness(report: Report) -> str:
    """How far the Wolkowicz-Styan bound is from λ_max; empty where either is missing or λ_max is not positive."""
    if report.bounds is None:
        return ""
    upper = report.bounds.wolkowicz_styan.lambda_max.upper
    if report.enclosure is not None:
        value = middle(report.enclosure.lambda_max)
    elif report.spectrum is not None and report.spectrum.eigenvalues:
        value = report.spectrum.eigenvalues[0]
    else:
        return ""
    # λ_max may be so small that the ratio is no number
    return f"{number(upper / value, 3)} times λ_max" if value > abs(upper) * 1e-300 else ""


def curvature(report: Report) -> list[Fact]:
    """Both ends of the spectrum and the moments."""
    facts = []
    if report.enclosure is not None:
        for label, found in (("λ_max", report.enclosure.lambda_max), ("λ_min", report.enclosure.lambda_min)):
            gap = f", relative gap {number(found.relative_gap, 2)}" if found.relative_gap is not None else ""
            facts.append(Fact(label, interval(found), f"{certainty(report, found)}{gap}"))
        if stopping(report):
            products = number(report.enclosure.hessian_vector_products)
            facts.append(Fact("Stopped", f"after {products} products", stopping(report)))
    if report.bounds is not None:
        bounds = report.bounds.wolkowicz_styan
        facts.append(
            Fact("Wolkowicz-Styan, λ_max", interval(bounds.lambda_max), _joined("upper end", looseness(report)))
        )
        facts.append(Fact("Wolkowicz-Styan, λ_min", interval(bounds.lambda_min)))
    if report.spectrum is not None and report.spectrum.eigenvalues:
        note = f"{report.spectrum.method} spectrum"
        facts.append(Fact("Largest eigenvalue", number(report.spectrum.eigenvalues[0], 10), note))
    return facts + _moments(report)


def fit(report: Report) -> list[Fact]:
    """How well the classifier does on the batch."""
    return [
        Fact("Loss", number(report.loss.value), report.loss.kind.replace("_", " ")),
        Fact("Gradient norm", number(report.loss.gradient_norm)),
        Fact("Accuracy", percent(report.loss.accuracy)),
    ]


def _joined(label: str, text: str) -> str:
    return f"{label} {text}" if text else ""


def _moments(report: Report) -> list[Fact]:
    moments = report.moments
    if moments is None:
        return []
    exact = "exact" if moments.exact else "estimated"
    how = f"{moments.method.replace('_', ' ')}, {exact}"
    if moments.failure_probability is not None:
        how += f", but for a probability of {number(moments.failure_probability)}"
    facts = [
        Fact("Trace, tr H", number(moments.trace), how),
        Fact("Frobenius norm, ‖H‖_F", number(max(moments.frobenius_squared, 0.0) ** 0.5), how),
    ]
    if moments.gauss_newton_trace is not None:
        facts.append(Fact("Gauss-Newton trace, tr G", number(moments.gauss_newton_trace), "the loss's own curvature"))
    return facts


def condition(rule: RuleResult) -> str:
    """What a rule asks for."""
    parts = []
    if rule.limit is not None:
        parts.append(f"{_SIGNS.get(rule.op or '<=', rule.op)} {number(rule.limit)}")
    if rule.max_relative_increase is not None:
        parts.append(f"at most {percent(rule.max_relative_increase)} above the baseline")
    if rule.max_increase is not None:
        parts.append(f"at most {number(rule.max_increase)} above the baseline")
    return " and ".join(parts)


def found(rule: RuleResult) -> str:
    """What the report says of a rule's metric."""
    return _interval_or_number(rule.interval, rule.value)


def baseline(rule: RuleResult) -> str:
    """What the baseline says of a rule's metric."""
    return _interval_or_number(rule.baseline_interval, rule.baseline)


def _interval_or_number(ends: Ends | None, value: float | None) -> str:
    if ends is not None:
        return interval(ends)
    return "—" if value is None else number(value, 10)


def command(report: Report) -> str:
    """A line that makes this report again, as far as the report knows what it was made with."""
    engine, spectrum = report.engine, report.spectrum
    words = ["wsb", "analyze", "MODEL", "BATCH"]
    words += ["--device", engine.device, "--dtype", engine.dtype, "--seed", str(engine.seed)]
    if report.moments is not None:
        words += ["--moments", report.moments.method]
    if spectrum is not None:
        dense = spectrum.method == "dense"
        words += ["--spectrum", "dense"] if dense else ["--spectrum", "top", "--top", str(len(spectrum.eigenvalues))]
        words += ["--density"] if spectrum.density is not None else []
    return shlex.join(words)
