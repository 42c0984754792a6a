"""The stages of an analysis that multiply by the Hessian: enclosure, largest eigenvalues, density."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from wsb_engine import report as r
from wsb_engine.bounds.deflation import remainder
from wsb_engine.bounds.enclosure import SLACK, Enclosures, End, ExactMoments, Moments, enclose, widened
from wsb_engine.bounds.probes import Probed, deflate
from wsb_engine.bounds.probes import probe as probed
from wsb_engine.curvature.hessian_product import HessianProduct, Objective
from wsb_engine.options import Options
from wsb_engine.problem import Problem
from wsb_engine.run import Run
from wsb_engine.spectrum.density import STEPS, DensityEstimate, density
from wsb_engine.spectrum.lanczos import ROWS, Lanczos
from wsb_engine.spectrum.top import TopEigenvalues, top_eigenvalues

CONVERGENCE_ROWS = 100
"""At most so many steps of an enclosure are in the report."""
FLOAT32_SAFETY = 4.0
"""Ends of a float32 enclosure are moved outwards by this many times the error that was measured against float64."""


@dataclass(frozen=True)
class Krylov:
    """A run that the stages share, and its product."""

    run: Lanczos
    product: HessianProduct
    limit: int
    """Steps that options and memory allow."""


def wanted(options: Options) -> bool:
    """Whether any stage of these options multiplies single vectors."""
    return options.enclosure or options.density or options.spectrum == "top"


def krylov(problem: Problem, options: Options, run: Run) -> Krylov:
    """Starts a run at the seed; multiplies nothing yet."""
    product = problem.hessian_product(columns=1)
    wanted = min(options.max_products, product.parameters)
    # The basis is kept in float64, besides a few vectors for the product itself.
    fits = max(1, problem.memory // (8 * product.parameters) - ROWS)
    if fits < wanted:
        run.warn("enclosure_memory", f"the memory limit holds {fits} products of the {wanted} that were allowed")
    unit = torch.finfo(product.dtype).eps
    lanczos = Lanczos(product.vector, product.parameters, product.device, options.seed, unit=unit)
    return Krylov(lanczos, product, min(wanted, fits))


def probe(shared: Krylov, seed: int, failure_probability: float, run: Run) -> tuple[Probed, tuple[float, float] | None]:
    """The moments by random products, and the outermost Ritz values, moved inwards for rounding, of steps before them.

    Raises:
        TimeLimitError: ``time_limit``.
    """
    lanczos = shared.run
    deflate(lanczos, shared.limit, progress=lambda products: run.report(0.0, products))
    found = probed(
        lanczos, shared.product.vector, failure_probability=failure_probability, seed=seed, progress=run.report
    )
    if not lanczos.steps:
        return found, None
    values = lanczos.leading_ritz_values(lanczos.steps)
    slack = SLACK * lanczos.unit * math.sqrt(lanczos.steps) * lanczos.scale
    return found, (values[0] + slack, values[-1] - slack)


def enclosure(problem: Problem, shared: Krylov, moments: Moments | None, options: Options, run: Run) -> r.Enclosure:
    """Both ends of the spectrum, as tight as options, memory and time allow."""
    found = enclose(
        shared.run,
        moments=moments,
        failure_probability=options.failure_probability,
        relative_gap=options.relative_gap,
        max_products=shared.limit,
        both=options.ends == "both",
        progress=lambda now: run.tell(now.products / shared.limit, now.products),
        expired=lambda: run.expired,
    )
    if shared.product.dtype == torch.float32:
        found = widened(found, FLOAT32_SAFETY * _float32_error(problem, shared))
    if found.lambda_max.relative_gap > options.relative_gap:
        cause = "the time limit passed" if run.expired else "allow more with max_products"
        run.warn(
            "enclosure_open",
            f"after {found.products} products the gap of λ_max is {found.lambda_max.relative_gap:.3g} of its size, not "
            f"{options.relative_gap:g}: {cause}",
        )
    return r.Enclosure(
        lambda_max=_certified(found.lambda_max),
        lambda_min=_certified(found.lambda_min),
        hessian_vector_products=found.products,
        rounding_slack=found.slack,
        convergence=_convergence([*found.history, found]),
    )


def _float32_error(problem: Problem, shared: Krylov) -> float:
    """‖(H − H′) x‖ with H′ in float64 at the outer Ritz vectors: to first order what λ_max and λ_min are off by."""
    reference = problem.from_scratch(_double(problem.objective))
    vectors = shared.run.outer_ritz_vectors().unbind(dim=1)
    return max(float(torch.linalg.vector_norm(shared.product.vector(x) - reference.vector(x))) for x in vectors)


def _double(objective: Objective) -> Objective:
    return replace(
        objective,
        selected={name: tensor.double() for name, tensor in objective.selected.items()},
        fixed={name: tensor.double() for name, tensor in objective.fixed.items()},
        dtype=torch.float64,
        fits=max(1, objective.fits // 2),
    )


def _convergence(rows: list[Enclosures]) -> list[r.EnclosureStep]:
    """Some of the rows, evenly spread, the last among them."""
    thinned = rows[:: -max(1, math.ceil(len(rows) / CONVERGENCE_ROWS))][::-1]
    return [
        r.EnclosureStep(
            products=row.products,
            lambda_max=r.Interval(lower=row.lambda_max.lower, upper=row.lambda_max.upper),
            lambda_min=r.Interval(lower=row.lambda_min.lower, upper=row.lambda_min.upper),
        )
        for row in thinned
    ]


def _certified(end: End) -> r.CertifiedInterval:
    return r.CertifiedInterval(
        lower=end.lower,
        upper=end.upper,
        relative_gap=end.relative_gap if math.isfinite(end.relative_gap) else None,
        kind=end.kind,
        failure_probability=None if end.kind == "deterministic" else end.failure_probability,
    )


def top(shared: Krylov, moments: Moments | None, options: Options, run: Run) -> TopEigenvalues:
    """The largest eigenvalues by continuing the run."""

    def largest_left(now: Lanczos) -> float | None:
        if not isinstance(moments, ExactMoments):
            return None
        t, q = moments.trace, moments.frobenius_squared
        rest = remainder(t, q, now.parameters, now.tridiagonal, now.betas[-1], unit=now.unit)
        return None if rest is None else rest.largest

    limit = max(shared.limit, min(2 * options.top, shared.product.parameters))
    found = top_eigenvalues(
        shared.run,
        shared.product.vector,
        options.top,
        largest_left=largest_left,
        max_products=limit,
        failure_probability=options.failure_probability,
        seed=options.seed,
        progress=lambda products: run.report(products / (2 * limit), products),
    )
    if not found.converged:
        run.warn(
            "top_not_converged",
            f"after {found.products} products some of the {options.top} largest eigenvalues still move, or one may be "
            "missing: see their residuals, or allow more with max_products",
        )
    return found


def spectral_density(shared: Krylov, options: Options, run: Run) -> DensityEstimate:
    """The density of all eigenvalues, by runs of their own."""
    product = shared.product
    return density(
        product.vector,
        product.parameters,
        product.device,
        seed=options.seed,
        unit=shared.run.unit,
        steps=min(shared.limit, STEPS),
        progress=run.report,
    )


def symmetry_error(shared: Krylov, seed: int) -> float:
    """|uᵀHv − vᵀHu| / (‖Hu‖ ‖v‖ + ‖Hv‖ ‖u‖) for random u and v: 0 but for rounding."""
    u, v = _random(shared, seed).unbind(dim=1)
    image_u, image_v = shared.product.vector(u), shared.product.vector(v)
    norm = torch.linalg.vector_norm
    scale = float(norm(image_u) * norm(v) + norm(image_v) * norm(u))
    return abs(float(v @ image_u - u @ image_v)) / scale if scale else 0.0


def float32_drift(problem: Problem, shared: Krylov, seed: int) -> float:
    """‖Hv − H′v‖ / ‖H′v‖ with H′v in float64, for a random v."""
    v = _random(shared, seed)[:, 0]
    want = problem.from_scratch(_double(problem.objective)).vector(v)
    scale = float(torch.linalg.vector_norm(want))
    return float(torch.linalg.vector_norm(shared.product.vector(v) - want)) / scale if scale else 0.0


def _random(shared: Krylov, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(shared.product.parameters, 2, generator=generator, dtype=torch.float64)
    return vectors.to(shared.product.device, shared.product.dtype).double()
