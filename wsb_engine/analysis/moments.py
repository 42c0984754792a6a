"""The stage of an analysis that computes tr H and ‖H‖_F² by the method that options and cost suggest."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

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
from wsb_engine.curvature.cost import launch_operations, nominal_rate
from wsb_engine.curvature.gauss_newton import general_trace, mlp_trace, rows_of
from wsb_engine.curvature.products.basis import basis_moments
from wsb_engine.curvature.team import split_closed_form
from wsb_engine.errors import OptionsError, ResourceError, finite
from wsb_engine.options import Options
from wsb_engine.spectrum.probes import DEFLATED, probe_count

BASIS_PARAMETERS = 20_000
"""Up to this many parameters the whole basis gives moments that are needed if there is no closed form."""
BUDGET_SECONDS = 3600.0
"""Moments that take longer at the device's nominal rate are computed only if a method is asked for."""
FIRST_SECONDS = 10.0
"""A closed form that takes no longer at the nominal rate goes before the enclosure, which then takes fewer products."""
FIRST_SHARE = 0.25
"""Share of the time limit that a closed form before the enclosure may take at the nominal rate."""
LEFT_SHARE = 0.5
"""Share of the time left that moments before the enclosure leave to it, if they turn out to take longer."""
GAUSS_NEWTON_SHARE = 0.25
"""Share of the memory limit for tr G on a GPU."""
CHEAP_SHARE = 0.5
"""``auto`` takes moments other than the closed form if they need at most this share of the enclosure's products."""
PARTS = frozenset({"moments", "bounds", "bounds_list", "layers", "blocks", "orthogonality"})
"""Parts of a report that need moments."""
ONE_THREAD_SUMS = 5e8
"""Operations of the closed form up to which one thread of a CPU is as fast as two; its operators are large."""
SINGLE_UNIT = 2.0**-24
"""Share of q that float32 may lose below its range."""


When = Literal["first", "last", "if_open", "if_cheap"]
"""``first``: before the enclosure. ``last``: after it, which is then finished with them. ``if_open``: the same if its
gap is wider than asked for, else ``if_cheap``: if they cost little compared with it."""


@dataclass(frozen=True)
class Choice:
    """A method of computing moments, and its place among the stages."""

    method: r.MomentsMethod | None
    """None if there are none to compute, or if that depends on the enclosure."""
    layout: Layout | None = None
    """How to sum the closed form; None for other methods."""
    when: When = "last"
    why: str = ""
    """Why ``auto`` does not take the closed form."""

    @property
    def is_short(self) -> bool:
        """True for a closed form that one thread sums as fast as several."""
        return self.layout is not None and self.layout.cost <= ONE_THREAD_SUMS

    @property
    def probing(self) -> bool:
        """True if the enclosure may rest on random products."""
        return self.method == "probes"


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


def choose(problem: Problem, options: Options, needs: Collection[str], monitor: Monitor) -> Choice:
    """Choose how to compute the moments, and when, as far as that does not depend on the enclosure.

    Args:
        problem: The analysis.
        options: Its options.
        needs: Paths of a report that must not be left out.
        monitor: Receives warnings.

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
        return _by_closed_form(problem, _layout(problem, structure), options)
    if method in ("basis", "probes"):
        return Choice(method)
    why = ""
    if structure is not None:
        try:
            layout = _layout(problem, structure)
        except ResourceError as error:
            why = f"the closed form does not fit: {error.message}"
        else:
            if layout.cost <= _budget(problem):
                return _by_closed_form(problem, layout, options)
            why = f"the closed form would take {layout.cost:.1e} operations"
    elif options.spectrum == "dense":
        return Choice("basis")
    if not options.enclosure or {path.partition(".")[0] for path in needs} & PARTS:
        return _needed(problem, options, why, monitor)
    if options.relative_gap < Options.model_fields["relative_gap"].default:
        return replace(_needed(problem, options, why, None), when="if_open", why=why)
    return Choice(None, when="if_cheap", why=why)


def choose_after(
    choice: Choice,
    problem: Problem,
    options: Options,
    shared: krylov.Krylov | None,
    enclosure: r.Enclosure | None,
    monitor: Monitor,
) -> Choice:
    """Decide what ``choose`` left open; warn if moments are left out.

    Args:
        choice: From ``choose``.
        problem: The analysis.
        options: Its options.
        shared: The run of the enclosure.
        enclosure: The enclosure; None if there is none.
        monitor: Receives warnings.
    """
    if choice.when not in ("if_open", "if_cheap"):
        return choice
    if enclosure is None or shared is None:
        found = choice if choice.method is not None else _needed(problem, options, choice.why, monitor)
        # Unless δ was shared with them, the enclosure may not rest on probes.
        return replace(found, when="if_cheap" if found.probing and not choice.probing else "last")
    ends = (enclosure.lambda_max, enclosure.lambda_min)[: 1 + (options.ends == "both")]
    gaps = [math.inf if end.relative_gap is None else end.relative_gap for end in ends]
    # What is decided is narrow enough.
    is_open = enclosure.stopped_by != "decided" and max(gaps) > options.relative_gap
    if choice.method is not None and is_open:
        return replace(choice, when="last")
    choice, products = replace(choice, when="if_cheap"), shared.run.products
    allowed = CHEAP_SHARE * products
    if allowed >= problem.objective.parameters:
        return replace(choice, method="basis", when="last")
    if allowed >= probe_count(probe_share(problem, options, choice)):
        # The enclosure may not rest on them: its failure probability is spent.
        return replace(choice, method="probes")
    monitor.warn("moments_left_out", left_out(problem, options, choice, products))
    return replace(choice, method=None)


def left_out(problem: Problem, options: Options, choice: Choice, products: int) -> str:
    """Say what moments would cost beside an enclosure of so many products, and how to get them."""
    P, probes = problem.objective.parameters, probe_count(probe_share(problem, options, choice))
    return (f"{choice.why}; " if choice.why else "") + (
        f"the enclosure takes {products} products, and tr H and ‖H‖_F² would take {P:,} more (moments basis), or "
        f"{probes} for an estimate (moments probes): ask for them with moments"
    )


def _by_closed_form(problem: Problem, layout: Layout, options: Options) -> Choice:
    seconds = layout.cost / _rate(problem)
    most = FIRST_SECONDS if options.time_limit is None else min(FIRST_SECONDS, FIRST_SHARE * options.time_limit)
    is_first = seconds <= most or not options.enclosure
    return Choice("closed_form", layout, "first" if is_first else "last")


def _needed(problem: Problem, options: Options, why: str, monitor: Monitor | None) -> Choice:
    """Choose between the basis, probes and nothing by what they cost, if there is no closed form."""
    P, each, budget = problem.objective.parameters, problem.product_operations, _budget(problem)
    if problem.structure is None:
        if P <= BASIS_PARAMETERS and P * each <= budget:
            return Choice("basis")
        why = f"the whole basis of {P:,} parameters would take {P * each:.1e} operations"
    probes = probe_count(probe_share(problem, options, Choice("probes")))
    cost = (DEFLATED + probes) * each
    found = Choice("probes") if cost <= budget else Choice(None)
    if monitor is not None and found.method is not None:
        monitor.warn(
            "moments_probes",
            f"{why}: {probes} random products estimate the trace and bound the Frobenius norm from above",
        )
    elif monitor is not None:
        monitor.warn(
            "moments_unavailable",
            f"{why}, and {probes} random products {cost:.1e}, more than {budget:.0e}: no moments; ask for one of these "
            "with moments if the time does not matter",
        )
    return found


def _rate(problem: Problem) -> float:
    return nominal_rate(problem.objective.device, problem.objective.dtype)


def _budget(problem: Problem) -> float:
    """Return the operations that moments may take unless a method is asked for."""
    return BUDGET_SECONDS * _rate(problem)


def probe_share(problem: Problem, options: Options, choice: Choice) -> float:
    """Return δ of probes: all that rounding leaves if no enclosure rests on them."""
    single = problem.objective.dtype == torch.float32
    return shares(options, single=single, probing=choice.when != "if_cheap")


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
        return _probed(problem, options, shared, rounding, choice, monitor)
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
        trace = general_trace(problem.objective, problem.logits.classes)
    else:
        with torch.no_grad():
            net, device = problem.structure.net, problem.objective.device
            rows = rows_of(net, device, int(GAUSS_NEWTON_SHARE * problem.memory))
            trace = mlp_trace(net, problem.tile, problem.objective.targets.weights, rows=rows)
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
    problem: Problem, options: Options, shared: krylov.Krylov, rounding: Rounding, choice: Choice, monitor: Monitor
) -> MomentsResult:
    share = probe_share(problem, options, choice)
    found, ritz = krylov.probe(shared, options.seed, share, monitor)
    t = finite(found.trace, "the Hessian's trace")
    norm = rounding.norm(found.frobenius_squared)[1]
    q = finite(norm * norm, "the Hessian's Frobenius norm")
    chance = found.failure_probability + rounding.failure_probability
    inwards = None if ritz is None else ritz[2] + rounding.operator
    return MomentsResult(
        part=r.Moments(
            method="probes",
            exact=False,
            trace=t,
            frobenius_squared=q,
            failure_probability=chance,
            trace_standard_error=finite(found.trace_error, "the trace's standard error"),
            probes=r.ProbeTerms(
                count=found.count,
                steps=found.steps,
                mean_square=found.mean_square,
                factorisation_error=found.factorisation_error,
                ritz_slack=inwards,
                failure_probability=found.failure_probability,
            ),
        ),
        known=CertifiedNorm(found.frobenius_squared, found.failure_probability),
        quantities=Quantities(
            order=problem.objective.parameters,
            norm=(0.0, norm),
            ritz=None if ritz is None or inwards is None else (ritz[0] + inwards, ritz[1] - inwards),
            failure_probability=chance,
        ),
    )


def _layout(problem: Problem, structure: Structure) -> Layout:
    device, dtype = problem.objective.device, problem.objective.dtype
    launch = launch_operations(device, dtype)
    tiles = 1 if launch else MIN_TILES
    if problem.team is not None:  # enough pairs of tiles for all members
        tiles = max(tiles, 2 * problem.team.size)
    return cheapest_layout(
        structure.net,
        problem.samples,
        memory=problem.memory,
        itemsize=dtype.itemsize,
        tiles=tiles,
        launch=launch,
    )


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
