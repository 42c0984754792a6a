"""Two-sided certificates for both ends of the spectrum from one Krylov run (mathematics.md, sections 5, 6 and 11).

Inner ends are Ritz values. Outer ends are the tightest of what holds: a bound on what the basis leaves over, which is
deterministic if t and q are exact and as likely as the bound on q otherwise, and always one from the start vector.
Every end is moved outwards for rounding, by what ``Rounding`` proves or measures.

All bounds of one kind hold together, whatever the number of steps, so their running intersection does.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace

import torch

from wsb_engine.bounds.bound import Range
from wsb_engine.bounds.certificates import Enclosures, End, ExactMoments, Premises, StoppedBy
from wsb_engine.bounds.deflation import Remainder, bordered_eigenvalues, bordered_maximum, remainder
from wsb_engine.bounds.lanczos_polynomial import Recurrence, bound_exceeds, largest_eigenvalue_bound
from wsb_engine.bounds.rounding import How, Rounding
from wsb_engine.errors import ResourceError
from wsb_engine.spectrum.lanczos import UNIT, Lanczos

STRIDE = 10
"""The bounds are evaluated whenever the number of steps has grown by this part of it."""
STALL = 10
"""Products in which a gap has to fall by a tenth, unless rounding keeps it up."""
WORTHWHILE = 1e3
"""An interval has to be so many times narrower to go before a surer one that only rounding keeps from being so."""
FLOOR_MARGIN = 1.1
"""A gap of at most this many times what rounding leaves open is as good as it gets."""
USEFUL_GAP = 1e-3
"""δ is raised if rounding keeps the gap of a probabilistic end above this, and above the one asked for."""
LARGEST_DELTA = 0.05
"""The largest δ that is offered instead of an open interval."""
DELTA_STEPS = 40
"""Bisections of ln δ."""
_Bound = tuple[int, How, bool]
"""Sign of H, how rounding is known, and whether it is the bound on what the basis leaves over."""


class Enclosing:
    """Certificates of a run that goes on; keeps what its earlier steps certified.

    Args:
        run: A Lanczos run at a uniform random start.
        premises: Premises in the units of the run, σH.
    """

    def __init__(self, run: Lanczos, premises: Premises) -> None:
        self.run, self.premises = run, premises
        self._limits: dict[_Bound, tuple[float, float]] = {}
        self._widths: dict[_Bound, dict[int, float]] = {}
        self._slacks: dict[tuple[How, int], tuple[float, float]] = {}
        self._values: list[float] = []

    def evaluate(self, *, final: bool = False) -> Enclosures:
        """What the run certifies now; certainty goes before tightness beyond the gap that was asked for.

        Args:
            final: True if the run has ended, so that what is measured counts even where what is proven would improve.
        """
        self._values = self.run.leading_ritz_values(self.run.steps)
        top, bottom = self._end(1, asked=True, final=final), self._end(-1, asked=self.premises.both, final=final)
        return Enclosures(lambda_max=top, lambda_min=bottom.mirrored, products=self.run.steps)

    def settled(self, end: End) -> bool:
        """True if the end is as narrow as asked but for what it was moved by for rounding."""
        return end.width - 2 * end.slack <= self.premises.relative_gap * end.size

    def stalled(self, sign: int, end: End) -> bool:
        """True if rounding keeps the end as wide as it is and, for λ_max, no other bound falls towards it."""
        return self.settled(end) or (self._at_floor(sign, end) and not (sign > 0 and self._top_falls()))

    def floor(self, sign: int, end: End) -> float:
        """Width that rounding leaves to this kind of end, however many products follow."""
        if end.kind == "deterministic":
            return 2 * end.slack
        return self._likely(sign, end.how, settled=True).width

    def _at_floor(self, sign: int, end: End) -> bool:
        """True if rounding keeps the end as wide as it is: its width is at most ``FLOOR_MARGIN`` times its floor."""
        if math.isinf(end.width):
            return math.isinf(self.floor(sign, end))
        wanted = end.width / FLOOR_MARGIN
        if end.kind == "deterministic":
            return wanted <= 2 * end.slack
        rounding, slack = self.premises.rounding.operator, self.slack(end.how)[1]
        tau = wanted - slack - rounding + self._largest(sign)
        recurrence = self._recurrence(sign, end.how).settled
        return bound_exceeds(recurrence, self.run.parameters, self.premises.failure_probability, tau)

    def raised(self, sign: int, end: End) -> End:
        """The end at the least δ at which its gap is useful, if rounding and not the number of products keeps it open.

        Returns:
            The same end if no δ up to ``LARGEST_DELTA`` helps.
        """
        wanted, delta = max(USEFUL_GAP, self.premises.relative_gap) * end.size, self.premises.failure_probability
        if end.kind == "deterministic" or end.width <= wanted or delta >= LARGEST_DELTA:
            return end
        high = self._likely(sign, end.how, delta=LARGEST_DELTA)
        if high.width > wanted:
            return end
        low, top = math.log(delta), math.log(LARGEST_DELTA)
        for _ in range(DELTA_STEPS):
            middle = (low + top) / 2
            trial = self._likely(sign, end.how, delta=math.exp(middle))
            low, top, high = (low, middle, trial) if trial.width <= wanted else (middle, top, high)
        return high

    def upper_bounds(self, count: int) -> list[float | None]:
        """Upper bounds on the largest eigenvalues, without a failure probability; None if the argument doesn't reach.

        In the basis [Q Q⊥], H is below [ T  βe_k q ; qᵀβe_kᵀ  φI ] in the Loewner order, so its i-th eigenvalue is not
        above the i-th of the bordered matrix's as long as that is above φ.
        """
        run, premises = self.run, self.premises
        if premises.rounding.failure_probability:
            return [None] * count
        _, slack = self.slack("measured" if premises.rounding.product is None else "proven")
        if run.exhausted:
            return [value + slack for value in reversed(run.leading_ritz_values(run.steps)[-count:])]
        rest = self._remainder(1, "measured" if premises.rounding.product is None else "proven")
        if rest is None or premises.deflation_risk:
            return [None] * count
        ceiling = bordered_eigenvalues(run.tridiagonal, run.betas[-1], rest.largest).flip(0).tolist()[:count]
        certain = [value + slack if value > rest.largest else None for value in ceiling]
        return certain + [None] * (count - len(certain))

    def _end(self, sign: int, *, asked: bool, final: bool) -> End:
        """The interval of λ_max(H), or of λ_max(−H) for sign −1: proven ends go before measured ones."""
        found: list[End] = []
        for how in self._ways():
            for deflates, end in ((True, self._deflated(sign, how)), (False, self._likely(sign, how))):
                if end is None:
                    continue
                end = self._intersected((sign, how, deflates), end)
                if self.settled(end):
                    return end
                found.append(end)
            if not asked:
                break
            # What is measured is of no use until rounding keeps what is proven as wide as it is.
            if not final and not any(self._at_floor(sign, end) for end in found):
                break
        narrowest = min(found, key=lambda end: end.width)
        close = [end for end in found if end.width <= WORTHWHILE * narrowest.width]
        return next((end for end in close if self._at_floor(sign, end)), narrowest)

    def _ways(self) -> tuple[How, ...]:
        return ("measured",) if self.premises.rounding.product is None else ("proven", "measured")

    def _intersected(self, bound: _Bound, end: End) -> End:
        """The end as narrow as this bound has been; all steps of one bound hold together."""
        lower, upper = self._limits.get(bound, (-math.inf, math.inf))
        end = replace(end, lower=max(lower, end.lower), upper=min(upper, end.upper))
        self._limits[bound] = end.lower, end.upper
        self._widths.setdefault(bound, {})[self.run.steps] = end.width
        return end

    def _top_falls(self) -> bool:
        """True if any bound on λ_max has fallen by a tenth within the last products, or is too young to tell."""
        widths = [by_steps for bound, by_steps in self._widths.items() if bound[0] > 0]
        before = [[w for steps, w in each.items() if steps <= self.run.steps - STALL] for each in widths]
        return any(not old or each[max(each)] <= 0.9 * old[-1] for each, old in zip(widths, before, strict=True))

    def noise(self, how: How, steps: int) -> list[float]:
        """Bounds on the rounding of each of the first products."""
        proven = self.premises.rounding.product
        if how == "proven" and proven is not None:
            return [proven] * steps
        return self.run.product_rounding(steps)

    def slack(self, how: How) -> tuple[float, float]:
        """η, within which of H + E the factorisation is exact, and how far an end moves: η, ‖E‖, and the eigensolver.

        In the Frobenius norm, with R the error of the factorisation and ω = ‖QᵀQ − I‖_F (mathematics.md, section 11).
        """
        run = self.run
        if (how, run.steps) not in self._slacks:
            noise = math.sqrt(run.steps) * self.noise(how, run.steps)[-1]
            skew = 3 * run.orthogonality(proven=how == "proven") * self._frobenius()
            eta = math.sqrt(2) * (run.factorisation_error + noise + skew)
            slack = eta + self.premises.rounding.operator + (run.steps + 8) * UNIT * run.scale
            self._slacks[how, run.steps] = eta, slack
        return self._slacks[how, run.steps]

    @property
    def _knows_moments(self) -> bool:
        """True if there are moments, and rounding leaves something of them."""
        return self.premises.moments is not None and self._frobenius() < math.sqrt(sys.float_info.max)

    def _frobenius(self) -> float:
        """Upper bound on ‖H + E‖_F; without moments ‖T‖_F, which lacks what the basis has not met."""
        moments = self.premises.moments
        if moments is None:
            return float(torch.linalg.vector_norm(self.run.tridiagonal))
        return self.premises.rounding.norm(moments.frobenius_squared)[1]

    def _deflated(self, sign: int, how: How) -> End | None:
        """From what the basis leaves over; None if nothing is known of it."""
        run, premises = self.run, self.premises
        if not (run.exhausted or self._knows_moments):
            return None
        largest, (_, slack) = self._largest(sign), self.slack(how)
        rest = self._remainder(sign, how)
        chance = premises.rounding.failure_probability if rest is None else premises.deflation_risk
        bound = largest if rest is None else bordered_maximum(sign * run.tridiagonal, run.betas[-1], rest.largest)
        risk = premises.risk if chance else 0.0
        return End(largest - slack, bound + slack, risk, self._size(sign), how, slack)

    def _remainder(self, sign: int, how: How) -> Remainder | None:
        """What the basis leaves over of ±(H + E); None if that is nothing, or not known."""
        run = self.run
        if run.exhausted or not self._knows_moments:
            return None
        T, q = sign * run.tridiagonal, self._frobenius() ** 2
        return remainder(self._trace(sign), q, run.parameters, T, run.betas[-1], error=self.slack(how)[0])

    def _trace(self, sign: int) -> Range | None:
        moments = self.premises.moments
        if not isinstance(moments, ExactMoments):
            return None
        t = self.premises.rounding.trace(moments.trace, moments.frobenius_squared, self.run.parameters)
        return t if sign > 0 else (-t[1], -t[0])

    def _likely(self, sign: int, how: How, *, delta: float | None = None, settled: bool = False) -> End:
        """From the start vector.

        Args:
            sign: 1 for λ_max(H), −1 for λ_max(−H).
            how: Whether the rounding of products is proven or measured.
            delta: δ, if not that of the premises.
            settled: True for the end that would be left if the recurrence had no residual.
        """
        run, rounding, largest = self.run, self.premises.rounding, self._largest(sign)
        recurrence = self._recurrence(sign, how)
        recurrence = recurrence.settled if settled else recurrence
        chance = self.premises.failure_probability if delta is None else delta
        near = None if run.first_breakdown else largest
        bound = max(largest_eigenvalue_bound(recurrence, run.parameters, chance, near=near), largest)
        slack = self.slack(how)[1]
        risk = self.premises.risk - self.premises.failure_probability + chance
        # The recurrence's own errors are in the bound already.
        mean = (slack + rounding.operator) / 2
        return End(largest - slack, bound + rounding.operator, risk, self._size(sign), how, mean)

    def _recurrence(self, sign: int, how: How) -> Recurrence:
        """Of ±H, up to the first breakdown."""
        run = self.run
        first = run.first_breakdown or run.steps
        epsilons = [e + v for e, v in zip(run.errors, self.noise(how, first), strict=False)]
        recurrence = Recurrence(run.alphas[:first], run.betas[:first], run.gammas[:first], epsilons)
        return recurrence if sign > 0 else recurrence.mirrored

    def _largest(self, sign: int) -> float:
        """λ_max of ±T."""
        return self._values[-1] if sign > 0 else -self._values[0]

    def _size(self, sign: int) -> float:
        """What the gap is relative to: |λ_max|, and for λ_min the larger of |λ_max| and |λ_min|."""
        first, last = abs(self._values[0]), abs(self._values[-1])
        return last if sign > 0 else max(first, last)


def enclose(
    enclosing: Enclosing,
    *,
    max_products: int,
    progress: Callable[[Enclosures], None] = lambda _: None,
    expired: Callable[[], bool] = lambda: False,
) -> Enclosures:
    """Continue the run until the gaps are small enough, only rounding is left, or a limit is reached.

    Args:
        enclosing: A run and what is known besides; advanced.
        max_products: Steps of the run, those taken before included.
        progress: Called with what is certified so far; may raise to stop.
        expired: Asked after each step; what is certified by then is returned.

    Raises:
        ResourceError: ``time_limit`` from a product, if nothing is certified yet; later it ends the run.
    """
    run, premises = enclosing.run, enclosing.premises
    history: list[Enclosures] = []
    stopped: StoppedBy | None = None
    while stopped is None:
        try:
            _advance(run, max(1, run.steps // STRIDE) if history or not run.steps else 0, max_products)
        except ResourceError as error:
            if error.code != "time_limit" or not run.steps:
                raise
            stopped = "time"
        now = enclosing.evaluate()
        history.append(now)
        progress(now)
        asked = [(1, now.lambda_max), (-1, now.lambda_min.mirrored)][: 1 + premises.both]
        if all(end.width <= premises.relative_gap * end.size for _, end in asked):
            stopped = "gap"
        elif run.exhausted or all(enclosing.settled(end) for _, end in asked):  # noqa: SIM114
            stopped = "precision"
        # A space that can be spanned holds no secrets once it is.
        elif run.dimension > max_products and all(enclosing.stalled(sign, end) for sign, end in asked):
            stopped = "precision"
        elif stopped is None and expired():
            stopped = "time"
        elif stopped is None and run.steps >= max_products:
            stopped = "products"
    if stopped != "gap":
        history[-1] = enclosing.evaluate(final=True)
    return replace(history[-1], history=tuple(history[:-1]), stopped_by=stopped)


def _advance(run: Lanczos, steps: int, max_products: int) -> None:
    for _ in range(steps):
        if not run.exhausted and run.steps < max_products:
            run.step()


def finish(enclosing: Enclosing, found: Enclosures, rounding: Rounding) -> tuple[Enclosing, Enclosures]:
    """Account for rounding that was measured last, raise δ where rounding asks for that, and say what it leaves open.

    Args:
        enclosing: Whose run has ended.
        found: From ``enclose``.
        rounding: At least that of the premises.
    """
    more = rounding.operator - enclosing.premises.rounding.operator
    if more > 0:
        enclosing = Enclosing(enclosing.run, replace(enclosing.premises, rounding=rounding))
        history = tuple(step.widened(more) for step in found.history)
        found = replace(enclosing.evaluate(final=True), history=history, stopped_by=found.stopped_by)
    top, bottom = found.lambda_max, found.lambda_min.mirrored
    floor = enclosing.floor(1, top)
    if top.width <= FLOOR_MARGIN * floor:
        top = enclosing.raised(1, top)
    if enclosing.premises.both and bottom.width <= FLOOR_MARGIN * enclosing.floor(-1, bottom):
        bottom = enclosing.raised(-1, bottom)
    relative = floor / top.size if top.size and math.isfinite(floor) else None
    return enclosing, replace(found, lambda_max=top, lambda_min=bottom.mirrored, floor=relative)
