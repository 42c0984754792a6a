"""The words in which every rendering says what a report holds."""

from __future__ import annotations

import json
import shlex
from typing import NamedTuple

from wsb_engine.optimizer import Optimizer
from wsb_engine.presentation import bounds, local, population, scaling
from wsb_engine.presentation.numbers import interval, middle, number, percent
from wsb_engine.presentation.text import cut, name
from wsb_engine.report import CertifiedInterval, Citation, Enclosure, NamedBound, Report, ReportWarning

MAX_PATHS = 10
"""Most paths of a report that are named as resting on a source."""
MAX_WRITTEN = 20
"""Most numbers of a list that a command spells out."""


class Quantity(NamedTuple):
    """A number of a report, as a row of a table."""

    label: str
    value: str
    note: str = ""


def subject(report: Report) -> str:
    """Say what was analysed, in one line."""
    model = report.model
    kind = "MLP" if model.architecture == "mlp" else "General model"
    activations = f" with {', '.join(model.activations[:4])}" if model.activations else ""
    more = ", …" if len(model.activations) > 4 else ""
    return f"{kind}{activations}{more}, {number(model.parameters.count)} parameters, on {' of '.join(samples(report))}"


def samples(report: Report) -> list[str]:
    """Say what the batch holds: samples, labels of each if there are several, and classes if there are any."""
    batch = report.batch
    parts = [f"{number(batch.samples)} samples"]
    if batch.positions is not None:
        parts.append(f"{number(batch.positions)} labels")
    if batch.classes is not None:
        parts.append(f"{number(batch.classes)} {'labels' if report.loss.kind == 'multilabel' else 'classes'}")
    return parts


def loss(report: Report) -> str:
    """Say which loss it is, and how it is set."""
    found, words = report.loss, [report.loss.kind.replace("_", " ")]
    if found.label_smoothing is not None:
        words.append(f"label smoothing {number(found.label_smoothing)}")
    words += ["class weights"] if found.class_weights is not None else []
    words += [f"γ {number(found.focal_gamma)}"] if found.focal_gamma is not None else []
    if found.pos_weight is not None:
        few = len(found.pos_weight) == 1
        words.append(f"positive weight {number(found.pos_weight[0])}" if few else "positive weights")
    if found.ignored is not None:
        words.append(f"{number(found.ignored)} labels ignored")
    return ", ".join(words)


def source(report: Report) -> str:
    """Say where the closest interval about λ_max comes from; empty without one."""
    closest = report.lambda_max
    if closest is None:
        return ""
    if report.enclosure is None:
        return f"{bounds.words(closest.source).title} bounds"
    return "enclosure up to measured rounding" if report.enclosure.is_measured else "enclosure"


UNRELIABLE = "The numbers of this report can't be relied on."
"""Heading of a report in which a check has failed."""


def doubts(report: Report) -> list[str]:
    """Say what failed checks mean; empty if all of them passed."""
    told = report.messages("check_failed")
    if told:
        return told
    # Reports before schema 1.2 have no such warnings.
    return [
        f"check {check.name}: {number(check.value)} where at most {number(check.tolerance)} was expected"
        for check in report.failed_checks
    ]


def cautions(report: Report) -> list[ReportWarning]:
    """Return the warnings other than those of failed checks."""
    return [warning for warning in report.warnings if warning.code != "check_failed"]


def withheld(report: Report) -> str:
    """Say why an enclosure is withheld; empty if it is not."""
    return next(iter(report.messages("enclosure_withheld")), "")


def certainty(report: Report, found: CertifiedInterval) -> str:
    """Say how certain an interval of the enclosure is: its failure probability, and how it accounts for rounding."""
    rounding = None if report.enclosure is None else report.enclosure.rounding
    chance = found.failure_probability
    if rounding is None:  # a report before schema 1.2
        holds = "it always holds" if chance is None else f"it holds but for a probability of {number(chance)}"
        return f"{found.kind}: {holds}"
    how = ", rounding included" if rounding.how == "proven" else " up to measured rounding"
    but = "" if chance is None else f", but for a probability of {number(chance)}"
    return f"{found.kind}: certified{how}{but}"


_STOPPED = {
    "decided": "every rule of the policy on it was decided",
    "precision": "what is left is rounding",
    "products": "the number of products allowed was reached",
    "time": "the time limit passed",
    "memory": "the memory limit holds no more products",
}


def stopping(report: Report) -> str:
    """Say why an enclosure is no narrower; empty if it is as narrow as requested."""
    reason = None if report.enclosure is None else report.enclosure.stopped_by
    told = _STOPPED.get(reason or "", "")
    limit = ": the limit of float32, float64 goes further" if report.engine.dtype == "float32" else ""
    return told + (limit if reason == "precision" else "")


def _recurrence(enclosure: Enclosure) -> list[Quantity]:
    """Say which vectors the enclosure rests on, and what a model of rounding adds."""
    rows = []
    if enclosure.basis is not None:
        floor = f"rounding limits the gap to {number(enclosure.floor, 2)}" if enclosure.floor else ""
        kept = "three, without a basis" if enclosure.basis == "three_vectors" else "all, as a basis"
        rows.append(Quantity("Vectors kept", kept, floor))
    if enclosure.modelled is not None:
        upper = number(enclosure.modelled.upper, 10)
        rows.append(Quantity("λ_max, modelled", f"at most {upper}", "if rounding is isotropic: a model, not certified"))
    return rows


def looseness(report: Report, bound: NamedBound) -> str:
    """Say how far a bound is from λ_max; empty if λ_max is unknown or not positive."""
    upper, value = bound.lambda_max.upper, report.largest_eigenvalue
    if report.enclosure is not None:
        value = middle(report.enclosure.lambda_max)
    # λ_max may be so small that the ratio overflows.
    return f"{number(upper / value, 3)} times λ_max" if value is not None and value > abs(upper) * 1e-300 else ""


def curvature(report: Report) -> list[Quantity]:
    """List both ends of the spectrum, the moments, and what else was asked of the curvature."""
    rows = []
    if report.enclosure is not None:
        for label, found in (("λ_max", report.enclosure.lambda_max), ("λ_min", report.enclosure.lambda_min)):
            gap = f", relative gap {number(found.relative_gap, 2)}" if found.relative_gap is not None else ""
            rows.append(Quantity(label, interval(found), f"{certainty(report, found)}{gap}"))
        rows += _recurrence(report.enclosure)
        if stopping(report):
            products = number(report.enclosure.hessian_vector_products)
            rows.append(Quantity("Stopped", f"after {products} products", stopping(report)))
    for bound in bounds.shown(report):
        title, loose = bounds.words(bound.name).title, looseness(report, bound)
        chance = bound.failure_probability
        notes = [f"upper end {loose}"] if loose else []
        notes += [] if chance is None else [f"{bound.kind}, but for a probability of {number(chance)}"]
        rows.append(Quantity(f"{title}, λ_max", interval(bound.lambda_max), ", ".join(notes)))
        rows.append(Quantity(f"{title}, λ_min", interval(bound.lambda_min), bounds.assumptions(bound)))
    if report.spectrum is not None and report.largest_eigenvalue is not None:
        note = f"{report.spectrum.method} spectrum"
        rows.append(Quantity("Largest eigenvalue", number(report.largest_eigenvalue, 10), note))
    rows += [Quantity(*each) for each in population.quantities(report)]
    rows += _moments(report)
    return rows + [Quantity(*row) for row in (*scaling.rows(report), *local.quantities(report))]


def fit(report: Report) -> list[Quantity]:
    """List how well the classifier does on the batch."""
    rows = [
        Quantity("Loss", number(report.loss.value), loss(report)),
        Quantity("Gradient norm", number(report.loss.gradient_norm)),
    ]
    if report.loss.accuracy is not None:
        rows.append(Quantity("Accuracy", percent(report.loss.accuracy)))
    return rows


def _moments(report: Report) -> list[Quantity]:
    moments = report.moments
    if moments is None:
        return []
    exact = "exact" if moments.exact else "estimated"
    how = f"{moments.method.replace('_', ' ')}, {exact}"
    if moments.failure_probability is not None:
        how += f", but for a probability of {number(moments.failure_probability)}"
    rows = [
        Quantity("Trace, tr H", number(moments.trace), how),
        Quantity("Frobenius norm, ‖H‖_F", number(max(moments.frobenius_squared, 0.0) ** 0.5), how),
    ]
    if moments.gauss_newton_trace is not None:
        rows.append(
            Quantity("Gauss-Newton trace, tr G", number(moments.gauss_newton_trace), "the curvature of the loss")
        )
    return rows


def command(report: Report) -> str:
    """Return a command that reproduces this report, as far as the report records its options."""
    engine, spectrum = report.engine, report.spectrum
    words = ["wsb", "analyze", "MODEL", "BATCH"]
    words += ["--device", engine.device, "--dtype", engine.dtype, "--seed", str(engine.seed)]
    if report.moments is not None:
        words += ["--moments", report.moments.method]
    if spectrum is not None:
        dense = spectrum.method == "dense"
        words += ["--spectrum", "dense"] if dense else ["--spectrum", "top", "--top", str(len(spectrum.eigenvalues))]
        words += ["--density"] if spectrum.density is not None else []
    if report.population is not None:
        words += ["--population", repr(report.population.confidence)]
    return shlex.join([*words, *_local_flags(report), *_loss_flags(report), *_scaling_flags(report)])


def _scaling_flags(report: Report) -> list[str]:
    words = [] if report.scaled is None else ["--scaling", report.scaled.scaling]
    steps = report.optimizer
    if steps is not None:
        defaults = {name: field.default for name, field in Optimizer.model_fields.items()} | {
            "betas": list(Optimizer.model_fields["betas"].default)
        }
        given = {"kind": steps.kind, "learning_rate": steps.learning_rate, **steps.settings.model_dump(mode="json")}
        words += ["--optimizer", json.dumps({name: value for name, value in given.items() if value != defaults[name]})]
        words += ["--optimizer-state", "STATE"] if steps.kind != "sgd" else []
    return words


def _local_flags(report: Report) -> list[str]:
    """Return the flags of what was asked about parts of the model and the batch."""
    certified = any(layer.lambda_max is not None for layer in report.layers or [])
    words = ["--layers", "certified"] if certified else []
    for group in (report.groups or [])[:MAX_WRITTEN]:
        words += ["--groups", group.name]
    words += ["--classes", "certified"] if report.classes is not None else []
    words += ["--gauss-newton"] if report.gauss_newton is not None else []
    if report.alignment is not None:
        is_told = report.spectrum is not None and report.spectrum.method == "lanczos"
        words += ["--alignment"] + ([] if is_told else ["--top", str(len(report.alignment.eigenvectors))])
    return words


def _loss_flags(report: Report) -> list[str]:
    """Return the flags of the loss, as far as it is not what the command takes by itself."""
    found, words = report.loss, []
    if found.kind not in ("cross_entropy", "binary_cross_entropy"):
        words += ["--loss", found.kind]
    if found.label_smoothing is not None:
        words += ["--label-smoothing", repr(found.label_smoothing)]
    if found.focal_gamma is not None:
        words += ["--focal-gamma", repr(found.focal_gamma)]
    for flag, numbers in (("--class-weights", found.class_weights), ("--pos-weight", found.pos_weight)):
        if numbers is not None:
            words += [flag, ",".join(map(repr, numbers)) if len(numbers) <= MAX_WRITTEN else "NUMBERS"]
    return words if found.ignore_index is None else [*words, "--ignore-index", str(found.ignore_index)]


def cited(citation: Citation) -> str:
    """Write a source in one line, with its address and what rests on it."""
    return f"{citation.reference} {citation.url} ({supported(citation)})"


def supported(citation: Citation) -> str:
    """List what rests on a source."""
    shown, rest = cut(citation.supports, MAX_PATHS)
    return ", ".join(map(name, shown)) + (f" and {rest} more" if rest else "")
