"""Spectral density by stochastic Lanczos quadrature (Golub & Meurant 2010; Ghorbani, Krishnan, Xiao 2019).

For a random unit start v the Ritz values θ_j, weighted by the squared first components of T's eigenvectors, are a
quadrature rule for the density seen by v; the mean over starts estimates (1/P) Σ_i δ(λ − λ_i). Each node is drawn as a
Gaussian.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from wsb_engine.spectrum.lanczos import Lanczos

STARTS = 8
STEPS = 60
GRID = 512
WIDTH = 1 / 128
"""Standard deviation of a node's Gaussian, as a share of the range of nodes."""
MARGIN = 6.0
"""Standard deviations of grid beyond the outermost nodes."""


@dataclass(frozen=True)
class DensityEstimate:
    """A density on a grid, and its first two moments with their standard errors over the starts."""

    grid: Tensor
    """(512,) float64, ascending eigenvalues λ"""
    values: Tensor
    """(512,) float64, the density at each of them"""
    mean: float
    """Estimate of tr H / P."""
    mean_error: float
    second_moment: float
    """Estimate of ‖H‖_F² / P."""
    second_moment_error: float
    sigma: float
    """Standard deviation of the Gaussians; the second moment of ``values`` is larger by its square."""
    products: int


def density(
    product: Callable[[Tensor], Tensor],
    parameters: int,
    device: torch.device,
    *,
    seed: int,
    unit: float,
    steps: int = STEPS,
    progress: Callable[[float, int], None] = lambda *_: None,
) -> DensityEstimate:
    """Estimate the density of the eigenvalues of H.

    Args:
        product: v (P,) → H v (P,) in float64.
        parameters: P.
        device: Device of the vectors.
        seed: Seed of the first start vector; the others follow.
        unit: Unit roundoff of the products' dtype.
        steps: Lanczos steps for each start.
        progress: Called with the fraction done and the number of products so far; may raise to stop.
    """
    nodes, weights, products = [], [], 0
    for start in range(STARTS):
        lanczos = Lanczos(product, parameters, device, seed + start, unit)
        while not lanczos.exhausted and lanczos.steps < steps and lanczos.first_breakdown is None:
            lanczos.step()
            progress((start + lanczos.steps / steps) / STARTS, products + lanczos.steps)
        values, vectors = torch.linalg.eigh(lanczos.tridiagonal)
        nodes.append(values / lanczos.scaling)
        weights.append(vectors[0].square())
        products += lanczos.steps
    means = torch.stack([(w * x).sum() for x, w in zip(nodes, weights, strict=True)])
    seconds = torch.stack([(w * x * x).sum() for x, w in zip(nodes, weights, strict=True)])
    largest = seconds.max().clamp_min(5e-324)
    lowest, highest = min(float(x[0]) for x in nodes), max(float(x[-1]) for x in nodes)
    sigma = max(highest - lowest, 1e-12 * max(abs(highest), abs(lowest)), 1e-300) * WIDTH
    grid = torch.linspace(lowest - MARGIN * sigma, highest + MARGIN * sigma, GRID, dtype=torch.float64)
    values = sum(
        (w / STARTS) @ torch.exp(-0.5 * ((grid - x.unsqueeze(1)) / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))
        for x, w in zip(nodes, weights, strict=True)
    )
    return DensityEstimate(
        grid=grid,
        values=torch.as_tensor(values),
        mean=float(means.mean()),
        mean_error=float(means.std() / math.sqrt(STARTS)),
        second_moment=float(seconds.mean()),
        # Divided by the largest, so that no square overflows or underflows.
        second_moment_error=float(largest * (seconds / largest).std() / math.sqrt(STARTS)),
        sigma=sigma,
        products=products,
    )
