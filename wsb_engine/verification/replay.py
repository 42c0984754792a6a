"""Repeat an analysis from its model, batch and options, and compare every number."""

from __future__ import annotations

import glob
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from wsb_engine import devices
from wsb_engine.analysis.analyze import analyze
from wsb_engine.batch import Batch
from wsb_engine.memory import total_memory
from wsb_engine.model import Classifier
from wsb_engine.optimizer_state import StateSource
from wsb_engine.options import Options
from wsb_engine.progress import ProgressCallback
from wsb_engine.report import Report
from wsb_engine.verification.findings import Ledger
from wsb_engine.verification.moments import extreme_ritz_values
from wsb_engine.verification.theorems import UNIT

CUT_SHORT = frozenset({"time_limit", "rounding_cut", "second_pass_cut", "parity_unavailable"})
"""Warnings of what a clock decided."""
NOT_COMPARED = ("timings.", "engine.sandbox", "evidence.machine.")
"""What another run may have otherwise."""
OF_STATE = ("optimizer", "evidence.options.optimizer", "citations", "products", "warnings")
"""What differs if the state of an optimizer is missing."""
MOST_THREADS = 256
"""Most CPU threads that a report can ask for."""
MOST_PATTERNS = 256
"""Most globs over parameter names."""
EXACTLY = "repeated from model, batch and options, to the last bit"
NEARLY = "repeated from model, batch and options, on another machine or by another version"


def options_of(report: Report) -> tuple[Options, bool]:
    """Return the options of an analysis, and whether the report states them; else what it shows of them."""
    if report.evidence is not None:
        return report.evidence.options, True
    loss, spectrum, moments = report.loss, report.spectrum, report.moments
    names = tuple(glob.escape(tensor.name) for tensor in report.model.parameters.tensors)
    shown: dict[str, Any] = {
        "dtype": report.engine.dtype,
        "seed": report.engine.seed,
        "loss": loss.kind,
        "label_smoothing": loss.label_smoothing or 0.0,
        "class_weights": None if loss.class_weights is None else tuple(loss.class_weights),
        "pos_weight": None if loss.pos_weight is None else tuple(loss.pos_weight),
        "ignore_index": loss.ignore_index,
        "moments": "none" if moments is None else moments.method,
        "enclosure": report.enclosure is not None,
        "parameters": names if 0 < len(names) <= MOST_PATTERNS else ("*",),
    }
    if spectrum is not None:
        shown["density"] = spectrum.density is not None
        shown["spectrum"] = "dense" if spectrum.method == "dense" else "top" if spectrum.eigenvalues else "none"
        shown["top"] = len(spectrum.eigenvalues) or 10
    if report.enclosure is not None and report.enclosure.basis is not None:
        shown["basis"] = report.enclosure.basis
    return Options(**shown), False


def repeat(
    report: Report,
    classifier: Classifier,
    batch: Batch,
    progress: ProgressCallback | None = None,
    optimizer_state: StateSource | None = None,
) -> Report:
    """Repeat the analysis of a report on the device that it names, or on the CPU.

    Args:
        report: The report.
        classifier, batch: What it is about.
        progress, optimizer_state: As of ``analyze``. If the analysis had a state and there is none, the largest stable
            learning rate is left out.

    Raises:
        ModelError, BatchError, OptionsError, ResourceError: as ``analyze``.
    """
    options, _ = options_of(report)
    changes: dict[str, Any] = {"device": _device(report.engine.device), "time_limit": None}
    enclosure, evidence = report.enclosure, report.evidence
    if enclosure is not None and enclosure.stopped_by in ("time", "memory"):
        changes["max_products"] = max(1, enclosure.hessian_vector_products)
    if options.devices is not None and options.devices != "all" and not set(options.devices) <= _available():
        changes["devices"] = None
    if evidence is not None:
        on = torch.device(changes["device"])
        changes["memory_limit"] = max(1 << 20, min(evidence.machine.memory, total_memory(on)))
    else:
        changes["memory_limit"] = None
    if lacks_state(report) and optimizer_state is None:
        changes["optimizer"] = None
    stops = enclosure is not None and enclosure.stopped_by == "decided"
    changes["stop"] = "decided" if stops else "gap"
    products = 0 if enclosure is None else enclosure.hessian_vector_products
    with _threads(report):
        return analyze(
            classifier,
            batch,
            options.model_copy(update=changes),
            progress=progress,
            needs=() if evidence is None else evidence.needs,
            optimizer_state=None if changes.get("optimizer", options.optimizer) is None else optimizer_state,
            decided=(lambda now: now.hessian_vector_products >= products) if stops else None,
        )


def lacks_state(report: Report) -> bool:
    """Return whether the analysis had a file with the state of an optimizer."""
    return report.optimizer is not None and report.optimizer.state_sha256 is not None


def _device(name: str) -> str:
    return name if name in _available() else "cpu"


def _available() -> set[str]:
    return {"cpu", *(devices.name(devices.numbered(index)) for index in range(devices.count()))}


@contextmanager
def _threads(report: Report) -> Iterator[None]:
    """Use as many CPU threads as the analysis did inside the block, since sums depend on their number."""
    before = torch.get_num_threads()
    if report.evidence is not None and report.evidence.machine.threads:
        torch.set_num_threads(min(report.evidence.machine.threads, MOST_THREADS))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def is_exact(report: Report, again: Report) -> bool:
    """Return whether both analyses ran alike, so that they have to agree to the last bit."""
    ours, theirs = report.evidence, again.evidence
    if ours is None or theirs is None or ours.machine != theirs.machine:
        return False
    if any(getattr(report.engine, name) != getattr(again.engine, name) for name in ("version", "torch", "device")):
        return False
    codes = {warning.code for warning in (*report.warnings, *again.warnings)}
    if codes & CUT_SHORT or "not_deterministic" in codes:
        return False
    stopped = None if report.enclosure is None else report.enclosure.stopped_by
    return stopped not in ("time", "memory") and ours.options.time_limit is None


def compare_exactly(report: Report, again: Report, ledger: Ledger) -> None:
    """Record for every number and text whether it is the repeated one."""
    stateless = lacks_state(report) and again.optimizer is None
    ours, theirs = (dict(_flat(each.model_dump(mode="json"))) for each in (report, again))
    files = again.model.sha256 is None, again.batch.sha256 is None
    for path in dict.fromkeys([*ours, *theirs]):
        if path.startswith(NOT_COMPARED) or path in ("evidence.options.stop", "evidence.options.memory_limit"):
            continue
        if stateless and path.startswith(OF_STATE):
            ledger.skip(path, "it needs the state of the optimizer, which was not given")
            continue
        if (path == "model.sha256" and files[0]) or (path == "batch.sha256" and files[1]):
            ledger.skip(path, "the digest of a file, and this comes from memory")
            continue
        claimed, derived = ours.get(path), theirs.get(path)
        if claimed == derived:
            ledger.judge(path, True, EXACTLY)
        elif isinstance(claimed, list) and isinstance(derived, list) and len(claimed) == len(derived):
            first = next(i for i, (a, b) in enumerate(zip(claimed, derived, strict=True)) if a != b)
            ledger.judge(f"{path}.{first}", False, EXACTLY, claimed[first], derived[first])
        else:
            ledger.judge(path, False, EXACTLY, claimed, derived)


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield paths and values; a list of plain values is one value."""
    if isinstance(value, dict) and value:
        for name, each in value.items():
            yield from _flat(each, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and any(isinstance(each, dict | list) for each in value):
        for index, each in enumerate(value):
            yield from _flat(each, f"{path}.{index}")
    else:
        yield path, value


def compare_nearly(report: Report, again: Report, ledger: Ledger) -> None:
    """Record which numbers agree as far as another machine, or another version, has to agree.

    Names, counts and shapes have to be equal. The loss and the moments agree up to the rounding that both reports
    state and half of the digits of the dtype, intervals for one number have to meet, and the recurrences agree until
    the first Ritz value has converged: then rounding decides.
    """
    half = math.sqrt(UNIT if report.engine.dtype == "float64" else 2.0**-24)
    _compare_inputs(report, again, ledger)
    for name in ("value", "gradient_norm"):
        ours, theirs = getattr(report.loss, name), getattr(again.loss, name)
        tolerance = half * max(abs(ours), abs(theirs), _size(again) if name == "gradient_norm" else 0.0)
        ledger.near(f"loss.{name}", ours, theirs, tolerance, NEARLY)
    ledger.near("loss.accuracy", report.loss.accuracy, again.loss.accuracy, half, NEARLY)
    _compare_moments(report, again, half, ledger)
    _compare_intervals(report, again, ledger)
    _compare_recurrences(report, again, half, ledger)
    _compare_spectra(report, again, half, ledger)


def _compare_inputs(report: Report, again: Report, ledger: Ledger) -> None:
    kept = {"model": {"parity"}, "batch": set(), "loss": {"value", "gradient_norm", "accuracy"}}
    for part, left_out in kept.items():
        ours, theirs = (dict(_flat(getattr(each, part).model_dump(mode="json"), part)) for each in (report, again))
        for path in ours:
            if path.split(".")[1] in left_out or (path.endswith("sha256") and theirs.get(path) is None):
                continue
            # Earlier reports lack what later ones have.
            if ours[path] is None and report.schema_version != again.schema_version:
                continue
            ledger.equal(path, ours[path], theirs.get(path), NEARLY)


def _size(report: Report) -> float:
    """Return a number of the size of ‖H‖."""
    enclosure = report.enclosure
    if enclosure is not None:
        return max(abs(enclosure.lambda_max.upper), abs(enclosure.lambda_min.lower))
    bounds = report.named_bounds
    return max((abs(bound.lambda_max.upper) for bound in bounds), default=0.0)


def _operator(report: Report) -> float:
    return 0.0 if report.evidence is None else report.evidence.rounding.operator


def _compare_moments(report: Report, again: Report, half: float, ledger: Ledger) -> None:
    ours, theirs = report.moments, again.moments
    if ours is None or theirs is None or ours.method != theirs.method:
        return
    P, root = report.model.parameters.count, math.sqrt(max(theirs.frobenius_squared, 0.0))
    E = _operator(report) + _operator(again)
    slack = 2 * E + half * root if ours.exact else half * root + 2 * E
    ledger.near("moments.trace", ours.trace, theirs.trace, math.sqrt(P) * slack, NEARLY)
    tolerance = 2 * slack * root + slack * slack
    ledger.near("moments.frobenius_squared", ours.frobenius_squared, theirs.frobenius_squared, tolerance, NEARLY)
    if ours.gauss_newton_trace is not None and theirs.gauss_newton_trace is not None:
        size = abs(theirs.gauss_newton_trace)
        ledger.near(
            "moments.gauss_newton_trace", ours.gauss_newton_trace, theirs.gauss_newton_trace, half * size, NEARLY
        )
    for index, (mine, other) in enumerate(zip(report.layers or [], again.layers or [], strict=False)):
        wide, square = math.sqrt(P) * slack, 2 * slack * root + slack * slack
        for name, most in (("trace", wide), ("wolkowicz_styan_upper", wide), ("frobenius_squared", square)):
            if getattr(mine, name) is not None:
                ledger.near(f"layers.{index}.{name}", getattr(mine, name), getattr(other, name), most, NEARLY)
    for index, (row, other_row) in enumerate(zip(report.blocks or [], again.blocks or [], strict=False)):
        ledger.each(f"blocks.{index}", row, other_row, slack, NEARLY)
    shared = report.orthogonality, again.orthogonality
    if shared[0] is not None and shared[1] is not None:
        mine_share, other_share = shared[0].cross_sample_share, shared[1].cross_sample_share
        tolerance = 1e3 * half + (4 * slack / root if root else 0.0)
        ledger.near("orthogonality.cross_sample_share", mine_share, other_share, tolerance, NEARLY)


def _compare_intervals(report: Report, again: Report, ledger: Ledger) -> None:
    """Both certify the same numbers, so their intervals meet."""
    ours, theirs = (dict(_flat(each.model_dump(mode="json"))) for each in (report, again))
    how = "intervals for one number meet"
    for path, lower in ours.items():
        place, _, name = path.rpartition(".")
        ends = ours.get(f"{place}.upper"), theirs.get(f"{place}.lower"), theirs.get(f"{place}.upper")
        # A population's interval is a statement about probabilities, and rows of convergence depend on their steps.
        if name != "lower" or None in ends or place.startswith(("population", "enclosure.convergence")):
            continue
        upper, low, high = (float(end) for end in ends if end is not None)
        ledger.refute(path, lower <= high, how, lower, high)
        ledger.refute(f"{place}.upper", upper >= low, how, upper, low)


def _compare_recurrences(report: Report, again: Report, half: float, ledger: Ledger) -> None:
    ours, theirs = report.enclosure, again.enclosure
    if ours is None or theirs is None or not ours.alpha or not theirs.alpha or not ours.beta or not theirs.beta:
        return
    size = _size(again)
    steps = settled(theirs.alpha, theirs.beta, half)
    count = min(steps, len(ours.alpha), len(theirs.alpha))
    tolerance = 100 * half * size
    how = f"{NEARLY}: the first {count} steps, until a Ritz value has converged"
    for name, mine, other in (("alpha", ours.alpha, theirs.alpha), ("beta", ours.beta, theirs.beta)):
        bad = next((i for i in range(count) if not abs(mine[i] - other[i]) <= tolerance), None)
        if bad is not None:
            ledger.near(f"enclosure.{name}.{bad}", mine[bad], other[bad], tolerance, how)
        elif count == len(mine):
            ledger.judge(f"enclosure.{name}", True, how)
        else:
            ledger.judge(f"enclosure.{name}.first", True, how)


def settled(alpha: Sequence[float], beta: Sequence[float], half: float) -> int:
    """Return the number of steps after which the largest Ritz value has moved by less than half of its digits.

    From then on rounding grows into the recurrence (Paige 1980).
    """
    before = math.nan
    for k in range(1, len(alpha) + 1):
        now = extreme_ritz_values(alpha[:k], beta[: k - 1])[1]
        if k > 1 and abs(now - before) <= half * abs(now):
            return k - 1
        before = now
    return len(alpha)


def _compare_spectra(report: Report, again: Report, half: float, ledger: Ledger) -> None:
    ours, theirs = report.spectrum, again.spectrum
    if ours is None or theirs is None:
        return
    size = max((abs(value) for value in theirs.eigenvalues), default=0.0)
    tolerance = half * size + 2 * (_operator(report) + _operator(again))
    ledger.equal("spectrum.method", ours.method, theirs.method, NEARLY)
    if theirs.eigenvalues:
        ledger.each("spectrum.eigenvalues", ours.eigenvalues, theirs.eigenvalues, tolerance, NEARLY)
    if ours.density is not None and theirs.density is not None:
        wide = max(map(abs, theirs.density.grid))
        ledger.near("spectrum.density.mean", ours.density.mean, theirs.density.mean, 1e3 * half * wide, NEARLY)
        squared = ours.density.second_moment, theirs.density.second_moment
        ledger.near("spectrum.density.second_moment", *squared, 1e3 * half * wide * wide, NEARLY)
