"""The stage of an analysis that computes the spectrum: dense, its largest eigenvalues, or its density."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from wsb_engine import report as r
from wsb_engine.analysis import agreement, krylov
from wsb_engine.analysis.agreement import MeasuredErrors
from wsb_engine.analysis.monitor import Monitor
from wsb_engine.analysis.problem import Problem
from wsb_engine.bounds.certificates import Premises
from wsb_engine.options import Options
from wsb_engine.spectrum.dense import dense_spectrum, form_hessian
from wsb_engine.spectrum.density import DensityEstimate


def form(problem: Problem, monitor: Monitor) -> Tensor:
    """Form the Hessian, (P, P) float64, column by column."""
    return form_hessian(problem.hessian_product(), memory=problem.memory, progress=monitor.report)


def spectrum(
    problem: Problem,
    options: Options,
    shared: krylov.Krylov | None,
    premises: Premises,
    hessian: Tensor | None,
    errors: MeasuredErrors,
    monitor: Monitor,
) -> tuple[r.SpectrumResult | None, MeasuredErrors]:
    """Compute what the options ask for of the spectrum.

    Args:
        problem: The analysis.
        options: Its options.
        shared: The Krylov run, if there is one.
        premises: What certified upper bounds on the largest eigenvalues rest on.
        hessian: The dense Hessian, if it was formed before.
        errors: Errors measured so far.
        monitor: Clock, progress and warnings.

    Returns:
        The spectrum, None if none is asked for, and the errors with those of the dense Hessian.

    Raises:
        ResourceError: ``memory_limit``, ``overflow`` or ``time_limit``.
    """
    drawn = krylov.spectral_density(shared, options, monitor) if options.density and shared is not None else None
    density = None if drawn is None else _density(drawn)
    if options.spectrum == "dense":
        H = form(problem, monitor) if hessian is None else hessian
        errors = agreement.with_dense(errors, problem, H, options.seed)
        dense = dense_spectrum(H)  # overwrites H
        result = r.SpectrumResult(
            method="dense",
            eigenvalues=dense.eigenvalues.tolist(),
            residuals=None,
            upper_bounds=None,
            density=density,
        )
        return result, replace(errors, asymmetry=dense.asymmetry)
    if options.spectrum == "top" and shared is not None:
        found = krylov.top(shared, premises, options, monitor)
        result = r.SpectrumResult(
            method="lanczos",
            eigenvalues=found.eigenvalues.tolist(),
            residuals=found.residuals.tolist(),
            upper_bounds=found.upper_bounds,
            density=density,
        )
        return result, errors
    if density is None:
        return None, errors
    result = r.SpectrumResult(method="lanczos", eigenvalues=[], residuals=[], upper_bounds=None, density=density)
    return result, errors


def _density(drawn: DensityEstimate) -> r.Density:
    return r.Density(
        grid=drawn.grid.tolist(),
        values=drawn.values.tolist(),
        sigma=drawn.sigma,
        mean=drawn.mean,
        mean_error=drawn.mean_error,
        second_moment=drawn.second_moment,
        second_moment_error=drawn.second_moment_error,
    )
