"""The largest eigenvalues by continuing a Krylov run, each with a fresh residual and, where it can be had, a bound.

In the basis [Q Q⊥], H is below [ T  βe_k q ; qᵀβe_kᵀ  φI ] in the Loewner order (mathematics.md, sections 5 and 7), so
that its i-th eigenvalue lies between θ_i and the i-th largest of the bordered matrix's, as long as that is above φ.

A Krylov space holds one direction of a repeated eigenvalue. So the complement of what was found is searched from fresh
random starts, until nothing larger is left there but for the failure probability.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from wsb_engine.bounds.deflation import bordered_eigenvalues
from wsb_engine.bounds.lanczos_polynomial import largest_eigenvalue_bound
from wsb_engine.spectrum.lanczos import Lanczos

RESIDUAL = 1e-9
"""At which a pair has converged, relative to ‖H‖."""


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
    """Certified: the i-th eigenvalue of H is not above the i-th of these; None where the argument doesn't reach."""
    converged: bool
    """Whether all residuals are small and nothing larger was left out, but for the failure probability."""
    products: int


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
    product: Callable[[Tensor], Tensor],
    count: int,
    *,
    largest_left: Callable[[Lanczos], float | None],
    max_products: int,
    failure_probability: float,
    seed: int,
    progress: Callable[[int], None] = lambda _: None,
) -> TopEigenvalues:
    """Continues the run until the ``count`` largest pairs have converged, then searches for what it may have missed.

    Args:
        run: A Lanczos run, advanced by this.
        product: v (P,) → H v (P,) float64.
        count: k.
        largest_left: φ for the present basis, or None where there are no exact moments.
        max_products: For the run, those taken before included, and as many again for the search.
        failure_probability: Of each search that finds nothing.
        seed: Of the searches' starts.
        progress: Called with the products so far; may raise to stop.
    """
    count = min(count, run.parameters)
    converged = False
    while not converged and not run.exhausted and run.steps < max_products:
        run.step()
        progress(run.steps)
        if run.steps >= count and (run.steps < 40 or run.steps % 5 == 0):
            _, inner = torch.linalg.eigh(run.tridiagonal)
            estimates = run.betas[-1] * inner[-1, -count:].abs()
            converged = bool((estimates <= RESIDUAL * run.scale).all())
    values, vectors = run.ritz_pairs()
    found = _Pairs(values[-count:].flip(0), vectors[:, -count:].flip(1).T.contiguous())
    bounds = _upper_bounds(run, found, largest_left(run))
    products, complete = run.steps, run.exhausted
    while converged and not complete and products < 2 * max_products:
        search = Lanczos(product, run.parameters, found.vectors.device, seed + products, run.unit, found.vectors)
        budget = 2 * max_products - products
        more = _search(search, float(found.values[-1]), run.scale, budget, failure_probability, progress, products)
        products += search.steps
        if more is None:
            complete = _nothing_above(search, float(found.values[-1]), run.scale, failure_probability)
            break
        found = found.with_one_more(*more)
    fresh = [
        float(torch.linalg.vector_norm(product(vector) - float(value) * vector))
        for value, vector in zip(found.values, found.vectors, strict=True)
    ]
    residuals = torch.tensor(fresh, dtype=torch.float64)
    return TopEigenvalues(found.values, residuals, found.vectors.T, bounds, complete, products + len(fresh))


def _upper_bounds(run: Lanczos, found: _Pairs, phi: float | None) -> list[float | None]:
    if run.exhausted:
        return list(found.values.tolist())
    if phi is None:
        return [None] * len(found.values)
    ceiling = bordered_eigenvalues(run.tridiagonal, run.betas[-1], phi).flip(0).tolist()
    return [ceiling[i] if ceiling[i] > phi else None for i in range(len(found.values))]


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
    while not search.exhausted and search.steps < budget:
        search.step()
        progress(before + search.steps)
        if _nothing_above(search, floor, scale, delta):
            return None
        values, inner = torch.linalg.eigh(search.tridiagonal)
        residual = search.betas[-1] * float(inner[-1, -1].abs())
        if float(values[-1]) > floor + RESIDUAL * scale and residual <= RESIDUAL * scale:
            return float(values[-1]), search.basis.T @ inner[:, -1].to(search.basis.device)
    return None


def _nothing_above(search: Lanczos, floor: float, scale: float, delta: float) -> bool:
    if search.dimension == 0:
        return True
    first = search.first_breakdown or search.steps
    ritz = search.leading_ritz_values(first)
    bound = (
        max(ritz) if search.exhausted else largest_eigenvalue_bound(ritz, search.betas[:first], search.dimension, delta)
    )
    # Ten times the accuracy of the values themselves: a copy of the last one is no news.
    return bound <= floor + 10 * RESIDUAL * scale
