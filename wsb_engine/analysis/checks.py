"""Consistency checks of a report: theorems that must hold, and agreements that must be close.

Values and tolerances are relative to the size of what is compared, so that they do not depend on the scale of H.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from wsb_engine import report as r
from wsb_engine.analysis.agreement import MeasuredErrors
from wsb_engine.analysis.problem import Problem
from wsb_engine.bounds.rounding import Rounding

PARITY_TOLERANCE = 1e-3
"""Relative to the largest logit; runtimes compute in the file's precision, mostly float32."""

_PRODUCTS = "products do not multiply by one symmetric matrix: an operator's derivative is wrong or not repeatable"
_MOMENTS = "the moments, or the products that the enclosure rests on, are wrong"
_DENSE = "the dense Hessian and the other numbers are not of one matrix"
FAILURES: dict[str, tuple[str, str]] = {
    "mlp_structure": ("the layers evaluate to other logits than the file's graph", "the file was misread"),
    "parity": (
        "the file's own runtime gives other logits",
        "the file was misread, samples depend on each other, or the numbers are at the limit of float32",
    ),
    "trace_within_frobenius": (
        "the trace is too large for the Frobenius norm",
        "rounding exceeds what was allowed for",
    ),
    "product_symmetry": ("uᵀHv and vᵀHu differ", _PRODUCTS),
    "hessian_symmetry": ("the dense Hessian is not symmetric", _PRODUCTS),
    "hessian_product": (
        "the dense Hessian and automatic differentiation disagree",
        "units are so saturated, or the loss is so small, that torch's own derivatives lose their digits",
    ),
    "row_forms": (
        "the curvatures of the rows do not add up to that of the batch",
        "an operator's second derivative is not linear in the weights of the rows, or is not repeatable",
    ),
    "ritz_pairs": (
        "fresh products do not confirm the enclosure",
        "a product changed its input or gives another result when repeated, or the Krylov basis lost its accuracy",
    ),
    "enclosure_meets_bound": ("the enclosure lies above an upper bound on λ_max", _MOMENTS),
    "enclosure_meets_lower_bound": ("the enclosure lies below a lower bound on λ_max", _MOMENTS),
    "lambda_max_enclosed": ("the largest eigenvalue of the dense spectrum is outside its enclosure", _DENSE),
    "lambda_min_enclosed": ("the smallest eigenvalue of the dense spectrum is outside its enclosure", _DENSE),
    "spectrum_trace": ("the eigenvalues do not add up to the trace", _DENSE),
    "spectrum_frobenius": ("the squares of the eigenvalues do not add up to ‖H‖_F²", _DENSE),
    "spectrum_frobenius_bound": ("the squares of the eigenvalues exceed the bound on ‖H‖_F²", _DENSE),
    "lambda_max_within_bound": ("the largest eigenvalue exceeds an upper bound", _DENSE),
    "lambda_min_within_bound": ("the smallest eigenvalue is below a lower bound", _DENSE),
}
"""By name of a check: what its failure means, and the likely cause."""


def failure(check: r.Check) -> str:
    """Say what a failed check means, and the likely cause."""
    words, cause = FAILURES.get(check.name, (check.name, "unknown"))
    value = "not a number" if check.value is None else f"{check.value:.3g}"
    allowed = "nothing" if check.tolerance is None else f"at most {check.tolerance:.3g}"
    return f"{words} ({check.name}: {value}, {allowed} expected); likely cause: {cause}"


def checks(
    problem: Problem,
    parity: r.Parity | None,
    moments: r.Moments | None,
    bounds: Sequence[r.NamedBound],
    enclosure: r.Enclosure | None,
    spectrum: r.SpectrumResult | None,
    rounding: Rounding,
    errors: MeasuredErrors,
) -> list[r.Check]:
    """Check theorems that must hold, and agreements that must be close.

    Args:
        problem: The analysis.
        parity, moments, bounds, enclosure, spectrum: Parts of its report, all in the same units.
        rounding: Rounding of H, in those units.
        errors: Errors that the stages measured.
    """
    eps = torch.finfo(problem.objective.dtype).eps
    results = [*_logits(problem, parity), *_trace(problem, moments, rounding, eps), *_errors(errors, rounding, eps)]
    if enclosure is not None and bounds:
        results += _meeting(enclosure, _intersection([bound.lambda_max for bound in bounds]), rounding, eps)
    if spectrum is not None and spectrum.method == "dense":
        eigenvalues = torch.tensor(spectrum.eigenvalues, dtype=torch.float64)
        if enclosure is not None:
            results += _enclosed(eigenvalues, enclosure, rounding, eps)
        if moments is not None and bounds:
            results += _summed(eigenvalues, moments, bounds, rounding, eps)
    return results


def _logits(problem: Problem, parity: r.Parity | None) -> Iterator[r.Check]:
    logits, structure = max(1.0, problem.logits.largest), problem.structure
    if structure is not None:
        yield _check("mlp_structure", structure.error / logits, structure.tolerance / logits)
    if parity is not None:
        yield _check("parity", parity.max_abs_error / logits, PARITY_TOLERANCE)


def _trace(problem: Problem, moments: r.Moments | None, rounding: Rounding, eps: float) -> Iterator[r.Check]:
    """|t| ≤ √P ‖H‖_F, whatever rounding did to either."""
    if moments is not None and moments.exact:
        t, q, P = moments.trace, moments.frobenius_squared, problem.objective.parameters
        low, high = rounding.trace(t, q, P)
        least, norm = max(low, -high, 0.0), rounding.norm(q)[1]
        ratio = least / (math.sqrt(P) * norm) if norm > 0 else math.inf if least > 0 else 0.0
        yield _check("trace_within_frobenius", ratio, 1 + 100 * eps)


def _errors(errors: MeasuredErrors, rounding: Rounding, eps: float) -> Iterator[r.Check]:
    for name, value, tolerance in (
        ("product_symmetry", errors.symmetry, 1e4 * eps),
        ("hessian_symmetry", errors.asymmetry, 1e5 * eps),
        ("hessian_product", errors.disagreement, 1e6 * eps + 2 * rounding.operator * errors.magnification),
    ):
        if value is not None:
            yield _check(name, value, tolerance)
    if errors.rows is not None:
        yield _compare("row_forms", *errors.rows, 1e5 * eps, rounding)
    if errors.ritz is not None:
        yield _check("ritz_pairs", errors.ritz.excess, errors.ritz.explained)


def _meeting(enclosure: r.Enclosure, bound: r.Interval, rounding: Rounding, eps: float) -> Iterator[r.Check]:
    """Two intervals for one number must meet."""
    size = max(abs(enclosure.lambda_max.upper), abs(enclosure.lambda_min.lower))
    for name, excess in (
        ("enclosure_meets_bound", enclosure.lambda_max.lower - bound.upper),
        ("enclosure_meets_lower_bound", bound.lower - enclosure.lambda_max.upper),
    ):
        yield _compare(name, excess, size, 1e3 * eps, rounding)


def _enclosed(eigenvalues: Tensor, enclosure: r.Enclosure, rounding: Rounding, eps: float) -> Iterator[r.Check]:
    largest = float(eigenvalues.abs().max())
    for name, value, interval in (
        ("lambda_max_enclosed", float(eigenvalues[0]), enclosure.lambda_max),
        ("lambda_min_enclosed", float(eigenvalues[-1]), enclosure.lambda_min),
    ):
        outside = max(interval.lower - value, value - interval.upper, 0.0)
        yield _compare(name, outside, largest, 1e4 * eps, rounding)


def _summed(
    eigenvalues: Tensor, moments: r.Moments, bounds: Sequence[r.NamedBound], rounding: Rounding, eps: float
) -> Iterator[r.Check]:
    """The eigenvalues have the trace and the norm of the moments, and lie within their bounds."""
    largest = float(eigenvalues.abs().max())
    # Divided by the largest, so that no square leaves the range of numbers.
    scaled = eigenvalues / largest if largest else eigenvalues
    norm, root = largest * math.sqrt(float(scaled.square().sum())), math.sqrt(moments.frobenius_squared)
    if moments.exact:
        difference = abs(float(eigenvalues.sum()) - moments.trace) / math.sqrt(len(eigenvalues))
        yield _compare("spectrum_trace", difference, norm, 1e5 * eps, rounding)
        yield _compare("spectrum_frobenius", abs(norm - root), norm, 1e5 * eps, rounding)
    else:
        yield _compare("spectrum_frobenius_bound", norm - root, norm, 1e5 * eps, rounding)
    upper = _intersection([bound.lambda_max for bound in bounds]).upper
    lower = _intersection([bound.lambda_min for bound in bounds]).lower
    yield _compare("lambda_max_within_bound", float(eigenvalues[0]) - upper, norm, 1e5 * eps, rounding)
    yield _compare("lambda_min_within_bound", lower - float(eigenvalues[-1]), norm, 1e5 * eps, rounding)


def _intersection(intervals: Sequence[r.Interval]) -> r.Interval:
    """Intersect intervals for one number; a lower end above the upper one shows that they do not meet."""
    return r.Interval(lower=max(each.lower for each in intervals), upper=min(each.upper for each in intervals))


def _compare(name: str, excess: float, size: float, tolerance: float, rounding: Rounding) -> r.Check:
    """The excess has to be small next to the size, or explained by rounding."""
    if size > 0:
        return _check(name, excess / size, tolerance + 2 * rounding.operator / size)
    return _check(name, excess, 2 * rounding.operator)


def _check(name: str, value: float, tolerance: float) -> r.Check:
    passed = math.isfinite(value) and math.isfinite(tolerance) and value <= tolerance
    finite = [number if math.isfinite(number) else None for number in (value, tolerance)]
    return r.Check(name=name, passed=passed, value=finite[0], tolerance=finite[1])
