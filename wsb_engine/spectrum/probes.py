"""An upper bound on ‖H‖_F² from random products, and an estimate of tr H (mathematics.md, section 4).

For Gaussian z_1..z_m, symmetric F and Q = (1/m) Σ ‖F z_i‖², Q/x is an upper bound on ‖F‖_F² except with a probability
that ``frobenius_factor`` relates to x. F is H in the complement of a few Lanczos vectors; these capture the largest
eigenvalues, so that only the rest is estimated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from wsb_engine.bounds.rounding import frobenius_factor
from wsb_engine.random_vectors import gaussian
from wsb_engine.spectrum.lanczos import Lanczos

EXCESS = 4.0
"""1/x: ratio of the bound on ‖F‖_F² to its estimate Q; a ratio of 2 for ‖F‖_F, which only has to be below λ_max."""
DEFLATED = 20
"""Lanczos steps before the probes."""
STREAM = 0x5851F42D
"""Separates the random stream of the probes from that of the start vector."""


@dataclass(frozen=True)
class Probed:
    """Moments of H as the probes estimate and bound them."""

    trace: float
    """Unbiased estimate of tr H."""
    trace_error: float
    """Its standard error."""
    frobenius_squared: float
    """Upper bound on ‖H‖_F², except with the failure probability."""
    failure_probability: float
    count: int
    steps: int
    """Lanczos steps before them."""
    mean_square: float
    """Q."""
    factorisation_error: float
    """η."""


def probe_count(failure_probability: float) -> int:
    """Return the number m of probes for a failure probability δ that makes the bound ``EXCESS`` times the estimate."""
    x = 1 / EXCESS
    return math.ceil(2 * math.log(1 / failure_probability) / (x - 1 - math.log(x)))


def deflate(lanczos: Lanczos, limit: int, progress: Callable[[int], None] = lambda _: None) -> None:
    """Take the Lanczos steps before the probes: ``DEFLATED``, at most ``limit``, and at most half of the space."""
    while lanczos.steps < min(DEFLATED, limit, lanczos.dimension // 2):
        lanczos.step()
        progress(lanczos.steps)


def probe(
    lanczos: Lanczos,
    *,
    failure_probability: float,
    seed: int,
    progress: Callable[[float, int], None] = lambda *_: None,
) -> Probed:
    """Estimate the moments with ``probe_count`` Gaussian vectors, projected onto the complement of the basis.

    Args:
        lanczos: A Lanczos run with a few steps; not advanced.
        failure_probability: δ of the bound on ‖H‖_F².
        seed: Seed of the run; the probes use another random stream.
        progress: Called with the fraction of probes done and the number of products so far; may raise to stop.

    Returns:
        Moments in the units of H.
    """
    probes = probe_count(failure_probability)
    squares, forms = torch.zeros(2, probes, dtype=torch.float64)
    for i in range(probes):
        z = gaussian(lanczos.parameters, seed ^ STREAM, i, lanczos.device)
        g = lanczos.complement(z)
        image = lanczos.complement(lanczos.image(g))
        squares[i] = torch.linalg.vector_norm(image) ** 2
        forms[i] = g @ image
        progress((i + 1) / probes, lanczos.steps + i + 1)
    T, beta = lanczos.tridiagonal, lanczos.betas[-1] if lanczos.steps else 0.0
    mean_square = float(squares.mean())
    rest = mean_square / frobenius_factor(probes, failure_probability)
    noise = math.sqrt(lanczos.steps) * max(lanczos.product_rounding(), default=0.0)
    eta = math.sqrt(2) * (lanczos.factorisation_error + noise)
    whole = math.sqrt(float(T.square().sum()) + 2 * beta * beta + rest) + eta
    sigma = lanczos.scaling
    return Probed(
        trace=(float(T.trace()) + float(forms.mean())) / sigma,
        trace_error=float(forms.std()) / math.sqrt(probes) / sigma,
        frobenius_squared=(whole / sigma) * (whole / sigma),
        failure_probability=failure_probability,
        count=probes,
        steps=lanczos.steps,
        mean_square=mean_square / sigma / sigma,
        factorisation_error=eta / sigma,
    )
