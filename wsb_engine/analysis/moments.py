"""The stage of an analysis that computes tr H and ‖H‖_F² by the method that options and cost suggest."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from wsb_engine import report as r
from wsb_engine.analysis import krylov
from wsb_engine.analysis.monitor import Monitor
from wsb_engine.analysis.problem import Problem, Structure
from wsb_engine.bounds.bound import Quantities
from wsb_engine.bounds.certificates import CertifiedNorm, ExactMoments, KnownMoments
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
"""Up to this many parameters ``moments="auto"`` multiplies the whole basis if there is no closed form."""
AUTO_OPERATIONS = 1e14
"""Up to this cost, most of an hour on two cores, ``moments="auto"`` computes exact moments, and probes of an MLP."""
PROBE_OPERATIONS = 2e12
"""Up to this cost, about a minute on two cores, ``moments="auto"`` takes probes of other models: an estimate is worth
less."""
ONE_THREAD_SUMS = 5e8
"""Operations of the closed form up to which one thread of a CPU is as fast as two; its operators are large."""
SINGLE_UNIT = 2.0**-24
"""Share of q that float32 may lose below its range."""


@dataclass(frozen=True)
class Choice:
    """A method of computing moments."""

    method: r.MomentsMethod | None
    """None if the moments are unavailable, or not asked for."""
    layout: Layout | None = None
    """How to sum the closed form; None for other methods."""

    @property
    def is_short(self) -> bool:
        """True for a closed form that one thread sums as fast as several."""
        return self.layout is not None and self.layout.cost <= ONE_THREAD_SUMS


@dataclass(frozen=True)
class MomentsResult:
    """Moments, in the forms that later stages need."""

    part: r.Moments
    """As reported."""
    known: KnownMoments
    """As premises of the enclosure, without rounding."""
    quantities: Quantities
    """As premises of bounds, with rounding."""
    closed: ClosedForm | None = None


def shares(options: Options, *, single: bool, probing: bool) -> float:
    """Split the failure probability equally among the events that a certificate may rest on.

    Args:
        options: Options with the failure probability of each end.
        single: True in float32, whose rounding is bounded by random products.
        probing: True if random products bound q.
    """
    return options.failure_probability / (1 + single + probing)


def choose(problem: Problem, options: Options, monitor: Monitor) -> Choice:
    """Choose how to compute the moments.

    Raises:
        OptionsError: ``closed_form_unavailable``.
        ResourceError: ``memory_limit`` if the closed form was asked for and does not fit.
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
        return Choice(None)
    if method == "closed_form" and structure is not None:
        return Choice(method, _layout(problem, structure))
    if method in ("basis", "probes"):
        return Choice(method)
    return _automatic(problem, options, monitor)


def _automatic(problem: Problem, options: Options, monitor: Monitor) -> Choice:
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
    return Choice(None)


def compute(
    problem: Problem,
    options: Options,
    choice: Choice,
    hessian: Tensor | None,
    shared: krylov.Krylov | None,
    rounding: Rounding,
    monitor: Monitor,
) -> MomentsResult | None:
    """Compute the moments by the chosen method; None without one.

    Args:
        problem: The analysis.
        options: Its options.
        choice: From ``choose``.
        hessian: The dense Hessian, if it was formed.
        shared: The Krylov run, for probes.
        rounding: Rounding errors, which widen the quantities.
        monitor: Receives progress.

    Raises:
        TimeLimitError: ``time_limit``.
    """
    if choice.method is None:
        return None
    if choice.method == "probes" and shared is not None:
        return _probed(problem, options, shared, rounding, monitor)
    if choice.layout is not None:
        closed = _closed_form(problem, choice.layout, monitor)
        return _exact(problem, "closed_form", closed.trace, closed.frobenius_squared, rounding, closed)
    if hessian is not None:
        q = float(torch.linalg.vector_norm(hessian) ** 2)
        return _exact(problem, "basis", float(hessian.trace()), q, rounding)
    return _exact(problem, "basis", *basis_moments(problem.hessian_product(), progress=monitor.report), rounding)


def with_gauss_newton(found: MomentsResult, problem: Problem) -> MomentsResult:
    """Add tr G, if memory allows."""
    if problem.structure is None:
        trace = general_trace(problem.objective, problem.logits.shape[1])
    else:
        with torch.no_grad():
            trace = mlp_trace(problem.structure.net, problem.tile, problem.objective.targets.weights)
    if trace is None:
        return found
    part = found.part.model_copy(update={"gauss_newton_trace": finite(trace, "the Gauss-Newton trace")})
    return replace(found, part=part)


def _exact(
    problem: Problem,
    method: r.MomentsMethod,
    trace: float,
    frobenius_squared: float,
    rounding: Rounding,
    closed: ClosedForm | None = None,
) -> MomentsResult:
    t = finite(trace, "the Hessian's trace")
    q = finite(frobenius_squared, "the Hessian's Frobenius norm")
    n = problem.objective.parameters
    return MomentsResult(
        part=r.Moments(method=method, exact=True, trace=t, frobenius_squared=q),
        known=ExactMoments(t, q),
        quantities=Quantities(
            order=n,
            norm=rounding.norm(q),
            trace=rounding.trace(t, q, n),
            failure_probability=rounding.failure_probability,
        ),
        closed=closed,
    )


def _probed(
    problem: Problem, options: Options, shared: krylov.Krylov, rounding: Rounding, monitor: Monitor
) -> MomentsResult:
    share = shares(options, single=problem.objective.dtype == torch.float32, probing=True)
    found, ritz = krylov.probe(shared, options.seed, share, monitor)
    t = finite(found.trace, "the Hessian's trace")
    norm = rounding.norm(found.frobenius_squared)[1]
    q = finite(norm * norm, "the Hessian's Frobenius norm")
    chance = found.failure_probability + rounding.failure_probability
    return MomentsResult(
        part=r.Moments(
            method="probes",
            exact=False,
            trace=t,
            frobenius_squared=q,
            failure_probability=chance,
            trace_standard_error=finite(found.trace_error, "the trace's standard error"),
        ),
        known=CertifiedNorm(found.frobenius_squared, found.failure_probability),
        quantities=Quantities(
            order=problem.objective.parameters,
            norm=(0.0, norm),
            ritz=None if ritz is None else (ritz[0] + rounding.operator, ritz[1] - rounding.operator),
            failure_probability=chance,
        ),
    )


def _layout(problem: Problem, structure: Structure) -> Layout:
    itemsize = problem.objective.dtype.itemsize
    # Enough pairs of tiles for all members.
    tiles = MIN_TILES if problem.team is None else max(MIN_TILES, 2 * problem.team.size)
    return cheapest_layout(structure.net, problem.samples, memory=problem.memory, itemsize=itemsize, tiles=tiles)


def _closed_form(problem: Problem, layout: Layout, monitor: Monitor) -> ClosedForm:
    """Sum in the working dtype, and again in float64 if the sums leave the range of float32."""
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
