"""Enclosures of λ_max of D (H + μI) D for a diagonal D (mathematics.md, section 13).

Everything is done in units in which the largest entry of D is near 1; a report's part is converted in the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Self, TypeVar

import torch
from pydantic import BaseModel

from wsb_engine import report as r
from wsb_engine.analysis import enclosing, krylov, moments
from wsb_engine.analysis.monitor import Monitor
from wsb_engine.analysis.problem import Problem
from wsb_engine.analysis.rounding import Measuring
from wsb_engine.bounds.certificates import KnownMoments, Premises, StoppedBy
from wsb_engine.bounds.rounding import Rounding
from wsb_engine.curvature.closed_form.layout import Layout
from wsb_engine.curvature.closed_form.scales import LayerScale, layer_scales
from wsb_engine.curvature.products.autodiff import COLUMNS, HessianProduct, Objective
from wsb_engine.curvature.products.scaled import Diagonal, ScaledProduct
from wsb_engine.curvature.threads import ONE_THREAD_OPERATIONS, threads_of
from wsb_engine.options import Options
from wsb_engine.units import in_true_units

UNIT = 2.0**-53
SHIFT_ROUNDINGS = 32
"""Units of rounding of μ s² v, with s² ≤ 4, in a product."""
Part = TypeVar("Part", bound=BaseModel)


@dataclass(frozen=True)
class PreconditionedProblem(Problem):
    """A problem about D (H + μI) D; its objective remains that of H."""

    diagonal: Diagonal | None = None

    @classmethod
    def of(cls, problem: Problem, diagonal: Diagonal) -> Self:
        return cls(**{each.name: getattr(problem, each.name) for each in fields(problem)}, diagonal=diagonal)

    @property
    def layer_scales(self) -> tuple[LayerScale, ...] | None:
        if self.structure is None or self.diagonal is None:
            return None
        return layer_scales(self.structure.mlp, self.objective.unflatten(self.diagonal.s.to(self.objective.device)))

    @property
    def provable(self) -> bool:
        return self.diagonal is None or not self.diagonal.is_wide

    def hessian_product(self, columns: int = COLUMNS) -> HessianProduct:
        return self._preconditioned(super().hessian_product(columns))

    def from_scratch(self, objective: Objective, columns: int = 1) -> HessianProduct:
        return self._preconditioned(super().from_scratch(objective, columns))

    def _preconditioned(self, product: HessianProduct) -> HessianProduct:
        return product if self.diagonal is None else ScaledProduct(product, self.diagonal)


@dataclass(frozen=True)
class Enclosed:
    """λ_max of D (H + μI) D, in the units of s ⊙ H s."""

    lambda_max: r.CertifiedInterval
    products: int
    stopped_by: StoppedBy | None
    rounding: r.Rounding | None
    errors: Rounding
    """What bounds from moments have to allow for."""


def enclosed(
    problem: Problem,
    product: HessianProduct,
    diagonal: Diagonal,
    options: Options,
    monitor: Monitor,
    *,
    seed: int,
    known: KnownMoments | None = None,
    layout: Layout | None = None,
) -> Enclosed | None:
    """Enclose λ_max as the enclosure of H does, with a run of its seed.

    Args:
        problem: The analysis of H.
        product: Multiplies single vectors by H.
        diagonal: D and μ.
        options: Options of the analysis.
        monitor: Clock, progress and warnings.
        seed: Seed of all random vectors.
        known: Exact moments in the units of s ⊙ H s, if there are any.
        layout: The sums that they come from.

    Returns:
        None, with a warning, if the enclosure would say nothing.

    Raises:
        TimeLimitError: ``time_limit`` if there was no time for a single product.
        ResourceError: ``overflow``.
    """
    if not bool(diagonal.s.any()):
        return _nothing()
    alone = {"seed": seed, "ends": "largest", "spectrum": "none", "density": False, "stop": "gap", "enclosure": True}
    options, scaled = options.model_copy(update=alone), PreconditionedProblem.of(problem, diagonal)
    operator = ScaledProduct(product, diagonal)
    shared = krylov.krylov(scaled, operator, options, monitor)
    share = moments.shares(options, single=operator.dtype == torch.float32, probing=False)
    measuring = Measuring(scaled, seed, share, monitor)
    small = problem.product_operations <= ONE_THREAD_OPERATIONS
    with threads_of(problem.objective.device, one=small):
        with monitor.limited():
            rounding = _with_shift(measuring.rounding(operator, layout), diagonal)
        premises = Premises(
            rounding=rounding,
            moments=known,
            failure_probability=measuring.failure_probability,
            relative_gap=options.relative_gap,
            both=False,
        )
        found, _ = enclosing.enclosure(scaled, shared, premises, measuring, options, monitor)
    if found is None:
        return None
    end = _with_zeros(_moved(found.lambda_max, diagonal.error), diagonal)
    return Enclosed(end, found.hessian_vector_products, found.stopped_by, found.rounding, rounding)


def in_units_of_d(part: Part, problem: Problem, diagonal: Diagonal) -> Part:
    """Return a part of a report on D (H + μI) D, given that in the units of s ⊙ H s."""
    for factor in (problem.objective.scale, 2.0**-diagonal.exponent, 2.0**-diagonal.exponent):
        part = in_true_units(part, factor)
    return part


def interval(like: r.CertifiedInterval, lower: float, upper: float) -> r.CertifiedInterval:
    """Return an interval between other ends, as certain as another one."""
    size = max(abs(lower), abs(upper))
    gap = (upper - lower) / size if size else 0.0
    return like.model_copy(update={"lower": lower, "upper": upper, "relative_gap": gap if math.isfinite(gap) else None})


def _nothing() -> Enclosed:
    """Return the enclosure of the matrix 0."""
    zero = r.CertifiedInterval(lower=0, upper=0, relative_gap=0, kind="deterministic", failure_probability=None)
    return Enclosed(zero, 0, "gap", r.Rounding(how="proven", slack=0), Rounding("proven", 0.0, 0.0))


def _with_shift(rounding: Rounding, diagonal: Diagonal) -> Rounding:
    """Add what rounds in μ s² v to a proof; a measurement has it."""
    if rounding.product is None or not diagonal.shift:
        return rounding
    return replace(rounding, product=rounding.product + SHIFT_ROUNDINGS * UNIT * diagonal.shift)


def _moved(end: r.CertifiedInterval, error: float) -> r.CertifiedInterval:
    """Move both ends outwards for the errors of D.

    By Ostrowski's theorem (Horn and Johnson, Matrix Analysis, 4.5.9) the eigenvalues of D₁ H D₁, D₁ = D(I + E), are
    those of D H D times factors between (1 − ε)² and (1 + ε)², where ε bounds the entries of the diagonal E.
    """
    if not error:
        return end
    lower, upper = end.lower - 3 * error * abs(end.lower), end.upper + 3 * error * abs(end.upper)
    return interval(end, math.nextafter(lower, -math.inf), math.nextafter(upper, math.inf))


def _with_zeros(end: r.CertifiedInterval, diagonal: Diagonal) -> r.CertifiedInterval:
    """Use the eigenvalue 0 that comes with an entry 0."""
    if not diagonal.has_zeros or end.lower >= 0:
        return end
    return interval(end, 0.0, max(end.upper, 0.0))
