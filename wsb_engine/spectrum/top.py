"""The largest eigenvalues by continuing a Krylov run, each with a fresh residual (mathematics.md, section 7).

A Krylov space holds one direction of a repeated eigenvalue. So the complement of what was found is searched from fresh
random starts, until nothing larger is left there but for the failure probability.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from wsb_engine.bounds.lanczos_polynomial import Recurrence, largest_eigenvalue_bound
from wsb_engine.spectrum.lanczos import Lanczos

RESIDUAL = 1e-9
"""Residual at which a pair has converged, relative to ‖H‖; float32 has to do with ``RESIDUAL_UNITS``."""
RESIDUAL_UNITS = 64.0
"""Units of rounding below which no residual can be asked to lie."""
NEWS = 10.0
"""Residuals by which an eigenvalue has to lie above the last one found to be missed."""
OBSCURED = 1e-3
"""What rounding hides of the complement, relative to ‖H‖, beyond which the search has shown nothing."""


@dataclass(frozen=True)
class TopEigenvalues:
    """The k largest eigenvalues found, descending."""

    eigenvalues: Tensor
    """(k,)"""
    residuals: Tensor
    """(k,) ‖Hv − θv‖, each by a product of its own."""
    eigenvectors: Tensor
    """(P, k) orthonormal columns, on the working device."""
    upper_bounds: list[float | None]
    """Certified: the i-th eigenvalue of H is not above the i-th of these; None if that is not known."""
    converged: bool
    """True if all fresh residuals are small and nothing larger was left out, but for the failure probability."""
    products: int

    def divided(self, factor: float) -> TopEigenvalues:
        """The same for H from factor · H."""
        bounds = [None if bound is None else bound / factor for bound in self.upper_bounds]
        values, residuals = self.eigenvalues / factor, self.residuals / factor
        return replace(self, eigenvalues=values, residuals=residuals, upper_bounds=bounds)


@dataclass
class _Pairs:
    values: Tensor
    """(k,) descending"""
    vectors: Tensor
    """(k, P) orthonormal rows"""

    def with_one_more(self, value: float, vector: Tensor) -> _Pairs:
        values = torch.cat([self.values, torch.tensor([value], dtype=torch.float64)])
        vectors = torch.cat([self.vectors, vector.unsqueeze(0)])
        order = torch.argsort(values, descending=True, stable=True)[: len(self.values)]
        return _Pairs(values[order], vectors[order.to(vectors.device)])


def top_eigenvalues(
    run: Lanczos,
    count: int,
    *,
    max_products: int,
    failure_probability: float,
    seed: int,
    progress: Callable[[int], None] = lambda _: None,
) -> TopEigenvalues:
    """Continue the run until the ``count`` largest pairs have converged, then search for what it may have missed.

    Args:
        run: A Lanczos run, advanced by this.
        count: k.
        max_products: Limit for the run, earlier products included, and again for the search.
        failure_probability: Failure probability of each search that finds nothing.
        seed: Seed of the searches' starts.
        progress: Called with the products so far; may raise to stop.

    Returns:
        Eigenvalues of σH, in the units of the run, without upper bounds.
    """
    count = min(count, run.parameters)
    small = max(RESIDUAL, RESIDUAL_UNITS * run.unit)
    converged = False
    while not converged and not run.exhausted and run.steps < max_products:
        run.step()
        progress(run.steps)
        if run.steps >= count and (run.steps < 40 or run.steps % 5 == 0):
            _, inner = torch.linalg.eigh(run.tridiagonal)
            estimates = run.betas[-1] * inner[-1, -count:].abs()
            converged = bool((estimates <= small / 2 * run.scale).all())
    values, vectors = run.ritz_pairs()
    found = _Pairs(values[-count:].flip(0), vectors[:, -count:].flip(1).T.contiguous())
    products, complete = run.steps, run.exhausted
    while converged and not complete and products < 2 * max_products:
        search = Lanczos(run.image, run.parameters, found.vectors.device, seed + products, run.unit, found.vectors)
        budget = 2 * max_products - products
        more = _search(search, float(found.values[-1]), run.scale, budget, failure_probability, progress, products)
        products += search.steps
        if more is None:
            complete = _nothing_above(search, float(found.values[-1]), run.scale, failure_probability)
            break
        found = found.with_one_more(*more)
    fresh = [
        float(torch.linalg.vector_norm(run.image(vector) - float(value) * vector))
        for value, vector in zip(found.values, found.vectors, strict=True)
    ]
    residuals = torch.tensor(fresh, dtype=torch.float64)
    confirmed = complete and bool((residuals <= small * run.scale).all())
    bounds: list[float | None] = [None] * len(fresh)
    return TopEigenvalues(found.values, residuals, found.vectors.T, bounds, confirmed, products + len(fresh))


def _search(
    search: Lanczos,
    floor: float,
    scale: float,
    budget: int,
    delta: float,
    progress: Callable[[int], None],
    before: int,
) -> tuple[float, Tensor] | None:
    """A converged pair of the complement above ``floor``, or None once there is none, or the budget is used up."""
    small = max(RESIDUAL, RESIDUAL_UNITS * search.unit)
    while not search.exhausted and search.steps < budget:
        search.step()
        progress(before + search.steps)
        if _nothing_above(search, floor, scale, delta):
            return None
        values, inner = torch.linalg.eigh(search.tridiagonal)
        value, residual = float(values[-1]) / search.scaling, search.betas[-1] * float(inner[-1, -1].abs())
        if value > floor + small * scale and residual / search.scaling <= small / 2 * scale:
            return value, search.basis.T @ inner[:, -1].to(search.basis.device)
    return None


def _nothing_above(search: Lanczos, floor: float, scale: float, delta: float) -> bool:
    """True if the complement holds nothing above ``floor``, but for the accuracy of values and what rounding hides.

    A copy of the last value found is no news.
    """
    if search.dimension == 0:
        return True
    first, sigma = search.first_breakdown or search.steps, search.scaling
    largest = search.leading_ritz_values(search.steps)[-1] / sigma
    news = NEWS * max(RESIDUAL, RESIDUAL_UNITS * search.unit) * scale
    if search.exhausted or largest > floor + news:
        return largest <= floor + news
    # Products of H round by its own size, not by that of the complement.
    size = max(32 * search.unit * scale * sigma, *search.product_rounding(first))
    epsilons = [error + size for error in search.errors[:first]]
    recurrence = Recurrence(search.alphas[:first], search.betas[:first], search.gammas[:first], epsilons)
    bound = largest_eigenvalue_bound(recurrence, search.dimension, delta) / sigma
    if bound <= floor + news:
        return True
    hidden = largest_eigenvalue_bound(recurrence.settled, search.dimension, delta) / sigma
    return hidden <= floor + OBSCURED * scale and bound - floor <= 1.1 * (hidden - floor)
