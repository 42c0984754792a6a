"""The stage of an analysis that finds tr H and ‖H‖_F² by the way that options and cost suggest, and their bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from wsb_engine import report as r
from wsb_engine.analysis import krylov
from wsb_engine.analysis.monitor import Monitor
from wsb_engine.analysis.problem import Problem, Structure
from wsb_engine.bounds.certificates import CertifiedNorm, ExactMoments
from wsb_engine.bounds.certificates import Moments as KnownMoments
from wsb_engine.bounds.rounding import Rounding
from wsb_engine.curvature.closed_form.layout import MIN_TILES, Layout, cheapest_layout
from wsb_engine.curvature.closed_form.sums import ClosedForm, closed_form, underflow
from wsb_engine.curvature.gauss_newton import general_trace, mlp_trace
from wsb_engine.curvature.products.basis import basis_moments
from wsb_engine.curvature.team import split_closed_form
from wsb_engine.errors import OptionsError, ResourceError, finite
from wsb_engine.options import Options
from wsb_engine.spectrum.probes import DEFLATED, probe_count

BASIS_PARAMETERS = 20_000
"""Up to this many parameters ``moments="auto"`` multiplies the whole basis where there is no closed form."""
AUTO_OPERATIONS = 1e14
"""Up to this cost, most of an hour on two cores, ``moments="auto"`` gets what it can for an MLP, and exact moments."""
PROBE_OPERATIONS = 2e12
"""Up to this cost, about a minute on two cores, ``moments="auto"`` takes probes of other models: an estimate is worth
less."""


SINGLE_UNIT = 2.0**-24
"""What float32 may lose of q below its range."""


@dataclass(frozen=True)
class Choice:
    """A method, and what it needs."""

    method: r.MomentsMethod
    layout: Layout | None = None
    """Of the closed form."""


@dataclass(frozen=True)
class Moments:
    """What this stage found."""

    part: r.Moments
    bounds: r.Bounds
    known: KnownMoments
    """For the enclosure."""
    closed: ClosedForm | None = None


def shares(options: Options, *, single: bool, probing: bool) -> float:
    """The failure probability of each of the events that a certificate may rest on, in equal parts.

    Args:
        options: Their ``failure_probability`` is that of each end.
        single: True in float32, whose rounding is bounded by random products.
        probing: True if random products bound q.
    """
    return options.failure_probability / (1 + single + probing)


def choose(problem: Problem, options: Options, monitor: Monitor) -> Choice | None:
    """Choose how to compute the moments; None if they are unavailable.

    Raises:
        OptionsError: ``closed_form_unavailable``.
        ResourceError: ``memory_limit`` where the closed form was asked for and does not fit.
    """
    method, structure = options.moments, problem.structure
    if method == "closed_form" and structure is None:
        raise OptionsError(
            "the closed form needs a smooth multi-layer perceptron, which this model is not",
            code="closed_form_unavailable",
            advice="Leave moments at auto.",
            nonsmooth_operators=list(problem.nonsmooth),
        )
    if method == "none":
        return None
    if method == "closed_form" and structure is not None:
        return Choice(method, _layout(problem, structure))
    if method in ("basis", "probes"):
        return Choice(method)
    return _automatic(problem, options, monitor)


def _automatic(problem: Problem, options: Options, monitor: Monitor) -> Choice | None:
    P, each = problem.objective.parameters, problem.product_operations
    if problem.structure is None:
        if options.spectrum == "dense" or (P <= BASIS_PARAMETERS and P * each <= AUTO_OPERATIONS):
            return Choice("basis")
        reason, budget = f"the whole basis of {P:,} parameters would take {P * each:.1e} operations", PROBE_OPERATIONS
    else:
        budget = AUTO_OPERATIONS
        try:
            layout = _layout(problem, problem.structure)
        except ResourceError as error:
            reason = f"the closed form does not fit: {error.message}"
        else:
            if layout.cost <= AUTO_OPERATIONS:
                return Choice("closed_form", layout)
            reason = f"the closed form would take {layout.cost:.1e} operations"
    single = problem.objective.dtype == torch.float32
    probes = probe_count(shares(options, single=single, probing=True))
    cost = (DEFLATED + probes) * each
    if cost <= budget:
        monitor.warn(
            "moments_probes",
            f"{reason}: {probes} random products estimate the trace and bound the Frobenius norm from above",
        )
        return Choice("probes")
    monitor.warn(
        "moments_unavailable",
        f"{reason}, and {probes} random products {cost:.1e}, more than {budget:.0e}: no moments; ask for one of these "
        "with moments if the time does not matter",
    )
    return None


def compute(
    problem: Problem,
    options: Options,
    choice: Choice,
    hessian: Tensor | None,
    shared: krylov.Krylov | None,
    rounding: Rounding,
    monitor: Monitor,
) -> Moments:
    """Moments and bounds by the method that was chosen.

    Args:
        problem: The analysis.
        options: Its options.
        choice: From ``choose``.
        hessian: The dense Hessian, if it was formed.
        shared: The Krylov run, for probes.
        rounding: Rounding by which the bounds are widened.
        monitor: Receives progress.

    Raises:
        TimeLimitError: ``time_limit``.
    """
    if choice.method == "probes" and shared is not None:
        return _probed(problem, options, shared, rounding, monitor)
    if choice.layout is not None:
        closed = _closed_form(problem, choice.layout, monitor)
        return _exact(problem, "closed_form", closed.trace, closed.frobenius_squared, rounding, closed)
    if hessian is not None:
        q = float(torch.linalg.vector_norm(hessian) ** 2)
        return _exact(problem, "basis", float(hessian.trace()), q, rounding)
    return _exact(problem, "basis", *basis_moments(problem.hessian_product(), progress=monitor.report), rounding)


def with_gauss_newton(moments: Moments, problem: Problem) -> Moments:
    """The same with tr G, where that can be had."""
    if problem.structure is None:
        trace = general_trace(problem.objective, problem.logits.shape[1])
    else:
        with torch.no_grad():
            trace = mlp_trace(problem.structure.net, problem.tile, problem.objective.targets.weights)
    if trace is None:
        return moments
    part = moments.part.model_copy(update={"gauss_newton_trace": finite(trace, "the Gauss-Newton trace")})
    return Moments(part, moments.bounds, moments.known, moments.closed)


def _exact(
    problem: Problem,
    method: r.MomentsMethod,
    trace: float,
    frobenius_squared: float,
    rounding: Rounding,
    closed: ClosedForm | None = None,
) -> Moments:
    t = finite(trace, "the Hessian's trace")
    q = finite(frobenius_squared, "the Hessian's Frobenius norm")
    n = problem.objective.parameters
    b = rounding.wolkowicz_styan(t, q, n)
    return Moments(
        part=r.Moments(method=method, exact=True, trace=t, frobenius_squared=q),
        bounds=_bounds((b.lambda_max_lower, b.lambda_max_upper), (b.lambda_min_lower, b.lambda_min_upper)),
        known=ExactMoments(t, q),
        closed=closed,
    )


def _probed(problem: Problem, options: Options, shared: krylov.Krylov, rounding: Rounding, monitor: Monitor) -> Moments:
    share = shares(options, single=problem.objective.dtype == torch.float32, probing=True)
    found, inner = krylov.probe(shared, options.seed, share, monitor)
    t = finite(found.trace, "the Hessian's trace")
    # Without t all that q says is |λ| ≤ ‖H‖_F; the inner ends are Ritz values.
    outer = rounding.norm(found.frobenius_squared)[1]
    q = finite(outer * outer, "the Hessian's Frobenius norm")
    smallest, largest = inner or (outer, -outer)
    smallest, largest = min(smallest + rounding.operator, outer), max(largest - rounding.operator, -outer)
    return Moments(
        part=r.Moments(
            method="probes",
            exact=False,
            trace=t,
            frobenius_squared=q,
            failure_probability=found.failure_probability + rounding.failure_probability,
            trace_standard_error=finite(found.trace_error, "the trace's standard error"),
        ),
        bounds=_bounds((largest, outer), (-outer, smallest)),
        known=CertifiedNorm(found.frobenius_squared, found.failure_probability),
    )


def _bounds(lambda_max: tuple[float, float], lambda_min: tuple[float, float]) -> r.Bounds:
    return r.Bounds(
        wolkowicz_styan=r.ExtremeBounds(
            lambda_max=r.Interval(lower=lambda_max[0], upper=lambda_max[1]),
            lambda_min=r.Interval(lower=lambda_min[0], upper=lambda_min[1]),
        )
    )


def _layout(problem: Problem, structure: Structure) -> Layout:
    itemsize = problem.objective.dtype.itemsize
    # Enough pairs of tiles for everyone who shares them.
    tiles = MIN_TILES if problem.team is None else max(MIN_TILES, 2 * problem.team.size)
    return cheapest_layout(structure.net, problem.samples, memory=problem.memory, itemsize=itemsize, tiles=tiles)


def _closed_form(problem: Problem, layout: Layout, monitor: Monitor) -> ClosedForm:
    """In the working dtype, and again in float64 if float32 has not the range for its sums."""
    if problem.structure is None:
        raise ValueError("only an MLP has a closed form")
    net, weights = problem.structure.net, problem.objective.targets.weights
    with torch.no_grad():
        if problem.team is not None:
            found = split_closed_form(net, len(weights), layout, problem.team, progress=monitor.report)
        else:
            found = closed_form(net, problem.tile, weights, layout, progress=monitor.report)
        if problem.objective.dtype != torch.float32 or not math.isfinite(found.frobenius_squared):
            return found
        lost = underflow(net, problem.tile, len(weights), layout.tile)
    if lost <= SINGLE_UNIT * found.frobenius_squared:
        return found
    double = problem.at(problem.objective.in_double())
    return _closed_form(double, _layout(double, problem.structure), monitor)
