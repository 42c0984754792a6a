"""Counts, checks, citations and settings of a report: whether they agree with its other parts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from wsb_engine.citations import citations
from wsb_engine.report import SCHEMA_VERSION, Check, ParameterTensor, Report
from wsb_engine.verification.findings import Ledger
from wsb_engine.verification.moments import SMALLEST_SQUARE
from wsb_engine.verification.theorems import UNIT

VALUES = 1e-13
"""Rounding of a check's value, relative to what it compares."""
KNOWN_TOLERANCES = {"parity": 1e-3}
"""Tolerances that are constants."""
IN_ROUNDING = {"product_symmetry": 1e4, "hessian_symmetry": 1e5}
"""Tolerances in units of the dtype's spacing of 1."""


class Judged(NamedTuple):
    """A check as it follows from other parts of the report."""

    name: str
    value: float
    tolerance: float


def check_consistency(report: Report, ledger: Ledger) -> None:
    """Check what the report says more than once, or what follows from its other parts."""
    _check_schema(report, ledger)
    _check_counts(report, ledger)
    _check_settings(report, ledger)
    check_checks(report, ledger)
    _check_stable_steps(report, ledger)
    _check_timings(report, ledger)
    if report.citations is not None:
        ours = [each.model_dump() for each in citations(report)]
        theirs = [each.model_dump() for each in report.citations]
        for index, (given, derived) in enumerate(zip(theirs, ours, strict=False)):
            for name in derived:
                path = f"citations.{index}.{name}"
                ledger.equal(path, given[name], derived[name], "sources of the numbers that the report has")
        how = "sources of the numbers that the report has"
        ledger.judge("citations.count", len(theirs) == len(ours), how, len(theirs), len(ours))


def _check_schema(report: Report, ledger: Ledger) -> None:
    known, given = SCHEMA_VERSION.split("."), report.schema_version.split(".")
    numbers = len(given) == 2 and all(part.isdecimal() and part.isascii() for part in given)
    readable = numbers and given[0] == known[0] and int(given[1]) <= int(known[1])
    how = f"a version from {known[0]}.0 to {SCHEMA_VERSION}"
    if not ledger.judge("schema_version", readable, how, report.schema_version):
        return
    minor = int(given[1])
    for name, since, present in (
        ("bounds_list", 3, report.bounds_list is not None),
        ("products", 5, report.products is not None),
        ("citations", 6, report.citations is not None),
        ("evidence", 7, report.evidence is not None),
    ):
        if minor >= since:
            ledger.judge(f"schema_version.{name}", present, f"every report of schema 1.{since} has {name}")
        elif present:
            ledger.judge(f"schema_version.{name}", False, f"{name} came with schema 1.{since}", report.schema_version)
        else:
            ledger.skip(name, f"reports of schema {report.schema_version} lack it")


def _check_counts(report: Report, ledger: Ledger) -> None:
    parameters = report.model.parameters
    for place, tensors in (("tensors", parameters.tensors), ("left_out", parameters.left_out or [])):
        _check_tensors(f"model.parameters.{place}", tensors, ledger)
    total = sum(tensor.count for tensor in parameters.tensors)
    ledger.equal("model.parameters.count", parameters.count, total, "sum over the tensors")
    if parameters.stored_dtypes is not None:
        stored = sum(parameters.stored_dtypes.values())
        ledger.equal("model.parameters.stored_dtypes.sum", stored, total, "every parameter has a dtype")
    names = {tensor.name for tensor in parameters.tensors}
    ledger.refute("model.parameters.tied", set(parameters.tied) <= names, "names of tensors")
    ledger.refute("batch.samples", report.batch.samples >= 1, "a batch is not empty", report.batch.samples)
    smooth = not report.model.nonsmooth_operators
    ledger.equal("model.smooth", report.model.smooth, smooth, "no operator is named that is not smooth")
    accuracy = report.loss.accuracy
    ledger.refute("loss.accuracy", accuracy is None or -VALUES <= accuracy <= 1 + VALUES, "a share", accuracy)
    ledger.refute("loss.gradient_norm", report.loss.gradient_norm >= 0, "a norm", report.loss.gradient_norm)
    ledger.refute("loss.value", report.loss.value >= 0, "no loss of these kinds is negative", report.loss.value)


def _check_tensors(place: str, tensors: Sequence[ParameterTensor], ledger: Ledger) -> None:
    for index, tensor in enumerate(tensors):
        path = f"{place}.{index}.count"
        ledger.equal(path, tensor.count, math.prod(tensor.shape), "product of the shape")


def _check_settings(report: Report, ledger: Ledger) -> None:
    """Settings that the report states twice."""
    if report.evidence is None:
        return
    options, engine, loss = report.evidence.options, report.engine, report.loss
    how = "the analysis's options"
    ledger.equal("engine.seed", engine.seed, options.seed, how)
    ledger.equal("engine.device", engine.device, options.device, how)
    ledger.refute("engine.dtype", options.dtype in ("auto", engine.dtype), how, engine.dtype, options.dtype)
    ledger.refute("loss.kind", options.loss in ("auto", loss.kind), how, loss.kind, options.loss)
    ledger.equal("loss.label_smoothing", loss.label_smoothing, options.label_smoothing or None, how)
    for name in ("class_weights", "pos_weight"):
        ours, theirs = getattr(loss, name), getattr(options, name)
        ledger.equal(f"loss.{name}", ours, None if theirs is None else list(theirs), how)
    kind = {"dense": "dense", "top": "lanczos"}.get(options.spectrum)
    if report.spectrum is not None and kind is not None:
        ledger.equal("spectrum.method", report.spectrum.method, kind, how)


def _check_stable_steps(report: Report, ledger: Ledger) -> None:
    """The largest stable learning rate and its ratio follow from the limit and λ_max."""
    part = report.optimizer
    if part is None or part.largest_stable_learning_rate is None:
        return
    rate, top = part.largest_stable_learning_rate, part.lambda_max
    if part.kind != "adamw" and top.lower > 0:
        for name, derived in (("lower", part.limit / top.upper), ("upper", part.limit / top.lower)):
            path = f"optimizer.largest_stable_learning_rate.{name}"
            ledger.near(path, getattr(rate, name), derived, 1e-12 * derived, "the limit over λ_max")
    if part.learning_rate is not None and part.ratio is not None:
        for name, end in (("lower", rate.upper), ("upper", rate.lower)):
            derived = part.learning_rate / end
            ledger.near(f"optimizer.ratio.{name}", getattr(part.ratio, name), derived, 1e-12 * derived, "η over it")


def _check_timings(report: Report, ledger: Ledger) -> None:
    total = report.timings.get("total")
    if total is None:
        return
    parts = sum(seconds for name, seconds in report.timings.items() if name != "total")
    ledger.refute("timings.total", total >= parts * (1 - 1e-9), "it covers all phases", total, parts)


def check_checks(report: Report, ledger: Ledger) -> None:
    """Judge every check again: its outcome by value and tolerance, and both by the numbers that they compare."""
    derived = {judged.name: judged for judged in _judged(report)}
    spacing = 2 * (UNIT if report.engine.dtype == "float64" else 2.0**-24)
    for index, check in enumerate(report.checks):
        place = f"checks.{index}"
        passed = check.value is not None and check.tolerance is not None and check.value <= check.tolerance
        ledger.equal(f"{place}.passed", check.passed, passed, "the value is at most the tolerance")
        known = derived.pop(check.name, None)
        if known is not None:
            _check_against(place, check, known, ledger)
        constant = KNOWN_TOLERANCES.get(check.name, IN_ROUNDING.get(check.name, 0.0) * spacing)
        if constant and report.evidence is not None:  # earlier versions had other ones
            ledger.near(f"{place}.tolerance", check.tolerance, constant, 1e-12 * constant, "a constant of the check")
        if not check.passed:
            told = any(check.name in message for message in report.messages("check_failed"))
            ledger.judge(f"{place}.warning", told, "a failed check is a warning")
    names = {check.name for check in report.checks}
    compared = report.model.parity is None or "parity" in names
    ledger.refute("checks.parity", compared, "a report with these parts has this check")
    for name in derived:
        ledger.judge(f"checks.{name}", False, "a report with these parts has this check")


def _check_against(place: str, check: Check, known: Judged, ledger: Ledger) -> None:
    how = "the numbers of the report that it compares"
    if not math.isfinite(known.value):
        return
    tolerance = VALUES + 1e-9 * abs(known.value)
    ledger.near(f"{place}.value", check.value, known.value, tolerance, how)
    ledger.near(f"{place}.tolerance", check.tolerance, known.tolerance, 1e-9 * known.tolerance, how)


def _judged(report: Report) -> Iterator[Judged]:
    """Derive the checks that compare numbers of the report."""
    if report.evidence is None:
        return
    moments, enclosure, spectrum = report.moments, report.enclosure, report.spectrum
    if moments is not None and 0 <= moments.frobenius_squared < SMALLEST_SQUARE:
        return
    terms, bounds = report.evidence.rounding, report.named_bounds
    spacing = 2 * (UNIT if report.engine.dtype == "float64" else 2.0**-24)
    E = terms.operator
    if moments is not None and moments.exact:
        P, t, q = report.model.parameters.count, moments.trace, max(moments.frobenius_squared, 0.0)
        spread = math.sqrt(P) * (2 * E + terms.relative_square_error * math.sqrt(q) + terms.trace_error)
        norm = math.sqrt(q + terms.relative_square_error * q + terms.square_error) + 2 * E
        least = max(t - spread, -(t + spread), 0.0)
        ratio = least / (math.sqrt(P) * norm) if norm else math.inf if least else 0.0
        yield Judged("trace_within_frobenius", ratio, 1 + 100 * spacing)

    def compared(name: str, excess: float, size: float, units: float) -> Judged:
        if size > 0:
            return Judged(name, excess / size, units * spacing + 2 * E / size)
        return Judged(name, excess, 2 * E)

    if enclosure is not None and bounds:
        top, size = enclosure.lambda_max, max(abs(enclosure.lambda_max.upper), abs(enclosure.lambda_min.lower))
        upper = min(bound.lambda_max.upper for bound in bounds)
        lower = max(bound.lambda_max.lower for bound in bounds)
        yield compared("enclosure_meets_bound", top.lower - upper, size, 1e3)
        yield compared("enclosure_meets_lower_bound", lower - top.upper, size, 1e3)
    if spectrum is None or spectrum.method != "dense" or not spectrum.eigenvalues:
        return
    values = spectrum.eigenvalues
    largest = max(map(abs, values))
    if enclosure is not None:
        for name, value, end in (
            ("lambda_max_enclosed", values[0], enclosure.lambda_max),
            ("lambda_min_enclosed", values[-1], enclosure.lambda_min),
        ):
            yield compared(name, max(end.lower - value, value - end.upper, 0.0), largest, 1e4)
    if moments is None or not bounds:
        return
    norm = largest * math.sqrt(math.fsum((value / largest) ** 2 for value in values)) if largest else 0.0
    root = math.sqrt(max(moments.frobenius_squared, 0.0))
    if moments.exact:
        difference = abs(math.fsum(values) - moments.trace) / math.sqrt(len(values))
        yield compared("spectrum_trace", difference, norm, 1e5)
        yield compared("spectrum_frobenius", abs(norm - root), norm, 1e5)
    else:
        yield compared("spectrum_frobenius_bound", norm - root, norm, 1e5)
    upper = min(bound.lambda_max.upper for bound in bounds)
    lower = max(bound.lambda_min.lower for bound in bounds)
    yield compared("lambda_max_within_bound", values[0] - upper, norm, 1e5)
    yield compared("lambda_min_within_bound", lower - values[-1], norm, 1e5)
