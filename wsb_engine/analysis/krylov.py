"""The Krylov run that stages of an analysis share; probes, largest eigenvalues and the density by it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from wsb_engine.analysis.monitor import Monitor
from wsb_engine.analysis.problem import Problem
from wsb_engine.bounds.certificates import Premises
from wsb_engine.bounds.rounding import Rounding
from wsb_engine.curvature.cost import WORKING_VECTORS
from wsb_engine.curvature.products.autodiff import HessianProduct
from wsb_engine.errors import OptionsError, ResourceError
from wsb_engine.options import Options
from wsb_engine.spectrum.confirmation import RitzPairs
from wsb_engine.spectrum.density import STEPS, DensityEstimate, density
from wsb_engine.spectrum.enclosure import Enclosing
from wsb_engine.spectrum.lanczos import Lanczos
from wsb_engine.spectrum.probes import Probed, deflate
from wsb_engine.spectrum.probes import probe as probed
from wsb_engine.spectrum.run import Run
from wsb_engine.spectrum.three_vectors import ThreeVectors
from wsb_engine.spectrum.top import TopEigenvalues, top_eigenvalues

LEAST_SPARE = 32
"""Least number of vectors that a run without a basis keeps for its second pass, if it keeps any: a few spare little."""


@dataclass
class Krylov:
    """A Krylov run that several stages share, and its product."""

    run: Run
    product: HessianProduct
    max_steps: int
    """Steps that options and memory allow."""
    fits: int
    """Vectors of a basis that memory holds."""
    limited_by_memory: bool = False
    """True if memory, not the options, sets ``max_steps``."""
    pairs: RitzPairs | None = None
    """The outer pairs with fresh products."""
    confirmed: tuple[int, Rounding] | None = None
    """After a number of steps, the rounding measured on their outer pairs."""
    largest: TopEigenvalues | None = None
    """The largest eigenvalues, once they are computed."""

    @property
    def basis(self) -> Lanczos | None:
        """The run, if it keeps its basis."""
        return self.run if isinstance(self.run, Lanczos) else None

    def memory_for(self, vectors: int) -> int:
        """Return the bytes of memory that hold a basis of so many vectors."""
        return basis_bytes(self.product, vectors)


def wanted(options: Options) -> bool:
    """Return whether any stage of these options multiplies single vectors."""
    return options.enclosure or options.density or eigenvectors_wanted(options)


def eigenvectors_wanted(options: Options) -> bool:
    """Return whether any stage of these options needs the largest eigenvectors, and so a basis."""
    return options.spectrum == "top" or options.alignment


def basis_bytes(product: HessianProduct, vectors: int) -> int:
    """Return the bytes of memory that a run takes with a basis of so many vectors, in the dtype of the products."""
    return product.parameters * (8 * WORKING_VECTORS + product.dtype.itemsize * vectors)


def without_basis(product: HessianProduct, options: Options, memory: int) -> bool:
    """Return whether a run keeps three vectors, because the options say so or memory holds no basis."""
    if options.basis != "auto":
        return options.basis == "three_vectors"
    wanted = min(options.max_products, product.parameters)
    return not eigenvectors_wanted(options) and wanted > 1 and basis_bytes(product, wanted) > memory


def spare(product: HessianProduct, options: Options, memory: int) -> int:
    """Return how many vectors a run without a basis keeps, so that its second pass takes no product for them."""
    fits = (memory - basis_bytes(product, 0)) // (product.dtype.itemsize * product.parameters)
    return fits if options.basis == "auto" and fits >= LEAST_SPARE else 0


def krylov(problem: Problem, product: HessianProduct, options: Options, monitor: Monitor) -> Krylov:
    """Choose between a basis and three vectors, and set up a run at the seed; multiply nothing yet.

    Args:
        problem: The analysis.
        product: Multiplies single vectors.
        options: Limits and the seed.
        monitor: Warned if memory holds no basis for all products that were allowed.

    Raises:
        OptionsError: ``basis_required`` if three vectors can't give what was asked for.
        ResourceError: ``memory_limit`` if memory holds no basis for it.
    """
    P, memory = product.parameters, problem.memory
    wanted = min(options.max_products, P)
    fits = max(1, (memory - basis_bytes(product, 0)) // (product.dtype.itemsize * P))
    enough = f"memory_limit={basis_bytes(product, wanted)} holds a basis of {wanted}"
    if eigenvectors_wanted(options) or options.density:
        _require_basis(product, options, fits, memory)
    unit = torch.finfo(product.dtype).eps / 2
    if without_basis(product, options, memory):
        if options.basis == "auto":
            monitor.warn(
                "three_vectors",
                f"the memory limit holds a basis of {fits} vectors: λ_max is certified from three vectors instead, "
                f"without certainty or eigenvectors; {enough}",
            )
        three = ThreeVectors(
            product.vector,
            P,
            product.device,
            options.seed,
            unit,
            homogeneity=options.enclosure,
            spare=spare(product, options, memory),
        )
        return Krylov(three, product, options.max_products, fits)
    if fits < wanted:
        monitor.warn(
            "enclosure_memory", f"the memory limit holds {fits} products of the {wanted} that were allowed; {enough}"
        )
    lanczos = Lanczos(product.vector, P, product.device, options.seed, unit, homogeneity=options.enclosure)
    return Krylov(lanczos, product, min(wanted, fits), fits, fits < wanted)


def _require_basis(product: HessianProduct, options: Options, fits: int, memory: int) -> None:
    """Refuse largest eigenvalues and densities for which there is no basis."""
    what = "spectrum=top" if options.spectrum == "top" else "alignment" if options.alignment else "density"
    if options.basis == "three_vectors":
        raise OptionsError(
            f"{what} needs a basis, which three vectors are not",
            code="basis_required",
            advice="Leave basis at auto.",
        )
    steps = 2 * options.top if eigenvectors_wanted(options) else min(STEPS, options.max_products)
    least = min(steps, product.parameters)
    if fits < least:
        needed = basis_bytes(product, least)
        raise ResourceError(
            f"{what} needs a basis of {least} vectors, {needed:.2g} bytes; the memory limit is {memory:.2g}",
            code="memory_limit",
            advice=f"Set memory_limit to at least {needed}, or leave {what.split('=')[0]} out.",
            needed=needed,
            limit=memory,
        )


def probe(
    shared: Krylov, seed: int, failure_probability: float, monitor: Monitor
) -> tuple[Probed, tuple[float, float, float] | None]:
    """Estimate the moments by random products.

    Returns:
        The estimates; the outermost Ritz values of the steps before them, and how far rounding may have moved them.

    Raises:
        TimeLimitError: ``time_limit``.
    """
    lanczos = shared.basis
    if lanczos is None:
        product = shared.product
        monitor.warn(
            "probes_without_basis",
            "three vectors leave nothing to deflate by: the probes bound the Frobenius norm of all of H, loosely; "
            f"memory_limit={shared.memory_for(shared.max_steps)} holds a basis",
        )
        lanczos = Lanczos(product.vector, product.parameters, product.device, seed, shared.run.unit)
    else:
        deflate(lanczos, shared.max_steps, progress=lambda products: monitor.report(0.0, products))
    found = probed(lanczos, failure_probability=failure_probability, seed=seed, progress=monitor.report)
    if not lanczos.steps:
        return found, None
    values, sigma = lanczos.ritz_values(), lanczos.scaling
    noise = math.sqrt(2 * lanczos.steps) * lanczos.product_rounding()[-1]
    slack = 2 * (lanczos.factorisation_error + noise + 3 * lanczos.orthogonality(proven=False) * lanczos.norm_estimate)
    return found, (values[0] / sigma, values[-1] / sigma, slack / sigma)


def top(shared: Krylov, premises: Premises, options: Options, monitor: Monitor) -> TopEigenvalues:
    """Compute the largest eigenvalues by continuing the run, once, in the units of the products."""
    if shared.largest is not None:
        return shared.largest
    limit = max(shared.max_steps, min(2 * options.top, shared.product.parameters))
    lanczos = shared.basis
    if lanczos is None:
        raise ValueError("three vectors have no eigenvectors")
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
    shared.largest = replace(found, upper_bounds=bounds).divided(lanczos.scaling)
    return shared.largest


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
            steps=min(options.max_products, shared.fits, STEPS),
            progress=monitor.report,
        )
