"""Enclosures of both ends of the spectrum from one Lanczos run (mathematics.md, sections 5, 6 and 11).

Inner ends are Ritz values. Outer ends come from two kinds of bounds. Deflation bounds H in the complement of the basis
by t and q: with certainty if they are exact, else with the probability of the bound on q. The other kind rests on the
random start vector, needs no basis, and is always available. Every end is moved outwards by the rounding that
``Rounding`` proves or measures. Without a basis, inner ends are provisional until ``confirmation`` replaces them.

All bounds of one kind hold together, whatever the number of steps, and so does their running intersection.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace

import torch

from wsb_engine.bounds.bound import Range
from wsb_engine.bounds.certificates import Derivation, Enclosures, End, ExactMoments, Premises, StoppedBy, Theorem
from wsb_engine.bounds.deflation import Remainder, bordered_eigenvalues, bordered_maximum, remainder
from wsb_engine.bounds.lanczos_polynomial import Recurrence, bound_exceeds, largest_eigenvalue_bound
from wsb_engine.bounds.rounding import How, Rounding
from wsb_engine.errors import ResourceError
from wsb_engine.spectrum.lanczos import Lanczos
from wsb_engine.spectrum.run import UNIT, Run

STRIDE = 10
"""The bounds are evaluated each time the number of steps has grown by one part in this many."""
STALL = 10
"""Products within which a gap has to shrink by a tenth to count as narrowing."""
WORTHWHILE = 1e3
"""A less certain interval is preferred to one at its floor only if it is more than this many times narrower."""
FLOOR_MARGIN = 1.1
"""A gap is at its floor if it is at most this many times as wide as rounding leaves it."""
USEFUL_GAP = 1e-3
"""δ is raised if rounding keeps the gap of a probabilistic end above this and above the requested gap."""
LARGEST_DELTA = 0.05
"""Largest δ to which it is raised."""
DELTA_STEPS = 40
"""Bisections of ln δ."""
PAIGE = 2.0
"""Units of √k ν by which Ritz values of a run without a basis may leave the spectrum; provisional."""
ISOTROPIC = 4.0
"""Multiple of ‖f_j‖/√P that bounds |u_1·f_j| if rounding is isotropic."""
_Bound = tuple[int, How, bool]
"""Sign of H, how rounding is known, and True for a bound by deflation."""


class Enclosing:
    """The enclosure of a Lanczos run in progress; keeps what earlier steps certified.

    Args:
        lanczos: A Krylov run with a uniform random start vector, with or without a basis.
        premises: Premises in the units of σH.
    """

    def __init__(self, lanczos: Run, premises: Premises) -> None:
        self.lanczos, self.premises = lanczos, premises
        self._limits: dict[_Bound, End] = {}
        self._widths: dict[_Bound, dict[int, float]] = {}
        self._slacks: dict[tuple[How, int], tuple[float, float]] = {}
        self._values: list[float] = []

    def evaluate(self, *, final: bool = False) -> Enclosures:
        """Compute what the run certifies now; once the requested gap is reached, certainty beats tightness.

        Args:
            final: True if the run has ended, so that measured bounds count even if proven ones could still improve.
        """
        self._values = self.lanczos.ritz_values()
        top, bottom = self._end(1, asked=True, final=final), self._end(-1, asked=self.premises.both, final=final)
        return Enclosures(lambda_max=top, lambda_min=bottom.mirrored, products=self.lanczos.steps)

    def narrow_enough(self, end: End) -> bool:
        """Return whether the end is as narrow as requested, apart from its slack for rounding."""
        return end.width - 2 * end.slack <= self.premises.relative_gap * end.size

    def stalled(self, sign: int, end: End) -> bool:
        """Return whether rounding limits the end's width and, for λ_max, no other bound is narrowing."""
        return self.narrow_enough(end) or (self._at_floor(sign, end) and not (sign > 0 and self._lambda_max_narrows()))

    def floor(self, sign: int, end: End) -> float:
        """Compute the width below which rounding keeps this kind of end, however many products follow."""
        if end.kind == "deterministic":
            return 2 * end.slack
        return self._by_start_vector(sign, end.how, settled=True).width

    def _at_floor(self, sign: int, end: End) -> bool:
        """Return whether rounding limits the end's width: at most ``FLOOR_MARGIN`` times its floor."""
        if math.isinf(end.width):
            return math.isinf(self.floor(sign, end))
        wanted = end.width / FLOOR_MARGIN
        if end.kind == "deterministic":
            return wanted <= 2 * end.slack
        rounding, slack = self.premises.rounding.operator, self.slack(end.how)[1]
        tau = wanted - slack - rounding + self._largest(sign)
        recurrence = self._recurrence(sign, end.how).settled
        return bound_exceeds(recurrence, self.lanczos.parameters, self.premises.failure_probability, tau)

    def raised(self, sign: int, end: End) -> End:
        """Raise δ, as little as possible, until the gap of the end is useful.

        Args:
            sign: 1 for λ_max(H), −1 for λ_max(−H).
            end: An end that rounding, not the number of products, keeps wide.

        Returns:
            The same end if its gap is useful already, or if no δ up to ``LARGEST_DELTA`` helps.
        """
        wanted, delta = max(USEFUL_GAP, self.premises.relative_gap) * end.size, self.premises.failure_probability
        if end.kind == "deterministic" or end.width <= wanted or delta >= LARGEST_DELTA:
            return end
        high = self._by_start_vector(sign, end.how, delta=LARGEST_DELTA)
        if high.width > wanted:
            return end
        low, top = math.log(delta), math.log(LARGEST_DELTA)
        for _ in range(DELTA_STEPS):
            middle = (low + top) / 2
            trial = self._by_start_vector(sign, end.how, delta=math.exp(middle))
            low, top, high = (low, middle, trial) if trial.width <= wanted else (middle, top, high)
        return high

    def recurrence(self, how: How) -> Recurrence:
        """Return the recurrence of H up to the first breakdown, with bounds on all that rounding did to it."""
        return self._recurrence(1, how)

    def modelled(self, end: End) -> float | None:
        """Bound λ_max under a model: rounding is isotropic, so that |u_1·f_j| ≤ 4 ‖f_j‖/√P. No certificate.

        Args:
            end: The interval of λ_max.

        Returns:
            None if the interval does not rest on the start vector, or rounding hides λ_max even so.
        """
        if end.kind == "deterministic":
            return None
        parameters = self.lanczos.parameters
        recurrence = self._recurrence(1, end.how)
        epsilons = [min(1.0, ISOTROPIC / math.sqrt(parameters)) * epsilon for epsilon in recurrence.epsilons]
        recurrence, delta = replace(recurrence, epsilons=epsilons), self.premises.failure_probability
        bound = max(largest_eigenvalue_bound(recurrence, parameters, delta), self._largest(1))
        return bound + self.premises.rounding.operator if math.isfinite(bound) else None

    def upper_bounds(self, count: int) -> list[float | None]:
        """Compute upper bounds without a failure probability on the largest eigenvalues; None if there is no bound.

        In the basis [Q Q⊥], H is below [ T  βe_k q ; qᵀβe_kᵀ  φI ] in the Loewner order, so its i-th eigenvalue is at
        most the i-th eigenvalue of the bordered matrix, as long as that is above φ.
        """
        lanczos, premises = self.lanczos, self.premises
        if premises.rounding.failure_probability or not isinstance(lanczos, Lanczos):
            return [None] * count
        _, slack = self.slack("measured" if premises.rounding.product is None else "proven")
        if lanczos.exhausted:
            return [value + slack for value in reversed(lanczos.ritz_values()[-count:])]
        rest = self._remainder(1, "measured" if premises.rounding.product is None else "proven")
        if rest is None or premises.deflation_risk:
            return [None] * count
        ceiling = bordered_eigenvalues(lanczos.tridiagonal, lanczos.betas[-1], rest.largest).flip(0).tolist()[:count]
        certain = [value + slack if value > rest.largest else None for value in ceiling]
        return certain + [None] * (count - len(certain))

    def _end(self, sign: int, *, asked: bool, final: bool) -> End:
        """Choose the interval of λ_max(H), or of λ_max(−H) for sign −1; proven ends come before measured ones."""
        found: list[End] = []
        for how in self._kinds_of_rounding():
            for deflates, end in ((True, self._by_deflation(sign, how)), (False, self._by_start_vector(sign, how))):
                if end is None:
                    continue
                end = self._intersected((sign, how, deflates), end)
                if self.narrow_enough(end):
                    return end
                found.append(end)
            if not asked:
                break
            # Measured ends are of no use until rounding limits the width of a proven one.
            if not final and not any(self._at_floor(sign, end) for end in found):
                break
        narrowest = min(found, key=lambda end: end.width)
        close = [end for end in found if end.width <= WORTHWHILE * narrowest.width]
        return next((end for end in close if self._at_floor(sign, end)), narrowest)

    def _kinds_of_rounding(self) -> tuple[How, ...]:
        return ("measured",) if self.premises.rounding.product is None else ("proven", "measured")

    def _intersected(self, bound: _Bound, end: End) -> End:
        """Intersect the end with those of the same bound at earlier steps, which all hold together."""
        before = self._limits.get(bound)
        if before is not None:
            earlier, derivation = before.derivation, end.derivation
            if before.lower > end.lower:
                derivation = replace(derivation, inner=earlier.inner, inner_slack=earlier.inner_slack)
            # What may fail narrows nothing that can't.
            if before.upper < end.upper and before.failure_probability <= end.failure_probability:
                derivation = replace(
                    derivation,
                    theorem=earlier.theorem,
                    steps=earlier.steps,
                    outer_slack=earlier.outer_slack,
                    factorisation_error=earlier.factorisation_error,
                )
                end = replace(end, upper=before.upper)
            end = replace(end, lower=max(before.lower, end.lower), derivation=derivation)
        self._limits[bound] = end
        self._widths.setdefault(bound, {})[self.lanczos.steps] = end.width
        return end

    def _lambda_max_narrows(self) -> bool:
        """Return whether any bound on λ_max narrowed by a tenth in the last products, or is too new to tell."""
        widths = [by_steps for bound, by_steps in self._widths.items() if bound[0] > 0]
        before = [[w for steps, w in each.items() if steps <= self.lanczos.steps - STALL] for each in widths]
        return any(not old or each[max(each)] <= 0.9 * old[-1] for each, old in zip(widths, before, strict=True))

    def noise(self, how: How, steps: int) -> list[float]:
        """Return bounds on the rounding of each of the first ``steps`` products."""
        proven = self.premises.rounding.product
        if how == "proven" and proven is not None:
            return [proven] * steps
        return self.lanczos.product_rounding(steps)

    def slack(self, how: How) -> tuple[float, float]:
        """Compute η, and the distance by which an end is moved outwards: η, ‖E‖ and the eigensolver's rounding.

        The factorisation is exact for a matrix within η of H + E in the Frobenius norm. η combines R, the error of the
        factorisation, and ω = ‖QᵀQ − I‖_F (mathematics.md, section 11). Without a basis η is ‖HQ − QT − βqe_kᵀ‖ alone,
        and the distance is provisional.
        """
        lanczos = self.lanczos
        if (how, lanczos.steps) not in self._slacks:
            noise = math.sqrt(lanczos.steps) * self.noise(how, lanczos.steps)[-1]
            if not isinstance(lanczos, Lanczos):
                paige = PAIGE * math.sqrt(lanczos.steps) * self.noise("measured", lanczos.steps)[-1]
                return lanczos.factorisation_error + noise, paige + self.premises.rounding.operator
            skew = 3 * lanczos.orthogonality(proven=how == "proven") * self._frobenius()
            eta = math.sqrt(2) * (lanczos.factorisation_error + noise + skew)
            # Lest adding it to an end rounds inwards where it is larger than H.
            slack = (eta + self.premises.rounding.operator) * (1 + 4 * UNIT)
            slack += (lanczos.steps + 8) * UNIT * lanczos.norm_estimate
            self._slacks[how, lanczos.steps] = eta, slack
        return self._slacks[how, lanczos.steps]

    @property
    def _knows_moments(self) -> bool:
        """True if there are moments and rounding does not make them useless."""
        return self.premises.moments is not None and self._frobenius() < math.sqrt(sys.float_info.max)

    def _frobenius(self) -> float:
        """Return an upper bound on ‖H + E‖_F; without moments ‖T‖_F, which covers only the span of the basis."""
        moments = self.premises.moments
        if moments is None:
            return float(torch.linalg.vector_norm(self.lanczos.tridiagonal))
        return self.premises.rounding.norm(moments.frobenius_squared)[1]

    def _by_deflation(self, sign: int, how: How) -> End | None:
        """Bound λ_max by deflation; None without a basis, or without moments unless it spans the whole space."""
        lanczos, premises = self.lanczos, self.premises
        if not isinstance(lanczos, Lanczos) or not (lanczos.exhausted or self._knows_moments):
            return None
        largest, (eta, slack) = self._largest(sign), self.slack(how)
        rest = self._remainder(sign, how)
        may_fail = premises.rounding.failure_probability if rest is None else premises.deflation_risk
        bound = (
            largest if rest is None else bordered_maximum(sign * lanczos.tridiagonal, lanczos.betas[-1], rest.largest)
        )
        risk = premises.risk if may_fail else 0.0
        theorem: Theorem = "whole_space" if rest is None else "deflation"
        derivation = Derivation(theorem, lanczos.steps, largest, slack, slack, eta)
        return End(largest - slack, bound + slack, risk, self._size(sign), how, slack, derivation)

    def _remainder(self, sign: int, how: How) -> Remainder | None:
        """Bound the spectrum of ±(H + E) in the complement of the basis; None if that is empty, or without moments."""
        lanczos = self.lanczos
        if not isinstance(lanczos, Lanczos) or lanczos.exhausted or not self._knows_moments:
            return None
        T, q = sign * lanczos.tridiagonal, self._frobenius() ** 2
        return remainder(self._trace(sign), q, lanczos.parameters, T, lanczos.betas[-1], error=self.slack(how)[0])

    def _trace(self, sign: int) -> Range | None:
        """Return the range of the trace of ±(H + E); None if only q is known."""
        moments = self.premises.moments
        if not isinstance(moments, ExactMoments):
            return None
        t = self.premises.rounding.trace(moments.trace, moments.frobenius_squared, self.lanczos.parameters)
        return t if sign > 0 else (-t[1], -t[0])

    def _by_start_vector(self, sign: int, how: How, *, delta: float | None = None, settled: bool = False) -> End:
        """Bound λ_max from the random start vector.

        Args:
            sign: 1 for λ_max(H), −1 for λ_max(−H).
            how: Whether the rounding of products is proven or measured.
            delta: δ; None for that of the premises.
            settled: True to set the residual of the recurrence to 0, which leaves only rounding.
        """
        lanczos, rounding, largest = self.lanczos, self.premises.rounding, self._largest(sign)
        recurrence = self._recurrence(sign, how)
        recurrence = recurrence.settled if settled else recurrence
        delta = self.premises.failure_probability if delta is None else delta
        near = None if lanczos.first_breakdown else largest
        bound = max(largest_eigenvalue_bound(recurrence, lanczos.parameters, delta, near=near), largest)
        eta, slack = self.slack(how)
        risk = self.premises.risk - self.premises.failure_probability + delta
        # The bound already includes the errors of the recurrence.
        mean = (slack + rounding.operator) / 2
        steps = lanczos.first_breakdown or lanczos.steps
        derivation = Derivation("start_vector", steps, largest, slack, rounding.operator, eta, delta)
        upper = math.nextafter(bound + rounding.operator, math.inf) if rounding.operator else bound
        return End(largest - slack, upper, risk, self._size(sign), how, mean, derivation)

    def _recurrence(self, sign: int, how: How) -> Recurrence:
        """Return the recurrence of ±H up to the first breakdown."""
        lanczos = self.lanczos
        first = lanczos.first_breakdown or lanczos.steps
        epsilons = [e + v for e, v in zip(lanczos.errors, self.noise(how, first), strict=False)]
        recurrence = Recurrence(lanczos.alphas[:first], lanczos.betas[:first], lanczos.gammas[:first], epsilons)
        return recurrence if sign > 0 else recurrence.mirrored

    def _largest(self, sign: int) -> float:
        """λ_max of ±T."""
        return self._values[-1] if sign > 0 else -self._values[0]

    def _size(self, sign: int) -> float:
        """Return what the gap is relative to: |λ_max|; for λ_min, the larger of |λ_max| and |λ_min|."""
        first, last = abs(self._values[0]), abs(self._values[-1])
        return last if sign > 0 else max(first, last)


def enclose(
    enclosing: Enclosing,
    *,
    max_products: int,
    progress: Callable[[Enclosures], None] = lambda _: None,
    expired: Callable[[], bool] = lambda: False,
    decided: Callable[[Enclosures], bool] = lambda _: False,
) -> Enclosures:
    """Continue the run until the gaps are small enough, all is decided, only rounding is left, or a limit is reached.

    Args:
        enclosing: The run and its premises; advanced.
        max_products: Limit on the steps of the run, earlier ones included.
        progress: Called with what is certified so far; may raise to stop.
        expired: Called after each evaluation; returns True to end the run with what is certified by then.
        decided: Called with what is certified so far; returns True if that is all the caller needs.

    Raises:
        ResourceError: ``time_limit`` from a product if nothing is certified yet; later it only ends the run.
    """
    lanczos, premises = enclosing.lanczos, enclosing.premises
    spans = isinstance(lanczos, Lanczos) and lanczos.dimension <= max_products
    history: list[Enclosures] = []
    stopped: StoppedBy | None = None
    while stopped is None:
        try:
            _advance(lanczos, max(1, lanczos.steps // STRIDE) if history or not lanczos.steps else 0, max_products)
        except ResourceError as error:
            if error.code != "time_limit" or not lanczos.steps:
                raise
            stopped = "time"
        now = enclosing.evaluate()
        history.append(now)
        progress(now)
        asked = [(1, now.lambda_max), (-1, now.lambda_min.mirrored)][: 1 + premises.both]
        if all(end.width <= premises.relative_gap * end.size for _, end in asked):
            stopped = "gap"
        elif decided(now):
            stopped = "decided"
        elif lanczos.ended or all(enclosing.narrow_enough(end) for _, end in asked):  # noqa: SIM114
            stopped = "precision"
        # If the limit allows spanning the whole space, that is worthwhile: everything is known then.
        elif not spans and all(enclosing.stalled(sign, end) for sign, end in asked):
            stopped = "precision"
        elif stopped is None and expired():
            stopped = "time"
        elif stopped is None and lanczos.steps >= max_products:
            stopped = "products"
    if stopped not in ("gap", "decided"):
        history[-1] = enclosing.evaluate(final=True)
    return replace(history[-1], history=tuple(history[:-1]), stopped_by=stopped)


def _advance(lanczos: Run, steps: int, max_products: int) -> None:
    for _ in range(steps):
        if not lanczos.ended and lanczos.steps < max_products:
            lanczos.step()


def finish(enclosing: Enclosing, found: Enclosures, rounding: Rounding) -> tuple[Enclosing, Enclosures]:
    """Account for rounding measured after the last step, raise δ if rounding requires it, and compute the floor.

    Args:
        enclosing: The enclosure; its run has ended.
        found: What ``enclose`` returned.
        rounding: Rounding, no smaller than that of the premises.

    Returns:
        The enclosure with that rounding, and what it certifies.
    """
    more = rounding.operator - enclosing.premises.rounding.operator
    if more > 0:
        enclosing = Enclosing(enclosing.lanczos, replace(enclosing.premises, rounding=rounding))
        history = tuple(step.widened(more) for step in found.history)
        found = replace(enclosing.evaluate(final=True), history=history, stopped_by=found.stopped_by)
    top, bottom = found.lambda_max, found.lambda_min.mirrored
    floor = enclosing.floor(1, top)
    if top.width <= FLOOR_MARGIN * floor:
        top = enclosing.raised(1, top)
    if enclosing.premises.both and bottom.width <= FLOOR_MARGIN * enclosing.floor(-1, bottom):
        bottom = enclosing.raised(-1, bottom)
    if top.derivation.theorem != "start_vector":
        # In float32 such an end may fail too, but not for the overlap of the start vector.
        floor = 2 * top.slack
    relative = floor / top.size if top.size and math.isfinite(floor) else None
    modelled = enclosing.modelled(found.lambda_max)
    return enclosing, replace(found, lambda_max=top, lambda_min=bottom.mirrored, floor=relative, modelled=modelled)
