"""The stage of an analysis that encloses the ends of the spectrum: steps, fresh products, what is said meanwhile."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from wsb_engine import report as r
from wsb_engine.analysis.enclosure_part import certified, part
from wsb_engine.analysis.krylov import Krylov
from wsb_engine.analysis.monitor import Monitor, TimeLimitError
from wsb_engine.analysis.problem import Problem
from wsb_engine.analysis.rounding import Measuring
from wsb_engine.bounds.certificates import Enclosures, Premises
from wsb_engine.bounds.rounding import Rounding
from wsb_engine.options import Options
from wsb_engine.progress import InterimEnclosure
from wsb_engine.spectrum.confirmation import RitzResidual, RitzVectors, confirm, multiplied, outer_vectors, unconfirmed
from wsb_engine.spectrum.enclosure import Enclosing, enclose, finish
from wsb_engine.spectrum.run import Run
from wsb_engine.spectrum.three_vectors import ThreeVectors
from wsb_engine.units import in_true_units

FINISHING_PRODUCTS, FINISHING_SHARE = 24, 0.25
"""Most products that confirm an enclosure after its last step. A time limit leaves room for them, but no more than this
share of the time left: λ_max comes first."""
SECOND_PASS = 1.2
"""Products left for a second pass, as a multiple of those it repeats, with the next steps in between."""
USELESS_WIDTH = 1e3
"""An enclosure wider than this many times the spectrum is withheld: it says nothing."""
WARNINGS = ("enclosure_withheld", "enclosure_open", "failure_probability_raised")
"""Codes of what an enclosure says of itself."""


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
    found = rounding

    def measure(x: Tensor, image: Tensor) -> None:
        nonlocal found
        found = measuring.confirmed(shared.product, found, x, image, run.scaling)

    with monitor.optional("fresh products that confirm the enclosure", otherwise=True):
        vectors = _outer_vectors(shared, monitor)
        if vectors is not None:
            with monitor.limited():
                shared.pairs = multiplied(run, vectors, measure)
            shared.confirmed = (run.steps, found)


def _outer_vectors(shared: Krylov, monitor: Monitor) -> RitzVectors | None:
    """Compute the outermost Ritz vectors; None, with a warning, if a second pass for them runs out of time.

    Raises:
        TimeLimitError: ``time_limit`` if there is a basis.
    """
    run = shared.run
    if shared.basis is not None:
        with monitor.limited():
            return outer_vectors(run)
    try:
        with monitor.limited(reserve=_finishing_seconds(run, monitor)):
            return outer_vectors(run)
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
