"""Consistency checks of a report: theorems that must hold, and agreements that must be close.

Values and tolerances are relative to the size of what is compared, so that they do not depend on the scale of H.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from wsb_engine import report as r
from wsb_engine.analysis.problem import Problem
from wsb_engine.bounds.rounding import Rounding
from wsb_engine.spectrum.confirmation import RitzResidual

PARITY_TOLERANCE = 1e-3
"""Relative to the largest logit; runtimes compute in the file's precision, float32 as a rule."""

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
    "ritz_pairs": (
        "fresh products do not confirm the enclosure",
        "a product changed its input or gives another result when repeated, or the Krylov basis lost its accuracy",
    ),
    "enclosure_meets_bound": ("the enclosure lies above the Wolkowicz-Styan bound on λ_max", _MOMENTS),
    "enclosure_meets_lower_bound": ("the enclosure lies below the Wolkowicz-Styan bound on λ_max", _MOMENTS),
    "lambda_max_enclosed": ("the largest eigenvalue of the dense spectrum is outside of its enclosure", _DENSE),
    "lambda_min_enclosed": ("the smallest eigenvalue of the dense spectrum is outside of its enclosure", _DENSE),
    "spectrum_trace": ("the eigenvalues do not add up to the trace", _DENSE),
    "spectrum_frobenius": ("the squares of the eigenvalues do not add up to ‖H‖_F²", _DENSE),
    "spectrum_frobenius_bound": ("the squares of the eigenvalues exceed the bound on ‖H‖_F²", _DENSE),
    "lambda_max_within_bound": ("the largest eigenvalue exceeds its Wolkowicz-Styan bound", _DENSE),
    "lambda_min_within_bound": ("the smallest eigenvalue is below its Wolkowicz-Styan bound", _DENSE),
}
"""By name of a check: what its failure says, and the likely cause."""


@dataclass(frozen=True)
class Evidence:
    """Errors that were measured on the way; None if a stage did not run."""

    symmetry: float | None = None
    """Of Hessian-vector products, on random vectors."""
    asymmetry: float | None = None
    """Of the dense Hessian as formed."""
    disagreement: float | None = None
    """Between the dense Hessian and a product by automatic differentiation, relative to it."""
    reach: float = 0.0
    """‖v‖/‖Hv‖ of that product: by how much rounding of H is magnified in it."""
    ritz: RitzResidual | None = None
    """Of the enclosure's Ritz pairs, by fresh products."""


def failure(check: r.Check) -> str:
    """What a failed check says, with the likely cause."""
    words, cause = FAILURES.get(check.name, (check.name, "unknown"))
    value = "not a number" if check.value is None else f"{check.value:.3g}"
    allowed = "nothing" if check.tolerance is None else f"at most {check.tolerance:.3g}"
    return f"{words} ({check.name}: {value}, {allowed} expected); likely cause: {cause}"


def checks(
    problem: Problem,
    moments: r.Moments | None,
    bounds: r.Bounds | None,
    enclosure: r.Enclosure | None,
    spectrum: r.SpectrumResult | None,
    parity: r.Parity | None,
    rounding: Rounding,
    evidence: Evidence,
) -> list[r.Check]:
    """Theorems that must hold, and agreements that must be close.

    Args:
        problem: The analysis.
        moments, bounds, enclosure, spectrum, parity: Parts of its report, None if absent; all in the same units.
        rounding: Rounding of H, in those units.
        evidence: Errors measured on the way.
    """
    eps = torch.finfo(problem.objective.dtype).eps
    P = problem.objective.parameters
    results: list[r.Check] = []

    def check(name: str, value: float, tolerance: float) -> None:
        passed = math.isfinite(value) and math.isfinite(tolerance) and value <= tolerance
        finite = [number if math.isfinite(number) else None for number in (value, tolerance)]
        results.append(r.Check(name=name, passed=passed, value=finite[0], tolerance=finite[1]))

    def compare(name: str, excess: float, size: float, tolerance: float) -> None:
        """The excess has to be small next to the size, or explained by rounding."""
        if size > 0:
            check(name, excess / size, tolerance + 2 * rounding.operator / size)
        else:
            check(name, excess, 2 * rounding.operator)

    logits = max(1.0, float(problem.logits.abs().max()))
    if problem.structure is not None:
        check(
            "mlp_structure",
            problem.structure.error / logits,
            problem.structure.tolerance / logits,
        )
    if parity is not None:
        check("parity", parity.max_abs_error / logits, PARITY_TOLERANCE)
    if moments is not None and moments.exact:
        t, q = moments.trace, moments.frobenius_squared
        # |t| ≤ √P ‖H‖_F, whatever rounding did to either
        low, high = rounding.trace(t, q, P)
        least, norm = max(low, -high, 0.0), rounding.norm(q)[1]
        ratio = least / (math.sqrt(P) * norm) if norm > 0 else math.inf if least > 0 else 0.0
        check("trace_within_frobenius", ratio, 1 + 100 * eps)
    for name, value, tolerance in (
        ("product_symmetry", evidence.symmetry, 1e4 * eps),
        ("hessian_symmetry", evidence.asymmetry, 1e5 * eps),
        ("hessian_product", evidence.disagreement, 1e6 * eps + 2 * rounding.operator * evidence.reach),
    ):
        if value is not None:
            check(name, value, tolerance)
    if evidence.ritz is not None:
        check("ritz_pairs", evidence.ritz.excess, evidence.ritz.explained)
    if enclosure is not None and bounds is not None:
        size = max(abs(enclosure.lambda_max.upper), abs(enclosure.lambda_min.lower))
        limits = bounds.wolkowicz_styan.lambda_max
        # Two intervals for one number must meet.
        compare("enclosure_meets_bound", enclosure.lambda_max.lower - limits.upper, size, 1e3 * eps)
        compare("enclosure_meets_lower_bound", limits.lower - enclosure.lambda_max.upper, size, 1e3 * eps)
    if spectrum is not None and spectrum.method == "dense":
        eigenvalues = torch.tensor(spectrum.eigenvalues, dtype=torch.float64)
        largest = float(eigenvalues.abs().max())
        if enclosure is not None:
            top, bottom = spectrum.eigenvalues[0], spectrum.eigenvalues[-1]
            compare("lambda_max_enclosed", _outside(top, enclosure.lambda_max), largest, 1e4 * eps)
            compare("lambda_min_enclosed", _outside(bottom, enclosure.lambda_min), largest, 1e4 * eps)
        if moments is not None and bounds is not None:
            # Divided by the largest, so that no square leaves the range of numbers.
            scaled = eigenvalues / largest if largest else eigenvalues
            norm = largest * math.sqrt(float(scaled.square().sum()))
            if moments.exact:
                difference = abs(float(eigenvalues.sum()) - moments.trace) / math.sqrt(P)
                compare("spectrum_trace", difference, norm, 1e5 * eps)
                compare("spectrum_frobenius", abs(norm - math.sqrt(moments.frobenius_squared)), norm, 1e5 * eps)
            else:
                compare("spectrum_frobenius_bound", norm - math.sqrt(moments.frobenius_squared), norm, 1e5 * eps)
            limits = bounds.wolkowicz_styan.lambda_max
            compare("lambda_max_within_bound", spectrum.eigenvalues[0] - limits.upper, norm, 1e5 * eps)
            limits = bounds.wolkowicz_styan.lambda_min
            compare("lambda_min_within_bound", limits.lower - spectrum.eigenvalues[-1], norm, 1e5 * eps)
    return results


def _outside(value: float, interval: r.CertifiedInterval) -> float:
    """How far a value lies outside an interval."""
    return max(interval.lower - value, value - interval.upper, 0.0)
