"""The stages of an analysis that multiply by the Hessian: enclosure, largest eigenvalues, density."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from wsb_engine import report as r
from wsb_engine.analysis.monitor import Monitor
from wsb_engine.analysis.problem import Problem
from wsb_engine.analysis.rounding import Measuring
from wsb_engine.bounds.certificates import Enclosures, End, Premises
from wsb_engine.bounds.rounding import Rounding
from wsb_engine.curvature.products.autodiff import HessianProduct
from wsb_engine.options import Options
from wsb_engine.spectrum.confirmation import RitzPairs, RitzResidual, confirm, outer_pairs
from wsb_engine.spectrum.density import STEPS, DensityEstimate, density
from wsb_engine.spectrum.enclosure import Enclosing, enclose, finish
from wsb_engine.spectrum.lanczos import ROWS, Lanczos
from wsb_engine.spectrum.probes import Probed, deflate
from wsb_engine.spectrum.probes import probe as probed
from wsb_engine.spectrum.top import TopEigenvalues, top_eigenvalues

CONVERGENCE_ROWS = 100
"""Most steps of an enclosure in the report."""
FINISHING_PRODUCTS = 24
"""Most products that confirm an enclosure after its last step; a time limit leaves room for them."""
_Row = TypeVar("_Row")
USELESS_WIDTH = 1e3
"""An enclosure wider than this many times the spectrum is withheld: it says nothing."""

WARNINGS = ("enclosure_withheld", "enclosure_open", "failure_probability_raised")
"""Codes of what an enclosure says of itself."""


@dataclass
class Krylov:
    """A Lanczos run that several stages share, and its product."""

    run: Lanczos
    product: HessianProduct
    max_steps: int
    """Steps that options and memory allow."""
    limited_by_memory: bool = False
    """True if memory, not the options, sets ``max_steps``."""
    confirmed: tuple[int, RitzPairs, Rounding] | None = None
    """The outer pairs with fresh products and the rounding measured on them, after a number of steps."""


def wanted(options: Options) -> bool:
    """Return whether any stage of these options multiplies single vectors."""
    return options.enclosure or options.density or options.spectrum == "top"


def krylov(problem: Problem, product: HessianProduct, options: Options, monitor: Monitor) -> Krylov:
    """Set up a run at the seed; multiply nothing yet.

    Args:
        problem: The analysis.
        product: Multiplies single vectors.
        options: Limits and the seed.
        monitor: Warned if memory limits the number of products.
    """
    wanted = min(options.max_products, product.parameters)
    # The basis in float64, and a few vectors for the product.
    fits = max(1, problem.memory // (8 * product.parameters) - ROWS)
    if fits < wanted:
        monitor.warn("enclosure_memory", f"the memory limit holds {fits} products of the {wanted} that were allowed")
    unit = torch.finfo(product.dtype).eps / 2
    lanczos = Lanczos(
        product.vector, product.parameters, product.device, options.seed, unit, homogeneity=options.enclosure
    )
    return Krylov(lanczos, product, min(wanted, fits), fits < wanted)


def probe(
    shared: Krylov, seed: int, failure_probability: float, monitor: Monitor
) -> tuple[Probed, tuple[float, float] | None]:
    """Estimate the moments by random products.

    Returns:
        The estimates, and the outermost Ritz values of the steps before them, moved inwards for rounding.

    Raises:
        TimeLimitError: ``time_limit``.
    """
    lanczos = shared.run
    deflate(lanczos, shared.max_steps, progress=lambda products: monitor.report(0.0, products))
    found = probed(lanczos, failure_probability=failure_probability, seed=seed, progress=monitor.report)
    if not lanczos.steps:
        return found, None
    values, sigma = lanczos.ritz_values(), lanczos.scaling
    noise = math.sqrt(2 * lanczos.steps) * lanczos.product_rounding()[-1]
    slack = 2 * (lanczos.factorisation_error + noise + 3 * lanczos.orthogonality(proven=False) * lanczos.norm_estimate)
    return found, ((values[0] + slack) / sigma, (values[-1] - slack) / sigma)


def enclosure(
    problem: Problem, shared: Krylov, premises: Premises, measuring: Measuring, options: Options, monitor: Monitor
) -> tuple[r.Enclosure | None, RitzResidual | None]:
    """Enclose both ends of the spectrum as tightly as options, memory and time allow, and confirm them.

    Args:
        problem: The analysis.
        shared: Its Krylov run.
        premises: Premises in the units of the products.
        measuring: Also measures rounding on the outer Ritz vectors.
        options: Limits.
        monitor: Clock and warnings.

    Returns:
        The enclosure, or None with a warning if it would say nothing; residuals of its Ritz pairs by fresh products, or
        None if time ran out before them.

    Raises:
        TimeLimitError: ``time_limit`` if there was no time for a single product.
    """
    lanczos = shared.run
    with monitor.limited():
        if not lanczos.steps:
            lanczos.step()
    sigma = lanczos.scaling
    enclosing = Enclosing(lanczos, premises.scaled(sigma))
    with monitor.limited(reserve=FINISHING_PRODUCTS * lanczos.seconds / lanczos.products):
        found = enclose(
            enclosing,
            max_products=shared.max_steps,
            progress=lambda now: monitor.tell(now.products / shared.max_steps, now.products),
            expired=lambda: monitor.expired,
        )
    if shared.limited_by_memory and found.stopped_by == "products":
        found = replace(found, stopped_by="memory")
    residual, fresh = None, _fresh_pairs(shared, premises, measuring, monitor)
    if fresh is None:
        enclosing, found = finish(enclosing, found, premises.rounding.scaled(sigma))
    else:
        enclosing, found = finish(enclosing, found, fresh[1].scaled(sigma))
        found, residual = confirm(enclosing, found, fresh[0])
    advice = _advice(found, problem)
    top = found.lambda_max.scaled(1 / sigma)
    if _says_nothing(found, enclosing):
        monitor.warn(
            "enclosure_withheld",
            f"after {found.products} products λ_max is only known to lie in [{top.lower:.3g}, {top.upper:.3g}], which "
            f"says nothing: {advice}",
        )
        return None, residual
    if top.relative_gap > options.relative_gap:
        monitor.warn(
            "enclosure_open",
            f"after {found.products} products the gap of λ_max is {top.relative_gap:.3g} of its size, not "
            f"{options.relative_gap:g}: {advice}",
        )
    raised = max(found.lambda_max.failure_probability, found.lambda_min.failure_probability)
    if raised > options.failure_probability:
        monitor.warn(
            "failure_probability_raised",
            f"rounding hides what a failure probability of {options.failure_probability:g} would need; the enclosure "
            f"holds with {raised:.2g}: {advice}",
        )
    return _part(found, 1 / sigma), residual


def _fresh_pairs(
    shared: Krylov, premises: Premises, measuring: Measuring, monitor: Monitor
) -> tuple[RitzPairs, Rounding] | None:
    """Multiply the outer Ritz vectors once more and measure rounding on them; None if the time limit passes."""
    lanczos, fresh = shared.run, None
    if shared.confirmed is not None and shared.confirmed[0] == lanczos.steps:
        return shared.confirmed[1:]
    with monitor.optional("fresh products that confirm the enclosure", otherwise=True), monitor.limited():
        pairs = outer_pairs(lanczos)
        fresh = pairs, measuring.confirmed(premises.rounding, pairs.vectors, pairs.images / lanczos.scaling)
        shared.confirmed = lanczos.steps, *fresh
    return fresh


def continued(before: r.Enclosure | None, after: r.Enclosure | None) -> r.Enclosure | None:
    """Return a later enclosure of the same run with the convergence of the earlier one before its own."""
    if before is None or after is None or not after.convergence or not before.convergence:
        return after
    first = after.convergence[0].products
    rows = [row for row in before.convergence if row.products < first] + after.convergence
    return after.model_copy(update={"convergence": _thinned(rows)})


def _says_nothing(found: Enclosures, enclosing: Enclosing) -> bool:
    asked = (found.lambda_max, found.lambda_min)[: 1 + enclosing.premises.both]
    spread = found.lambda_min.size
    return any(not math.isfinite(end.width) or end.width > USELESS_WIDTH * spread > 0 for end in asked)


def _advice(found: Enclosures, problem: Problem) -> str:
    """Say why an enclosure is no narrower, and what would help."""
    if found.stopped_by == "time":
        return "the time limit passed; raise time_limit, or send fewer samples"
    if found.stopped_by == "memory":
        return "the memory limit holds no more products; raise memory_limit"
    if found.stopped_by == "products":
        return "allow more with max_products"
    if problem.objective.dtype == torch.float32:
        return "that is the limit of float32; use dtype float64"
    return "what is left is rounding in float64; rescale inputs whose values lie far from 0 next to their spread"


def _part(found: Enclosures, factor: float) -> r.Enclosure:
    """Convert to the report's part, with every number times the factor."""
    slack = found.slack * factor
    return r.Enclosure(
        lambda_max=_certified(found.lambda_max.scaled(factor)),
        lambda_min=_certified(found.lambda_min.scaled(factor)),
        hessian_vector_products=found.products,
        rounding_slack=slack,
        rounding=r.Rounding(how=found.how, slack=slack),
        floor=found.floor,
        stopped_by=found.stopped_by,
        convergence=_convergence([*found.history, found], factor),
    )


def _convergence(rows: list[Enclosures], factor: float) -> list[r.EnclosureStep]:
    """Thin the rows evenly, keeping the last; leave out rows that certify nothing yet."""
    useful = [row for row in rows if math.isfinite(row.lambda_max.width) and math.isfinite(row.lambda_min.width)]
    return [
        r.EnclosureStep(
            products=row.products,
            lambda_max=_interval(row.lambda_max.scaled(factor)),
            lambda_min=_interval(row.lambda_min.scaled(factor)),
        )
        for row in _thinned(useful)
    ]


def _thinned(rows: list[_Row]) -> list[_Row]:
    return rows[:: -max(1, math.ceil(len(rows) / CONVERGENCE_ROWS))][::-1]


def _interval(end: End) -> r.Interval:
    return r.Interval(lower=_finite(end.lower), upper=_finite(end.upper))


def _certified(end: End) -> r.CertifiedInterval:
    return r.CertifiedInterval(
        lower=_finite(end.lower),
        upper=_finite(end.upper),
        relative_gap=end.relative_gap if math.isfinite(end.relative_gap) else None,
        kind=end.kind,
        failure_probability=None if end.kind == "deterministic" else end.failure_probability,
    )


def _finite(value: float) -> float:
    """Return the value, or the largest number of its sign, which bounds anything."""
    return max(-sys.float_info.max, min(sys.float_info.max, value))


def top(shared: Krylov, premises: Premises, options: Options, monitor: Monitor) -> TopEigenvalues:
    """Compute the largest eigenvalues by continuing the run, in the units of the products."""
    limit = max(shared.max_steps, min(2 * options.top, shared.product.parameters))
    lanczos = shared.run
    with monitor.limited():
        found = top_eigenvalues(
            lanczos,
            options.top,
            max_products=limit,
            failure_probability=premises.failure_probability,
            seed=options.seed,
            progress=lambda products: monitor.report(products / (2 * limit), products),
        )
    if not found.converged:
        why = "see their residuals, or allow more with max_products"
        if shared.product.dtype == torch.float32:
            why = "float32 can't exclude that; see their residuals, or use dtype float64"
        monitor.warn(
            "top_not_converged",
            f"after {found.products} products some of the {options.top} largest eigenvalues still move, or one may be "
            f"missing: {why}",
        )
    bounds = Enclosing(lanczos, premises.scaled(lanczos.scaling)).upper_bounds(len(found.eigenvalues))
    return replace(found, upper_bounds=bounds).divided(lanczos.scaling)


def spectral_density(shared: Krylov, options: Options, monitor: Monitor) -> DensityEstimate:
    """Estimate the density of all eigenvalues by separate runs."""
    product = shared.product
    with monitor.limited():
        return density(
            product.vector,
            product.parameters,
            product.device,
            seed=options.seed,
            unit=shared.run.unit,
            steps=min(shared.max_steps, STEPS),
            progress=monitor.report,
        )
