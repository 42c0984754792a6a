"""Scaled sharpness: λ_max of D H D, where D measures each parameter by its group (mathematics.md, section 13)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from wsb_engine import report as r
from wsb_engine.analysis.moments import FIRST_SECONDS, FIRST_SHARE
from wsb_engine.analysis.monitor import Monitor
from wsb_engine.analysis.problem import Problem
from wsb_engine.analysis.questions.preconditioned import PreconditionedProblem, enclosed, in_units_of_d
from wsb_engine.bounds.certificates import ExactMoments
from wsb_engine.bounds.rounding import Rounding
from wsb_engine.curvature.closed_form.layout import Layout
from wsb_engine.curvature.closed_form.scaled import Group, Sizes, groups, scaled_moments, sizes
from wsb_engine.curvature.cost import nominal_rate
from wsb_engine.curvature.products.autodiff import HessianProduct
from wsb_engine.curvature.products.scaled import Diagonal
from wsb_engine.curvature.tracing.filters import filter_axes
from wsb_engine.errors import finite
from wsb_engine.options import Options

SEED = 0x1B873593
"""Separates the random vectors of this question from others of the same seed."""
NORM_ERROR = 64 * 2.0**-53
"""Relative error of a norm: that of pairwise sums of up to 2^60 squares, of the squares and of the root."""
ABOUT = "scaled sharpness"
"""What warnings are about."""


def scaled(problem: Problem, product: HessianProduct, options: Options, monitor: Monitor) -> r.Scaled | None:
    """Certify the scaled sharpness that the options ask for.

    Args:
        problem: The analysis.
        product: Multiplies single vectors by H.
        options: Its options.
        monitor: Clock, progress and warnings.

    Returns:
        The part in true units; None if nothing is asked for or, with a warning, if nothing could be said.

    Raises:
        TimeLimitError: ``time_limit`` if there was no time for a single product.
        ResourceError: ``overflow``.
    """
    if options.scaling == "none":
        return None
    diagonal = diagonal_of(problem, options.scaling)
    with monitor.aside(ABOUT):
        plan = _plan(problem, diagonal, options)
        with monitor.limited():
            known = None if plan is None else _moments(problem, diagonal, plan, monitor)
        found = enclosed(
            *(problem, product, diagonal, options, monitor),
            seed=options.seed ^ SEED,
            known=known,
            layout=None if plan is None else plan.layout,
        )
    if found is None:
        return None
    part = r.Scaled(
        scaling=options.scaling,
        lambda_max=found.lambda_max,
        hessian_vector_products=found.products,
        stopped_by=found.stopped_by,
        rounding=found.rounding,
        moments=None if known is None else _reported(known),
        wolkowicz_styan=None if known is None else _bound(known, found.errors, problem.objective.parameters),
    )
    return _in_range(in_units_of_d(part, problem, diagonal))


def diagonal_of(problem: Problem, scaling: Literal["elementwise", "tensor", "filter"]) -> Diagonal:
    """Return D of the selected parameters as stored.

    Args:
        problem: The analysis.
        scaling: ``elementwise``: |w|. ``tensor``: the Frobenius norm of the tensor. ``filter``: that of all weights
            that feed one output; |w| for tensors that are no matrix or kernel, such as a bias.
    """
    objective = problem.objective
    stored = {name: problem.model.parameters[name].detach().double().cpu() for name in objective.selected}
    axes: Mapping[str, int] = {}
    if scaling == "filter":
        together = problem.samples if objective.coupled else objective.group
        inputs = objective.chunk_inputs(slice(0, together))
        axes = filter_axes(objective.function, {**objective.fixed, **objective.selected}, inputs)
    parts = {name: _sizes(name, tensor, scaling, axes) for name, tensor in stored.items()}
    flat = objective.flatten(parts)
    finite(float(flat.amax()), "the size of a parameter")
    error = 0.0 if scaling == "elementwise" else NORM_ERROR
    return Diagonal.of(flat.to(objective.device), error=error)


def _sizes(name: str, tensor: Tensor, scaling: str, axes: Mapping[str, int]) -> Tensor:
    """Return the scales of one tensor, of its shape."""
    if scaling == "tensor":
        return _norms(tensor.reshape(1, -1)).expand(tensor.numel()).reshape(tensor.shape)
    long = sum(size > 1 for size in tensor.shape)
    if scaling == "elementwise" or (name not in axes and long <= 1):
        return tensor.abs()
    axis = axes.get(name, 0)
    filters = tensor.movedim(axis, 0)
    norms = _norms(filters.reshape(len(filters), -1))
    return norms.view(-1, *[1] * (tensor.ndim - 1)).expand(filters.shape).movedim(0, axis)


def _norms(rows: Tensor) -> Tensor:
    """Return the norms of rows, (m,), to a relative error of ``NORM_ERROR``."""
    largest = rows.abs().amax(dim=1, keepdim=True)
    # Powers of two, so that no square leaves the range of numbers.
    exponents = torch.frexp(largest).exponent.clamp(-1000, 1000)
    terms = torch.ldexp(rows, -exponents).square_()
    while terms.shape[1] > 1:
        half = (terms.shape[1] + 1) // 2
        terms[:, : terms.shape[1] - half] += terms[:, half:]
        terms = terms[:, :half]
    return torch.ldexp(terms.sqrt(), exponents).squeeze(1)


@dataclass(frozen=True)
class _Plan:
    """How to sum the closed form."""

    groups: Sequence[Group]
    sizes: Sizes
    layout: Layout
    """A layout with at least as many roundings."""


def _plan(problem: Problem, diagonal: Diagonal, options: Options) -> _Plan | None:
    """Return how to sum the closed form; None if there is none, it was not wanted, or it would take too long."""
    if options.moments not in ("auto", "closed_form") or not bool(diagonal.s.any()) or diagonal.is_wide:
        return None
    double = PreconditionedProblem.of(problem.at(problem.objective.in_double()), diagonal)
    structure, scales = double.structure, double.layer_scales
    found = None if scales is None else groups(scales)
    if structure is None or not found:
        return None
    cost = sizes(structure.net, found, problem.samples, problem.memory)
    most = FIRST_SECONDS if options.time_limit is None else min(FIRST_SECONDS, FIRST_SHARE * options.time_limit)
    if cost is None or cost.cost > most * nominal_rate(problem.objective.device, torch.float64):
        return None
    learning = sorted({group.layer for group in found})
    layout = Layout(
        forms={(l, k): "packed" for l in learning for k in learning if l <= k},
        tile=cost.tile,
        kept=1,
        memory=problem.memory,
        itemsize=torch.float64.itemsize,
        cost=cost.cost,
    )
    return _Plan(found, cost, layout)


def _moments(problem: Problem, diagonal: Diagonal, plan: _Plan, monitor: Monitor) -> ExactMoments:
    double = problem.at(problem.objective.in_double())
    structure, weights = double.structure, double.objective.targets.weights
    if structure is None:
        raise ValueError("only an MLP has a closed form")
    with torch.no_grad():
        t, q = scaled_moments(
            structure.net, double.tile, weights, plan.groups, plan.sizes.tile, progress=monitor.report
        )
    return ExactMoments(finite(t, "the scaled Hessian's trace"), finite(q, "the scaled Hessian's Frobenius norm"))


def _in_range(part: r.Scaled) -> r.Scaled:
    """Leave out moments that only overflow in true units."""
    moments = part.moments
    if moments is None or (math.isfinite(moments.trace) and math.isfinite(moments.frobenius_squared)):
        return part
    return part.model_copy(update={"moments": None, "wolkowicz_styan": None})


def _reported(known: ExactMoments) -> r.Moments:
    return r.Moments(method="closed_form", exact=True, trace=known.trace, frobenius_squared=known.frobenius_squared)


def _bound(known: ExactMoments, errors: Rounding, parameters: int) -> r.Interval:
    ends = errors.wolkowicz_styan(known.trace, known.frobenius_squared, parameters)
    return r.Interval(lower=ends.lambda_max_lower, upper=ends.lambda_max_upper)
