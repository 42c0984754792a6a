"""The largest eigenvalues by continuing a Lanczos run, each with a fresh residual (mathematics.md, section 7).

A Krylov space contains only one direction of a repeated eigenvalue. So the complement of the eigenvectors found is
searched from fresh random starts, until it holds nothing larger, except with the failure probability.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from wsb_engine.bounds.lanczos_polynomial import Recurrence, largest_eigenvalue_bound
from wsb_engine.spectrum.lanczos import Lanczos

RESIDUAL = 1e-9
"""Residual at which a pair has converged, relative to ‖H‖; in float32 ``RESIDUAL_UNITS`` is larger and applies."""
RESIDUAL_UNITS = 64.0
"""Smallest residual that can be required, in units of rounding."""
MISSED = 10.0
"""An eigenvalue counts as missed if it exceeds the last one found by more than this many residuals."""
OBSCURED = 1e-3
"""Largest part of the complement's spectrum, relative to ‖H‖, that rounding may hide from a conclusive search."""


@dataclass(frozen=True)
class TopEigenvalues:
    """The k largest eigenvalues found, descending."""

    eigenvalues: Tensor
    """(k,)"""
    residuals: Tensor
    """(k,) ‖Hv − θv‖ of each, from a fresh product."""
    eigenvectors: Tensor
    """(P, k) orthonormal columns, on the working device."""
    upper_bounds: list[float | None]
    """Certified upper bounds on the k largest eigenvalues of H; None if there is no bound."""
    converged: bool
    """True if all fresh residuals are small and no larger eigenvalue is missing, up to the failure probability."""
    products: int

    def divided(self, factor: float) -> TopEigenvalues:
        """Return the result for H, given that for factor · H."""
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
    lanczos: Lanczos,
    count: int,
    *,
    max_products: int,
    failure_probability: float,
    seed: int,
    progress: Callable[[int], None] = lambda _: None,
) -> TopEigenvalues:
    """Continue the run until the ``count`` largest pairs have converged, then search for eigenvalues that it missed.

    Args:
        lanczos: A Lanczos run; advanced.
        count: k.
        max_products: Limit on the run's products, earlier ones included; the searches may take as many again.
        failure_probability: Failure probability of each search that finds nothing.
        seed: Seed of the searches' start vectors.
        progress: Called with the number of products so far; may raise to stop.

    Returns:
        Eigenvalues of σH, without upper bounds.
    """
    count = min(count, lanczos.parameters)
    tolerance = max(RESIDUAL, RESIDUAL_UNITS * lanczos.unit)
    converged = False
    while not converged and not lanczos.exhausted and lanczos.steps < max_products:
        lanczos.step()
        progress(lanczos.steps)
        if lanczos.steps >= count and (lanczos.steps < 40 or lanczos.steps % 5 == 0):
            _, inner = torch.linalg.eigh(lanczos.tridiagonal)
            estimates = lanczos.betas[-1] * inner[-1, -count:].abs()
            converged = bool((estimates <= tolerance / 2 * lanczos.norm_estimate).all())
    values, vectors = lanczos.ritz_pairs(count)
    found = _Pairs(values.flip(0), vectors.flip(1).T.contiguous())
    products, complete, norm = lanczos.steps, lanczos.exhausted, lanczos.norm_estimate
    while converged and not complete and products < 2 * max_products:
        search = Lanczos(
            lanczos.image, lanczos.parameters, vectors.device, seed + products, lanczos.unit, found.vectors
        )
        budget, floor = 2 * max_products - products, float(found.values[-1])
        pair = _search(search, floor, norm, budget, failure_probability, progress, products)
        products += search.steps
        if pair is None:
            complete = _nothing_above(search, floor, norm, failure_probability)
            break
        found = found.with_one_more(*pair)
    fresh = [
        float(torch.linalg.vector_norm(lanczos.image(vector) - float(value) * vector))
        for value, vector in zip(found.values, found.vectors, strict=True)
    ]
    residuals = torch.tensor(fresh, dtype=torch.float64)
    confirmed = complete and bool((residuals <= tolerance * norm).all())
    bounds: list[float | None] = [None] * len(fresh)
    return TopEigenvalues(found.values, residuals, found.vectors.T, bounds, confirmed, products + len(fresh))


def _search(
    search: Lanczos,
    floor: float,
    norm: float,
    budget: int,
    delta: float,
    progress: Callable[[int], None],
    before: int,
) -> tuple[float, Tensor] | None:
    """Find a converged pair above ``floor`` in the complement.

    Returns:
        Its value and vector; None if there is none, or the budget ran out.
    """
    tolerance = max(RESIDUAL, RESIDUAL_UNITS * search.unit)
    while not search.exhausted and search.steps < budget:
        search.step()
        progress(before + search.steps)
        if _nothing_above(search, floor, norm, delta):
            return None
        values, inner = torch.linalg.eigh(search.tridiagonal)
        value, residual = float(values[-1]) / search.scaling, search.betas[-1] * float(inner[-1, -1].abs())
        if value > floor + tolerance * norm and residual / search.scaling <= tolerance / 2 * norm:
            return value, search.combinations(inner[:, -1:])[:, 0]
    return None


def _nothing_above(search: Lanczos, floor: float, norm: float, delta: float) -> bool:
    """Return whether the complement holds no eigenvalue above ``floor``, up to accuracy and what rounding hides.

    A copy of the last value found does not count.
    """
    if search.dimension == 0:
        return True
    first, sigma = search.first_breakdown or search.steps, search.scaling
    largest = search.ritz_values()[-1] / sigma
    missed = MISSED * max(RESIDUAL, RESIDUAL_UNITS * search.unit) * norm
    if search.exhausted or largest > floor + missed:
        return largest <= floor + missed
    # Rounding in products grows with ‖H‖, not with the norm of H in the complement.
    size = max(32 * search.unit * norm * sigma, *search.product_rounding(first))
    epsilons = [error + size for error in search.errors[:first]]
    recurrence = Recurrence(search.alphas[:first], search.betas[:first], search.gammas[:first], epsilons)
    bound = largest_eigenvalue_bound(recurrence, search.dimension, delta) / sigma
    if bound <= floor + missed:
        return True
    hidden = largest_eigenvalue_bound(recurrence.settled, search.dimension, delta) / sigma
    return hidden <= floor + OBSCURED * norm and bound - floor <= 1.1 * (hidden - floor)
