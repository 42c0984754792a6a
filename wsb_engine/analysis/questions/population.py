"""λ_max of the distribution that the rows come from, by one batch (mathematics.md, section 14).

The upper limit rests on E λ_max(H_n) ≥ λ_max(E h), as λ_max is convex; the lower one on E v·h_s v ≤ λ_max(E h) for any
unit vector v that does not depend on row s. Both are limits for a mean over rows.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsb_engine import report as r
from wsb_engine.analysis import krylov
from wsb_engine.analysis.agreement import MeasuredErrors
from wsb_engine.analysis.members import reweighted
from wsb_engine.analysis.monitor import Monitor
from wsb_engine.analysis.problem import Problem
from wsb_engine.bounds.hall import RowMean, normal_quantile, row_mean
from wsb_engine.curvature.folds import FOLDS, Fold, folds
from wsb_engine.curvature.products.autodiff import HessianProduct, interrupted
from wsb_engine.curvature.products.mlp import MLPProduct
from wsb_engine.curvature.products.row_forms import row_forms
from wsb_engine.curvature.team import SplitProduct
from wsb_engine.errors import ModelError, ResourceError, finite
from wsb_engine.memory import ran_out
from wsb_engine.options import Options
from wsb_engine.spectrum.confirmation import outer_pairs
from wsb_engine.spectrum.lanczos import Lanczos
from wsb_engine.spectrum.run import Run, dot
from wsb_engine.spectrum.three_vectors import ThreeVectors

LEAST_ROWS = 200
"""Fewest rows for which limits that hold for many rows are given."""
LARGEST_SHARE = 0.2
"""Largest share of the curvature that one row may hold; beyond it the batch says little of other rows like this one."""
CONVERGED = 1e-3
"""Residual of a fold's eigenvector, relative to its eigenvalue; a worse vector lowers the lower limit, no more."""
EXPECTED_PRODUCTS, MOST_PRODUCTS = 20, 100
"""Products that the eigenvector of a fold typically takes, and that it may take at most."""
FORM_PRODUCTS = 6
"""Products that take as long as both passes over all rows, each in reverse mode through a product."""
WITHIN = 0.1
"""Relative distance for which a number of rows is given."""
LARGEST_COUNT = 1 << 53
"""Largest number of rows that is given."""
LEFT_OUT = ("memory_limit", "not_differentiable", "out_of_memory", "overflow")
"""Codes of errors for which only this part of the report is left out."""


class _RefusedError(Exception):
    """The batch can't answer the question; the arguments are a code and a message."""


def population(
    problem: Problem,
    confidence: float,
    options: Options,
    shared: krylov.Krylov | None,
    enclosure: r.Enclosure | None,
    errors: MeasuredErrors,
    monitor: Monitor,
) -> tuple[r.Population | None, MeasuredErrors]:
    """Bound λ_max of the distribution, in the units of the products.

    Args:
        problem: The analysis.
        confidence: 1 − α.
        options: Seed and limits.
        shared: The Krylov run of the batch.
        enclosure: Encloses the batch's λ_max.
        errors: Errors that the stages measured.
        monitor: Clock, progress, and warnings of what can't be answered.

    Returns:
        The interval, None with a warning if the batch can't give it; and the errors, with that of the rows' forms.

    Raises:
        TimeLimitError: ``time_limit``.
    """
    try:
        shares = _shares(problem)
        if enclosure is None or shared is None:
            raise _RefusedError("population_unavailable", "the batch's λ_max is not enclosed")
        v, value = _eigenvector(shared)
        terms = _terms(problem, v, np.zeros(problem.samples, dtype=bool))
        whole = row_mean(terms, shares)
        errors = replace(errors, rows=(abs(whole.mean - value), abs(value)))
        largest = _largest(terms, whole)
        monitor.multiplied(1)
        crossed = row_mean(_cross_fitted(problem, options, shared, monitor), shares)
    except _RefusedError as error:
        monitor.warn(*error.args)
        return None, errors
    except (ModelError, ResourceError) as error:
        if error.code not in LEFT_OUT or interrupted(error):
            raise
        monitor.warn("population_unavailable", f"{error.message}: the distribution's λ_max is left out")
        return None, errors
    return _part(confidence, enclosure.lambda_max, whole, crossed, largest), errors


def refused(problem: Problem, rows: int | None = None) -> tuple[str, str] | None:
    """Return code and message of why rows are not independent, or too few; None if they are neither.

    Args:
        problem: The analysis.
        rows: Number of rows that count; None for all.
    """
    rows = problem.samples if rows is None else rows
    if problem.objective.coupled:
        return (
            "population_coupled",
            "the logits of a sample depend on the other samples, so that no row has a curvature by itself: the "
            "distribution's λ_max is left out; export the model in evaluation mode",
        )
    if rows < LEAST_ROWS:
        return (
            "population_too_few_rows",
            f"the distribution's λ_max is left out, because its interval holds for many rows and {rows} count: send at "
            f"least {LEAST_ROWS}",
        )
    return None


def _shares(problem: Problem) -> NDArray[np.float64]:
    """Return the share of each row in the divisor of the mean, (N,) of sum 1.

    Raises:
        _RefusedError: if rows are not independent, or too few.
    """
    targets = problem.objective.targets
    mass = problem.objective.loss.mass(targets.y)
    divisor = (targets.weights if mass is None else targets.weights * mass).cpu().numpy()
    reason = refused(problem, int((divisor > 0).sum()))
    if reason is not None:
        raise _RefusedError(*reason)
    shares: NDArray[np.float64] = divisor / divisor.sum()
    return shares


def _eigenvector(shared: krylov.Krylov) -> tuple[Tensor, float]:
    """Return the Ritz vector of the batch's λ_max, (P,), and its Rayleigh quotient by a fresh product."""
    pairs = outer_pairs(shared.run) if shared.pairs is None else shared.pairs
    return pairs.vectors.columns[:, 0].contiguous(), pairs.top.quotient / shared.run.scaling


def _terms(problem: Problem, v: Tensor, without: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return each row's term of v·H v / v·v, (N,); 0 for rows without a weight and those to leave out.

    Raises:
        ResourceError: ``overflow``, ``out_of_memory``.
    """
    objective = problem.objective
    weights = objective.targets.weights.cpu()
    column = torch.where((weights > 0) & ~torch.from_numpy(without), 0, -1)
    V = v.to(objective.dtype).unsqueeze(1)
    forms = curvatures(problem, V, column) / dot(V[:, 0], V[:, 0])
    finite(float(forms.abs().max()), "the curvature of a row")
    return (weights * forms).numpy()


def curvatures(problem: Problem, V: Tensor, column: Tensor) -> Tensor:
    """Compute v·∇²ℓ_s v of each row, (N,) float64 on the CPU, by hand if the model is an MLP; times the scale of H.

    Args:
        problem: The analysis; its rows do not depend on each other.
        V: (P, m) directions in the working dtype.
        column: (N,) int64 on the CPU: the direction of each row; −1 for rows to leave out, whose form is 0.

    Raises:
        ModelError, ResourceError: with a code and advice.
    """
    objective, structure = problem.objective, problem.structure
    if structure is None:

        def alone(row: int, v: Tensor) -> float:
            inputs = {name: x[row : row + 1] for name, x in objective.inputs.items()}
            targets = objective.targets.part(slice(row, row + 1), objective.device)
            one = replace(objective, inputs=inputs, targets=replace(targets, weights=torch.ones_like(targets.weights)))
            product = replace(problem, objective=one, team=None, count=lambda _: None).from_scratch(one)
            return dot(v, product.vector(v))

        # A backward pass of the module's own need not be linear in the weights.
        return row_forms(objective, V, column, alone, tiled=not objective.has_own_backward())
    product: MLPProduct | None = MLPProduct(
        objective, structure.mlp, structure.net, problem.tile, memory=problem.memory, columns=V.shape[1]
    )
    while product is not None:
        try:
            return product.row_forms(V, column)
        except (MemoryError, RuntimeError) as error:
            if interrupted(error) or not ran_out(error):
                raise
        product = product.smaller()
    raise ResourceError(
        "the curvature of a single row does not fit in memory",
        code="out_of_memory",
        advice="Give the analysis more memory, or select fewer parameters.",
    )


def _largest(terms: NDArray[np.float64], whole: RowMean) -> r.SampleShare:
    """Return the row with the largest share of the curvature.

    Raises:
        _RefusedError: if there is no curvature to share, or one row holds too much of it.
    """
    if whole.mean <= 0:
        raise _RefusedError(
            "population_unavailable", "the batch's λ_max is not positive: no limits for that of the distribution"
        )
    row = int(np.abs(terms).argmax())
    share = float(abs(terms[row])) / whole.mean
    if share > LARGEST_SHARE:
        raise _RefusedError(
            "population_one_row",
            f"row {row} holds {100 * share:.3g} % of the curvature along the eigenvector of λ_max, and with more than "
            f"{100 * LARGEST_SHARE:g} % in one row a batch does not tell the distribution's λ_max: send more rows",
        )
    return r.SampleShare(row=row, share=share)


def _cross_fitted(problem: Problem, options: Options, shared: krylov.Krylov, monitor: Monitor) -> NDArray[np.float64]:
    """Return each row's term along the eigenvector of the batch without the row's fold, (N,)."""
    numbers = folds(problem.objective.targets.weights, options.seed).numpy()
    kept = shared.run.steps if shared.basis is not None else 0
    memory = problem.memory - shared.product.dtype.itemsize * shared.product.parameters * kept
    total, still_moving = np.zeros(problem.samples), 0
    for index in range(FOLDS):
        fold = Fold(index, options.seed)
        run = _run(product(problem, fold), options, memory)
        v, converged = _leading(run, min(MOST_PRODUCTS, options.max_products), index / FOLDS, monitor)
        total += _terms(problem, v, numbers != index)
        still_moving += not converged
    monitor.multiplied(1)
    if still_moving:
        monitor.warn(
            "population_not_converged",
            f"the eigenvectors of {still_moving} of {FOLDS} folds still moved after their last product: the lower end "
            "of the distribution's λ_max holds, and might be higher with more max_products",
        )
    return total


def product(problem: Problem, fold: Fold) -> HessianProduct:
    """Return the product of the batch without a fold, shared by all members."""
    if problem.team is not None:
        return SplitProduct(problem.objective, 1, problem.team, problem.count, fold)
    rest = reweighted(problem, fold.left_out(problem.objective.targets.weights))
    return replace(rest, expected=EXPECTED_PRODUCTS).hessian_product(columns=1)


def _run(product: HessianProduct, options: Options, memory: int) -> Run:
    """Set up a run whose start depends on the seed alone: the batch's eigenvector would know the rows left out."""
    P, unit = product.parameters, torch.finfo(product.dtype).eps / 2
    most = min(MOST_PRODUCTS, options.max_products, P)
    fits = krylov.basis_bytes(product, most) <= memory
    kind = Lanczos if fits and options.basis != "three_vectors" else ThreeVectors
    return kind(product.vector, P, product.device, options.seed, unit)


def _leading(run: Run, most: int, before: float, monitor: Monitor) -> tuple[Tensor, bool]:
    """Take steps until the largest Ritz vector has converged.

    Args:
        run: The run.
        most: Most steps.
        before: Fraction of the stage that is done.
        monitor: Clock and progress.

    Returns:
        The vector, (P,), and whether it has converged.
    """
    converged = False
    while not (converged or run.ended or run.steps >= most):
        run.step()
        values, inner = torch.linalg.eigh(run.tridiagonal)
        residual = run.betas[-1] * float(inner[-1, -1].abs())
        converged = residual <= CONVERGED * float(values[-1].abs())
        monitor.report(before + run.steps / most / FOLDS, run.products)
    return run.combinations(inner[:, -1:])[:, 0], converged or run.ended


def _part(
    confidence: float, top: r.CertifiedInterval, whole: RowMean, crossed: RowMean, largest: r.SampleShare
) -> r.Population:
    lower, upper = crossed.lower(confidence), whole.upper(confidence, centre=top.upper)
    lower = min(lower, upper)
    deviations = normal_quantile(confidence) * max(whole.deviation, crossed.deviation) / (WITHIN * whole.mean)
    return r.Population(
        confidence=confidence,
        lambda_max=r.Interval(lower=lower, upper=upper),
        # Biases B and −B K/(K − 1) cancel.
        estimate=(FOLDS * whole.mean + (FOLDS - 1) * crossed.mean) / (2 * FOLDS - 1),
        factor=max(upper / top.lower, top.upper / lower) if lower > 0 and top.lower > 0 else None,
        rows=whole.rows,
        rows_for_ten_percent=math.ceil(min(deviations**2, LARGEST_COUNT)),
        largest_share=largest,
        in_sample=_row_curvature(whole),
        cross_fitted=_row_curvature(crossed),
        folds=FOLDS,
    )


def _row_curvature(mean: RowMean) -> r.RowCurvature:
    return r.RowCurvature(mean=mean.mean, standard_deviation=mean.deviation, skewness=mean.skewness)
