"""An upper bound on ‖H‖_F² from random products, and an estimate of tr H (mathematics.md, section 4).

For Gaussian z_1..z_m and symmetric F, Q = (1/m) Σ ‖F z_i‖² bounds ‖F‖_F² from above by Q/x, but for a probability that
``frobenius_factor`` says. F is what a few Lanczos steps leave of H: they hold the largest eigenvalues, so that only the
rest is estimated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from wsb_engine.bounds.rounding import frobenius_factor
from wsb_engine.spectrum.lanczos import Lanczos

EXCESS = 4.0
"""The bound on ‖F‖_F² is this many times the estimate: twice on ‖F‖_F, which only has to be below λ_max."""
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
    """m for a failure probability δ, so that the bound is ``EXCESS`` times the estimate."""
    x = 1 / EXCESS
    return math.ceil(2 * math.log(1 / failure_probability) / (x - 1 - math.log(x)))


def deflate(run: Lanczos, limit: int, progress: Callable[[int], None] = lambda _: None) -> None:
    """Takes the steps before the probes, if they were not taken: no more than ``limit``, nor half of the space."""
    while run.steps < min(DEFLATED, limit, run.dimension // 2):
        run.step()
        progress(run.steps)


def probe(
    run: Lanczos,
    *,
    failure_probability: float,
    seed: int,
    progress: Callable[[float, int], None] = lambda *_: None,
) -> Probed:
    """Multiplies ``probe_count`` Gaussian vectors in the complement of the run's basis.

    Args:
        run: Some Lanczos steps of H; not advanced.
        failure_probability: δ of the bound on ‖H‖_F².
        seed: Seed of the run; the probes have another stream.
        progress: Called with the fraction of probes done and their number; may raise to stop.
    """
    generator = torch.Generator().manual_seed(seed ^ STREAM)
    probes = probe_count(failure_probability)
    squares, forms = torch.zeros(2, probes, dtype=torch.float64)
    for i in range(probes):
        z = torch.randn(run.parameters, generator=generator, dtype=torch.float64).to(run.device)
        g = run.complement(z)
        image = run.complement(run.image(g))
        squares[i] = torch.linalg.vector_norm(image) ** 2
        forms[i] = g @ image
        progress((i + 1) / probes, run.steps + i + 1)
    T, beta = run.tridiagonal, run.betas[-1] if run.steps else 0.0
    rest = float(squares.mean()) / frobenius_factor(probes, failure_probability)
    eta = math.sqrt(2) * (run.factorisation_error + math.sqrt(run.steps) * max(run.product_rounding(), default=0.0))
    whole = math.sqrt(float(T.square().sum()) + 2 * beta * beta + rest) + eta
    sigma = run.scaling
    return Probed(
        trace=(float(T.trace()) + float(forms.mean())) / sigma,
        trace_error=float(forms.std()) / math.sqrt(probes) / sigma,
        frobenius_squared=(whole / sigma) * (whole / sigma),
        failure_probability=failure_probability,
    )
