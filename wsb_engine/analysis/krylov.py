"""The stages of an analysis that multiply by the Hessian: enclosure, largest eigenvalues, density."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from wsb_engine import report as r
from wsb_engine.analysis.enclosure_part import certified, part
from wsb_engine.analysis.monitor import Monitor, TimeLimitError
from wsb_engine.analysis.problem import Problem
from wsb_engine.analysis.rounding import Measuring
from wsb_engine.bounds.certificates import Enclosures, Premises
from wsb_engine.bounds.rounding import Rounding
from wsb_engine.curvature.cost import WORKING_VECTORS
from wsb_engine.curvature.products.autodiff import HessianProduct
from wsb_engine.errors import OptionsError, ResourceError
from wsb_engine.options import Options
from wsb_engine.progress import InterimEnclosure
from wsb_engine.spectrum.confirmation import RitzPairs, RitzResidual, confirm, outer_pairs, unconfirmed
from wsb_engine.spectrum.density import STEPS, DensityEstimate, density
from wsb_engine.spectrum.enclosure import Enclosing, enclose, finish
from wsb_engine.spectrum.lanczos import Lanczos
from wsb_engine.spectrum.probes import Probed, deflate
from wsb_engine.spectrum.probes import probe as probed
from wsb_engine.spectrum.run import Run
from wsb_engine.spectrum.three_vectors import ThreeVectors
from wsb_engine.spectrum.top import TopEigenvalues, top_eigenvalues
from wsb_engine.units import in_true_units

FINISHING_PRODUCTS, FINISHING_SHARE = 24, 0.25
"""Most products that confirm an enclosure after its last step. A time limit leaves room for them, but no more than this
share of the time left: λ_max comes first."""
SECOND_PASS = 1.2
"""Products left for a second pass, as a multiple of those it repeats, with the next steps in between."""
LEAST_SPARE = 32
"""Least number of vectors that a run without a basis keeps for its second pass, if it keeps any: a few spare little."""
USELESS_WIDTH = 1e3
"""An enclosure wider than this many times the spectrum is withheld: it says nothing."""

WARNINGS = ("enclosure_withheld", "enclosure_open", "failure_probability_raised")
"""Codes of what an enclosure says of itself."""


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


def enclosure(
    problem: Problem,
    shared: Krylov,
    premises: Premises,
    measuring: Measuring,
    options: Options,
    monitor: Monitor,
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
        The enclosure, or None with a warning if it would say nothing; residuals of its Ritz pairs by fresh products,
        unless time ran out before them, or a run without a basis had no second pass: it narrows inner ends only, and
        takes as many products again if memory keeps no vectors for it.

    Raises:
        TimeLimitError: ``time_limit`` if there was no time for a single product.
    """
    lanczos = shared.run
    with monitor.limited():
        if not lanczos.steps:
            lanczos.step()
    enclosing = Enclosing(lanczos, premises.scaled(lanczos.scaling))
    interim = _Interim(enclosing, problem.objective.scale, monitor)
    # Confirmation may move an end out again, past what was decided; then only the gap ends the run.
    for decided in (interim.decided, lambda _: False):
        found = _narrowed(shared, enclosing, interim, decided, monitor)
        # What outer ends decide needs no second pass.
        enough = found.stopped_by == "decided" and interim.decided(unconfirmed(enclosing, found))
        if isinstance(lanczos, ThreeVectors) and found.stopped_by != "decided":
            lanczos.end()
        if shared.basis is not None or not enough:
            _measure_pairs(shared, premises.rounding, measuring, monitor)
        enclosing, found, residual = _finished(shared, enclosing, found)
        if found.stopped_by != "decided" or interim.decided(found):
            break
    if isinstance(lanczos, ThreeVectors):
        lanczos.end()
        lanczos.forget()
        # What follows multiplies too; only the distribution's part asks for these vectors again.
        shared.pairs = None if options.population is None else shared.pairs
    if not _useful(found, enclosing, problem, options, monitor):
        return None, residual
    interim.publish(found, 1.0, confirmed=True)
    return part(found, enclosing, 1 / lanczos.scaling), residual


def _narrowed(
    shared: Krylov, enclosing: Enclosing, interim: _Interim, decided: Callable[[Enclosures], bool], monitor: Monitor
) -> Enclosures:
    """Take steps until the enclosure is narrow enough, decided, or limited; leave time to confirm it."""
    lanczos = shared.run
    seconds = SECOND_PASS * lanczos.seconds / lanczos.products
    with monitor.limited(reserve=_finishing_seconds(lanczos, monitor)):
        found = enclose(
            enclosing,
            max_products=shared.max_steps,
            progress=lambda now: interim.publish(now, now.products / shared.max_steps),
            expired=lambda: monitor.expired or monitor.expires_within(seconds * lanczos.repeated),
            decided=decided,
        )
    if shared.limited_by_memory and found.stopped_by == "products":
        return replace(found, stopped_by="memory")
    return found


def _finishing_seconds(run: Run, monitor: Monitor) -> float:
    """Return how much of the time to leave for what confirms the enclosure."""
    return min(FINISHING_PRODUCTS * run.seconds / run.products, FINISHING_SHARE * monitor.seconds_left)


def _finished(
    shared: Krylov, enclosing: Enclosing, found: Enclosures
) -> tuple[Enclosing, Enclosures, RitzResidual | None]:
    """Confirm the enclosure by the outer pairs of its last step, if they were multiplied."""
    lanczos = shared.run
    if shared.pairs is None or shared.confirmed is None or shared.confirmed[0] != lanczos.steps:
        enclosing, found = finish(enclosing, found, enclosing.premises.rounding)
        return enclosing, unconfirmed(enclosing, found), None
    enclosing, found = finish(enclosing, found, shared.confirmed[1].scaled(lanczos.scaling))
    return enclosing, *confirm(enclosing, found, shared.pairs)


def _useful(found: Enclosures, enclosing: Enclosing, problem: Problem, options: Options, monitor: Monitor) -> bool:
    """Warn of an enclosure that is wider or less certain than asked for; return whether it says anything."""
    advice, top = _advice(found, problem), found.lambda_max.scaled(1 / enclosing.lanczos.scaling)
    if found.stopped_by != "decided" and _says_nothing(found, enclosing):
        monitor.warn(
            "enclosure_withheld",
            f"after {found.products} products λ_max is only known to lie in [{top.lower:.3g}, {top.upper:.3g}], which "
            f"says nothing: {advice}",
        )
        return False
    if found.stopped_by != "decided" and top.relative_gap > options.relative_gap:
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
    return True


def _measure_pairs(shared: Krylov, rounding: Rounding, measuring: Measuring, monitor: Monitor) -> None:
    """Multiply the outermost Ritz vectors and measure rounding on them, once for each number of steps.

    If the time limit passes, the enclosure keeps what is certified without them, and a warning says so.
    """
    run = shared.run
    if shared.confirmed is not None and shared.confirmed[0] == run.steps:
        return
    with monitor.optional("fresh products that confirm the enclosure", otherwise=True):
        pairs = _outer_pairs(shared, monitor)
        if pairs is not None:
            with monitor.limited():
                found = measuring.confirmed(shared.product, rounding, pairs.vectors, pairs.images, run.scaling)
            shared.pairs, shared.confirmed = pairs, (run.steps, found)


def _outer_pairs(shared: Krylov, monitor: Monitor) -> RitzPairs | None:
    """Compute the outermost Ritz pairs; None, with a warning, if a second pass for them runs out of time.

    Raises:
        TimeLimitError: ``time_limit`` if there is a basis.
    """
    run = shared.run
    if shared.basis is not None:
        with monitor.limited():
            return outer_pairs(run)
    try:
        with monitor.limited(reserve=_finishing_seconds(run, monitor)):
            return outer_pairs(run)
    except TimeLimitError as error:
        monitor.warn(
            "second_pass_cut", f"{error.message}: inner ends are Rayleigh quotients of the first pass, far from λ_max"
        )
        return None
    finally:
        if isinstance(run, ThreeVectors):
            run.forget()  # Measuring rounding takes memory too.


class _Interim:
    """What is certified while the run goes on: published as progress, and shown to the caller who may decide by it.

    Args:
        enclosing: The run and its premises, in the units of σH.
        scale: The factor by which the products' H differs from the true one.
        monitor: Publishes it, and knows the caller.
    """

    def __init__(self, enclosing: Enclosing, scale: float, monitor: Monitor) -> None:
        self._enclosing, self._scale, self._monitor = enclosing, scale, monitor

    def publish(self, now: Enclosures, fraction: float, *, confirmed: bool = False) -> None:
        """Report progress, with the enclosure so far if that says anything; inner ends as far as they are certain."""
        now = now if confirmed else unconfirmed(self._enclosing, now)
        known = None if _says_nothing(now, self._enclosing) else self._in_true_units(now)
        if known is not None:
            self._monitor.publish(known)
        self._monitor.tell(fraction, now.products)

    def decided(self, now: Enclosures) -> bool:
        """Return whether the caller needs no more than this."""
        known = None if self._monitor.decided is None else self._in_true_units(now)
        return known is not None and self._monitor.decided is not None and self._monitor.decided(known)

    def _in_true_units(self, now: Enclosures) -> InterimEnclosure | None:
        """Return what a report would state; None if an end is empty, which fails a check later."""
        if now.lambda_max.width < 0 or now.lambda_min.width < 0:
            return None
        factor = 1 / self._enclosing.lanczos.scaling
        found = InterimEnclosure(
            lambda_max=certified(now.lambda_max.scaled(factor)),
            lambda_min=certified(now.lambda_min.scaled(factor)),
            hessian_vector_products=now.products,
        )
        return in_true_units(found, self._scale)


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
    return (
        "what is left is rounding in float64; rescale inputs whose values lie far from 0 next to their spread, and "
        "move inputs that lie exactly on a threshold of the model"
    )


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
