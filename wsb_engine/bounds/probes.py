"""An upper bound on ‖H‖_F² from random products, and an estimate of tr H (mathematics.md, section 4).

For Gaussian z_1..z_m and symmetric F, Q = (1/m) Σ ‖F z_i‖² is a mean of sums Σ_j λ_j² χ²_1, whose lower tail gives

    P( ‖F‖_F² > Q / (1 − 2√(ln(1/δ)/m)) ) ≤ δ,      m > 4 ln(1/δ)

(Laurent & Massart 2000, *Adaptive estimation of a quadratic functional by model selection*, Lemma 1). F is what a few
Lanczos steps leave of H: they hold the largest eigenvalues, so that only the rest is estimated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from wsb_engine.spectrum.lanczos import Lanczos

PROBES_PER_LOG = 16
"""Probes for each unit of ln(1/δ): the bound is then twice the estimate."""
DEFLATED = 20
"""Lanczos steps before the probes."""
STREAM = 0x5851F42D
"""Distinguishes the probes' seed from the start vector's."""


@dataclass(frozen=True)
class Probed:
    """What the probes say of H."""

    trace: float
    """Unbiased estimate of tr H."""
    trace_error: float
    """Its standard error."""
    frobenius_squared: float
    """‖H‖_F² is not above this, but for the failure probability."""
    failure_probability: float


def probe_count(failure_probability: float) -> int:
    """m for a failure probability δ."""
    return math.ceil(PROBES_PER_LOG * math.log(1 / failure_probability))


def frobenius_bound(mean_square: float, probes: int, failure_probability: float) -> float:
    """Q / (1 − 2√(ln(1/δ)/m)).

    Args:
        mean_square: Q.
        probes: m, more than 4 ln(1/δ).
        failure_probability: δ.

    Raises:
        ValueError: where m is too small.
    """
    shrinkage = 1 - 2 * math.sqrt(math.log(1 / failure_probability) / probes)
    if shrinkage <= 0:
        raise ValueError(f"{probes} probes bound nothing at a failure probability of {failure_probability:g}")
    return mean_square / shrinkage


def deflate(run: Lanczos, limit: int, progress: Callable[[int], None] = lambda _: None) -> None:
    """Takes the steps before the probes, if they were not taken: no more than ``limit``, nor half of the space."""
    while run.steps < min(DEFLATED, limit, run.dimension // 2):
        run.step()
        progress(run.steps)


def probe(
    run: Lanczos,
    product: Callable[[Tensor], Tensor],
    *,
    failure_probability: float,
    seed: int,
    progress: Callable[[float, int], None] = lambda *_: None,
) -> Probed:
    """Multiplies ``probe_count`` Gaussian vectors in the complement of the run's basis.

    Args:
        run: Some Lanczos steps of H; not advanced.
        product: v (P,) → H v (P,) float64.
        failure_probability: δ of the bound on ‖H‖_F².
        seed: Of the run; the probes have a stream of their own.
        progress: Called with the fraction of probes done and their number; may raise to stop.
    """
    generator = torch.Generator().manual_seed(seed ^ STREAM)
    probes = probe_count(failure_probability)
    squares, forms = torch.zeros(2, probes, dtype=torch.float64)
    for i in range(probes):
        z = torch.randn(run.parameters, generator=generator, dtype=torch.float64).to(run.device)
        g = run.complement(z)
        image = run.complement(product(g))
        squares[i] = torch.linalg.vector_norm(image) ** 2
        forms[i] = g @ image
        progress((i + 1) / probes, run.steps + i + 1)
    T, beta = run.tridiagonal, run.betas[-1] if run.steps else 0.0
    rest = frobenius_bound(float(squares.mean()), probes, failure_probability)
    return Probed(
        trace=float(T.trace()) + float(forms.mean()),
        trace_error=float(forms.std()) / math.sqrt(probes),
        frobenius_squared=float(T.square().sum()) + 2 * beta * beta + rest,
        failure_probability=failure_probability,
    )
