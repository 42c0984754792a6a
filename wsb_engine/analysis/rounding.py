"""The stage that bounds or measures the rounding errors of H (mathematics.md, section 11).

Three levels: a proof for smooth MLPs in float64, by running error analysis; elsewhere in float64 a measurement, by
perturbing parameters and inputs; in float32 a bound from random products of the difference to float64.

A time limit may leave time for fewer products than that. Then the slack is wider, and what is missing of the
measurement in float64 follows after the enclosure, if there is time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from wsb_engine.analysis.agreement import norm
from wsb_engine.analysis.monitor import Monitor, TimeLimitError
from wsb_engine.analysis.perturbation import PERTURBATION, deciding, in_monte_carlo_arithmetic, perturbed
from wsb_engine.analysis.problem import Problem
from wsb_engine.bounds.rounding import SUMS, Rounding, frobenius_factor
from wsb_engine.curvature.closed_form.layout import Layout
from wsb_engine.curvature.closed_form.running_error import running_error
from wsb_engine.curvature.cost import WORKING_SHARE
from wsb_engine.curvature.products.autodiff import HessianProduct
from wsb_engine.errors import ModelError, ResourceError
from wsb_engine.random_vectors import gaussian

UNIT = 2.0**-53
SINGLE_UNIT = 2.0**-24
PERTURBATIONS = 4
MOVED = 1
"""Products that measure, on one vector, what moving the results of operators changes."""
USELESS = 1e-3
"""Largest relative bound of a proof that is kept; beyond it rounding is measured."""
SAFETY = 32.0
"""Factor from the effect of perturbations to a slack; they estimate rounding within a small factor, without proof."""
DIFFERENCES, LEAST_DIFFERENCES = 10, 4
"""Number of random products of the difference between float32 and float64, and the least if there is a time limit."""
SHARE = 0.25
"""Share of the time left that rounding may take before the enclosure, once it has the least number of products."""
TINIEST, TINIEST_SINGLE = 2.0**-1000, 2.0**-100
"""What sums lose of terms below the range of float64, or float32, at the scale at which g and S are about 1."""
TINIEST_CURVATURE = 2.0**-1030
"""Error of probabilities below the smallest normal number, with room for inputs and weights."""
STREAM = 0x2545F491
"""Distinguishes these seeds from those of other random vectors."""


@dataclass
class Measuring:
    """Bounds or measures the rounding errors of one analysis.

    Args:
        problem: The analysis.
        seed: Seed of the random vectors.
        failure_probability: Share of δ for a bound from random products.
        monitor: Clock, progress, and the count of products.
    """

    problem: Problem
    seed: int
    failure_probability: float
    monitor: Monitor
    _sizes: list[float] = field(default_factory=list)
    """‖(H′ − H) z‖ of each perturbation so far, for a random z."""
    _unstable: list[float] = field(default_factory=list)
    """The same where results of operators move, or nothing if torch can't multiply in that way."""
    _immovable: bool = False

    def rounding(self, product: HessianProduct, layout: Layout | None) -> Rounding:
        """Bound rounding errors, in the units of the products.

        Args:
            product: Product for single vectors.
            layout: Layout of the closed form's sums, if there is one.

        Raises:
            ResourceError: ``overflow``.
            TimeLimitError: ``time_limit``.
        """
        reserve = (1 - SHARE) * self.monitor.seconds_left
        with self.monitor.multiplying_for("rounding"):
            if product.dtype == torch.float32:
                return self._single(product, reserve)
            proven = None
            with self._while_time_allows(reserve, "a proof of rounding errors: they are measured instead"):
                proven = self._proven(layout)
            return self._measured(product, reserve) if proven is None else proven

    @contextmanager
    def _while_time_allows(self, reserve: float, what: str) -> Iterator[None]:
        """End the block, with a warning, once no more time is left than the enclosure needs.

        Args:
            reserve: Seconds to leave for the enclosure.
            what: What the block does.
        """
        try:
            with self.monitor.limited(reserve):
                yield
        except TimeLimitError:
            self.monitor.warn("rounding_cut", f"the time limit leaves no time for {what}")

    def confirmed(
        self, product: HessianProduct, rounding: Rounding, x: Tensor, image: Tensor, scaling: float = 1.0
    ) -> Rounding:
        """Return the measurement, completed and extended to a vector, if it rests on perturbations; else as it is.

        Args:
            product: Product for single vectors.
            rounding: From ``rounding``, or from another vector.
            x: (P,) unit vector.
            image: (P,) its product, times the scaling.
            scaling: A power of two.
        """
        if rounding.product is not None or rounding.failure_probability:
            return rounding
        sizes = []
        with self.monitor.multiplying_for("rounding"):
            while len(self._sizes) < PERTURBATIONS:
                self._perturb(product)
            for index in range(PERTURBATIONS):
                sizes.append(_difference(self._perturbed(index), x, image, scaling))
            unstable = self._in_monte_carlo_arithmetic(x, image, scaling)
        worst = max(_root_mean_square(self._sizes), _root_mean_square(sizes), *unstable)
        return replace(rounding, operator=max(rounding.operator, _slack(worst)))

    def _proven(self, layout: Layout | None) -> Rounding | None:
        """Bound rounding by running error analysis; None if it does not apply or its bounds are too wide."""
        problem = self.problem
        if problem.structure is None or not problem.provable or not self._reads_inputs_as_they_are():
            return None
        net, weights = problem.structure.net, problem.objective.targets.weights
        with torch.no_grad():
            memory, scales = int(problem.memory * WORKING_SHARE), problem.layer_scales
            found = running_error(net, problem.tile, weights, memory=memory, scales=scales)
        if found is None or not found.operator + found.product <= USELESS * found.absolute:
            return None
        factor = 0.0 if layout is None else found.moments(net, layout, len(weights))
        if not math.isfinite(factor * found.absolute * found.absolute):
            return None
        return Rounding(
            "proven",
            found.operator + TINIEST + TINIEST_CURVATURE * net.scale,
            found.product,
            square_error=factor * found.absolute * found.absolute + TINIEST,
            trace_error=factor * found.absolute,
        )

    def _reads_inputs_as_they_are(self) -> bool:
        """Return True if the first layer's features are the batch's numbers, so that they are exact."""
        problem, objective = self.problem, self.problem.objective
        if len(objective.inputs) != 1:
            return False
        for rows in objective.chunks():
            a0, _ = problem.tile(rows.start, rows.stop)
            given = objective.rows(next(iter(objective.inputs)), rows)
            if not torch.equal(a0.cpu(), given.reshape(len(a0), -1).to(a0.dtype)):
                return False
        return True

    def _measured(self, product: HessianProduct, reserve: float) -> Rounding:
        self._perturb(product)
        with self._while_time_allows(
            reserve, "all perturbations before the enclosure: the slack for rounding is wider"
        ):
            while len(self._sizes) < PERTURBATIONS:
                self._perturb(product)
        operator = _slack(_root_mean_square(self._sizes)) * (PERTURBATIONS / len(self._sizes)) ** 2
        operator = max(operator, *map(_slack, self._unstable), 0.0)
        operator += TINIEST + TINIEST_CURVATURE * self.problem.objective.scale
        return Rounding("measured", operator, relative_square_error=SUMS * UNIT, square_error=TINIEST)

    def _perturb(self, product: HessianProduct) -> None:
        """Measure the next perturbation along a random vector."""
        index = len(self._sizes)
        z = self._gaussian(index).to(product.device)
        image = product.vector(z)
        if not index:
            self._unstable += self._in_monte_carlo_arithmetic(z, image)
        self._sizes.append(_difference(self._perturbed(index), z, image))
        self.monitor.tell(len(self._sizes) / PERTURBATIONS)

    def _single(self, product: HessianProduct, reserve: float) -> Rounding:
        """Bound ‖H₃₂ − H₆₄‖_F by products with Gaussian vectors; the rounding of float64 is added.

        Their number follows from the clock alone, never from what they show, so that the bound holds for it.
        """
        least = DIFFERENCES if math.isinf(reserve) else LEAST_DIFFERENCES
        sizes = list(self._drifts(product, range(least)))
        with self._while_time_allows(reserve, "all products that bound rounding: the slack for it is wider"):
            for size in self._drifts(product, range(least, DIFFERENCES)):
                sizes.append(size)
        mean = _root_mean_square(sizes)
        factor = math.sqrt(frobenius_factor(len(sizes), self.failure_probability))
        operator = mean / factor + SAFETY * UNIT / SINGLE_UNIT * mean
        return Rounding(
            "measured",
            operator,
            failure_probability=self.failure_probability,
            relative_square_error=SUMS * SINGLE_UNIT,
            square_error=TINIEST_SINGLE,
            trace_error=TINIEST_SINGLE,
        )

    def _drifts(self, product: HessianProduct, indices: range) -> Iterator[float]:
        """Yield ‖(H₃₂ − H₆₄) z‖ for Gaussian vectors z by their indices."""
        problem, reference = self.problem, None
        while indices:
            if reference is None:
                reference = problem.product_at(problem.objective.in_double(), self._columns(DIFFERENCES))
            some, indices = indices[: reference.columns], indices[reference.columns :]
            Z = torch.stack([self._gaussian(index).float() for index in some], dim=1).double()
            differences = reference(Z)
            Z = Z.float()
            if problem.is_short_of_memory:
                reference = None  # created again for the next: beside products in float32 it would take memory
            for index, column, v in zip(some, differences.unbind(1), Z.unbind(1), strict=True):
                column -= product.vector(v)
                self.monitor.tell((index + 1) / DIFFERENCES)
                yield norm(column)
            del Z, v, differences, column

    def _gaussian(self, index: int) -> Tensor:
        objective = self.problem.objective
        return gaussian(objective.parameters, self.seed ^ STREAM, index, objective.device)

    def _perturbed(self, index: int) -> HessianProduct:
        """Return a product at parameters and inputs multiplied by 1 + εξ, with recomputed forward quantities."""
        seed = (self.seed ^ STREAM) + DIFFERENCES * (index + 1)
        return self.problem.product_at(perturbed(self.problem.objective, seed, self._held))

    def _columns(self, most: int) -> int:
        """Return the number of columns of a block: from scratch, one after the other takes less time and memory."""
        return 1 if self.problem.structure is None else most

    def _in_monte_carlo_arithmetic(self, v: Tensor, image: Tensor, scaling: float = 1.0) -> list[float]:
        """Return ‖(H″ − H) v‖ for a vector, (P,), where results of operators move.

        This product is by double backward. By how much the known image σH v differs from that otherwise, by rounding,
        weighs a thousand times less. Empty if an operator has no second derivative, or one that is not finite once
        numbers move, or a backward pass of the module's own, for which kept numbers may be flags.
        """
        problem = self.problem
        if self._immovable:
            return []
        if problem.has_own_backward:
            return self._give_up("the module defines its own backward pass")
        # The closed form computes slopes without loss.
        written_out = problem.structure is None
        moved = in_monte_carlo_arithmetic(problem.objective, self.seed ^ STREAM, written_out=written_out)
        try:
            return [_difference(problem.from_scratch(moved), v, image, scaling)]
        except (ModelError, ResourceError) as error:
            if error.code not in ("not_differentiable", "overflow"):
                raise
            return self._give_up("torch has no finite second derivative of one of its operators by itself")

    def _give_up(self, reason: str) -> list[float]:
        """Move no results of operators, and say so; return no sizes."""
        self._immovable = True
        self.monitor.warn(
            "rounding_in_part",
            f"rounding is measured by moving parameters and inputs alone, since {reason}; where operators saturate or "
            "cancel, they may round more than the enclosure allows for",
        )
        return []

    @cached_property
    def _held(self) -> dict[str, Tensor]:
        return deciding(self.problem.objective)


def _difference(product: HessianProduct, v: Tensor, image: Tensor, scaling: float = 1.0) -> float:
    """Return ‖H′ v − H v‖ for a vector v, (P,), and its image σH v.

    Raises:
        ResourceError: ``overflow`` if it is not finite.
    """
    difference = product(v.unsqueeze(1)).squeeze(1).mul_(scaling)
    difference -= image
    size = norm(difference) / scaling
    if not math.isfinite(size):
        raise ResourceError(
            "a Hessian-vector product is not finite once parameters and inputs move by 2⁻⁴³ of their size, so that "
            "rounding cannot be measured",
            code="overflow",
            advice="Move inputs and weights off the edge of where the model is defined, or rescale them.",
        )
    return size


def _root_mean_square(sizes: Sequence[float]) -> float:
    """Return √ of the mean square of numbers whose squares may leave the range of numbers."""
    return math.hypot(*sizes) / math.sqrt(len(sizes))


def _slack(root_mean_square: float) -> float:
    """Return ‖E‖ estimated from ‖H′ − H‖ at perturbations of size PERTURBATION."""
    return SAFETY * UNIT / PERTURBATION * root_mean_square
