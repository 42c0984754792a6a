"""Consistency checks of a report: theorems that must hold, and agreements that must be close."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from wsb_engine import report as r
from wsb_engine.bounds.confirmation import RitzResidual
from wsb_engine.bounds.rounding import Rounding
from wsb_engine.problem import Problem, structure_tolerance

PARITY_TOLERANCE = 1e-3
"""Relative to the largest logit; runtimes compute in the file's precision, float32 as a rule."""


@dataclass(frozen=True)
class Evidence:
    """Errors that were measured on the way; None where a stage did not run."""

    symmetry: float | None = None
    """Of Hessian-vector products, on random vectors."""
    asymmetry: float | None = None
    """Of the dense Hessian as formed."""
    disagreement: float | None = None
    """Between the dense Hessian and a product by automatic differentiation."""
    ritz: RitzResidual | None = None
    """Of the enclosure's Ritz pairs, by fresh products."""


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
    """Theorems that must hold, and agreements that must be close."""
    eps = torch.finfo(problem.objective.dtype).eps
    P = problem.objective.parameters
    results: list[r.Check] = []

    def check(name: str, value: float, tolerance: float) -> None:
        passed = value <= tolerance
        finite = (number if math.isfinite(number) else None for number in (value, tolerance))
        results.append(r.Check(name=name, passed=passed, value=next(finite), tolerance=next(finite)))

    if problem.structure is not None:
        check("mlp_structure", problem.structure.error, structure_tolerance(problem.objective, problem.logits))
    if parity is not None:
        check("parity", parity.max_abs_error, PARITY_TOLERANCE * max(1.0, float(problem.logits.abs().max())))
    if moments is not None and moments.exact:
        t, q = moments.trace, moments.frobenius_squared
        # |t| ≤ √P ‖H‖_F, whatever rounding did to either
        low, high = rounding.trace(t, q, P)
        least, norm = max(low, -high, 0.0), rounding.norm(q)[1]
        check("trace_within_frobenius", least / (math.sqrt(P) * norm) if norm > 0 else 0.0, 1 + 100 * eps)
    for name, value, tolerance in (
        ("product_symmetry", evidence.symmetry, 1e4 * eps),
        ("hessian_symmetry", evidence.asymmetry, 1e5 * eps),
        ("hessian_product", evidence.disagreement, 1e6 * eps),
    ):
        if value is not None:
            check(name, value, tolerance)
    if evidence.ritz is not None:
        check("ritz_pairs", evidence.ritz.excess, evidence.ritz.explained)
    if enclosure is not None and bounds is not None:
        scale = max(abs(enclosure.lambda_max.upper), abs(enclosure.lambda_min.lower))
        limits = bounds.wolkowicz_styan
        # Two intervals for one number must meet.
        check("enclosure_meets_bound", enclosure.lambda_max.lower - limits.lambda_max.upper, 1e3 * eps * scale)
        check("enclosure_meets_lower_bound", limits.lambda_max.lower - enclosure.lambda_max.upper, 1e3 * eps * scale)
    if enclosure is not None and spectrum is not None and spectrum.method == "dense":
        top, bottom = spectrum.eigenvalues[0], spectrum.eigenvalues[-1]
        slack = 1e4 * eps * max(abs(top), abs(bottom))
        check("lambda_max_enclosed", _outside(top, enclosure.lambda_max), slack)
        check("lambda_min_enclosed", _outside(bottom, enclosure.lambda_min), slack)
    if spectrum is not None and spectrum.method == "dense" and moments is not None and bounds is not None:
        eigenvalues = torch.tensor(spectrum.eigenvalues, dtype=torch.float64)
        square = float(eigenvalues.square().sum())
        slack = 1e5 * eps * math.sqrt(square)
        if moments.exact:
            check("spectrum_trace", abs(float(eigenvalues.sum()) - moments.trace), slack * math.sqrt(P))
            check("spectrum_frobenius", abs(square - moments.frobenius_squared), slack * math.sqrt(square))
        else:
            check("spectrum_frobenius_bound", square - moments.frobenius_squared, slack * math.sqrt(square))
        limits = bounds.wolkowicz_styan
        check("lambda_max_within_bound", spectrum.eigenvalues[0] - limits.lambda_max.upper, slack)
        check("lambda_min_within_bound", limits.lambda_min.lower - spectrum.eigenvalues[-1], slack)
    return results


def _outside(value: float, interval: r.CertifiedInterval) -> float:
    """How far a value lies outside an interval."""
    return max(interval.lower - value, value - interval.upper, 0.0)
