"""Consistency checks of a report: theorems that must hold, and agreements that must be close."""

from __future__ import annotations

import math

import torch

from wsb_engine import report as r
from wsb_engine.problem import Problem, structure_tolerance
from wsb_engine.spectrum.dense import DenseSpectrum

PARITY_TOLERANCE = 1e-3
"""Relative to the largest logit; runtimes compute in the file's precision, float32 as a rule."""


def checks(
    problem: Problem,
    moments: r.Moments | None,
    bounds: r.Bounds | None,
    enclosure: r.Enclosure | None,
    spectrum: DenseSpectrum | None,
    parity: r.Parity | None,
    disagreement: float | None,
) -> list[r.Check]:
    """Theorems that must hold, and agreements that must be close."""
    eps = torch.finfo(problem.objective.dtype).eps
    P = problem.objective.parameters
    results: list[r.Check] = []

    def check(name: str, value: float, tolerance: float) -> None:
        results.append(r.Check(name=name, passed=value <= tolerance, value=value, tolerance=tolerance))

    if problem.structure is not None:
        check("mlp_structure", problem.structure.error, structure_tolerance(problem.objective, problem.logits))
    if parity is not None:
        check("parity", parity.max_abs_error, PARITY_TOLERANCE * max(1.0, float(problem.logits.abs().max())))
    if moments is not None:
        t, q = moments.trace, moments.frobenius_squared
        # t² ≤ P q, as t²/(P q) ≤ 1
        check("trace_within_frobenius", t * t / (P * q) if q > 0 else 0.0, 1 + 100 * eps)
    if spectrum is not None:
        check("hessian_symmetry", spectrum.asymmetry, 1e5 * eps)
    if disagreement is not None:
        check("hessian_product", disagreement, 1e6 * eps)
    if enclosure is not None and bounds is not None:
        scale = max(abs(enclosure.lambda_max.upper), abs(enclosure.lambda_min.lower))
        limits = bounds.wolkowicz_styan
        # Two intervals for one number must meet.
        check("enclosure_meets_bound", enclosure.lambda_max.lower - limits.lambda_max.upper, 1e3 * eps * scale)
        check("enclosure_meets_lower_bound", limits.lambda_max.lower - enclosure.lambda_max.upper, 1e3 * eps * scale)
    if enclosure is not None and spectrum is not None:
        top, bottom = float(spectrum.eigenvalues[0]), float(spectrum.eigenvalues[-1])
        slack = 1e4 * eps * max(abs(top), abs(bottom))
        check("lambda_max_enclosed", _outside(top, enclosure.lambda_max), slack)
        check("lambda_min_enclosed", _outside(bottom, enclosure.lambda_min), slack)
    if spectrum is not None and moments is not None and bounds is not None:
        scale = math.sqrt(spectrum.frobenius_squared)
        slack = 1e5 * eps * scale
        check("spectrum_trace", abs(float(spectrum.eigenvalues.sum()) - moments.trace), slack * math.sqrt(P))
        square = float(spectrum.eigenvalues.square().sum())
        check("spectrum_frobenius", abs(square - moments.frobenius_squared), slack * scale)
        limits = bounds.wolkowicz_styan
        check("lambda_max_within_bound", float(spectrum.eigenvalues[0]) - limits.lambda_max.upper, slack)
        check("lambda_min_within_bound", limits.lambda_min.lower - float(spectrum.eigenvalues[-1]), slack)
    return results


def _outside(value: float, interval: r.CertifiedInterval) -> float:
    """How far a value lies outside an interval."""
    return max(interval.lower - value, value - interval.upper, 0.0)
