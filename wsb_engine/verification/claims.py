"""An enclosure with all that its ends rest on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate

from flint import arb

from wsb_engine.report import Enclosure, EnclosureDerivation, Evidence, Report
from wsb_engine.verification.moments import SMALLEST_SQUARE, extreme_ritz_values, known_moments, steps_of
from wsb_engine.verification.theorems import UNIT, Known, Recurrence, remainder

ROOT = 1.01e-3
"""Most that the distance of a root of h from θ_1 may be too large, relative to it: it is searched to 1e-3, upwards."""
EVALUATION = 8.0
"""Units of the size of T by which floats evaluate g; the engine adds that to ε."""
NAMES = ("lambda_max", "lambda_min")


@dataclass(frozen=True)
class Claims:
    """An enclosure with all that its ends rest on, in the units of the report."""

    report: Report
    enclosure: Enclosure
    derivation: EnclosureDerivation
    evidence: Evidence

    @property
    def order(self) -> int:
        return self.report.model.parameters.count

    @property
    def unit(self) -> float:
        """Unit roundoff of the products."""
        return UNIT if self.report.engine.dtype == "float64" else 2.0**-24

    @property
    def has_basis(self) -> bool:
        return self.enclosure.basis == "full"

    @cached_property
    def recurrence(self) -> Recurrence:
        """The recurrence up to the first breakdown."""
        part = self.enclosure
        return Recurrence(part.alpha or [], part.beta or [], part.gamma or [])

    @cached_property
    def all_steps(self) -> tuple[list[float], list[float]]:
        """α and β of all steps."""
        return steps_of(self.report)

    @cached_property
    def size(self) -> float:
        """The largest entry of T, after all steps."""
        return max((abs(value) for part in self.all_steps for value in part), default=0.0)

    @cached_property
    def norms(self) -> list[float]:
        """max_{i≤j} ‖Hq_i‖."""
        return list(accumulate(self.derivation.norms or [], max))

    def noise(self, how: str, *, tested: bool = True) -> list[float]:
        """Return ν_j: the proven bound, or max(32 u, 8 ρ) times the largest ‖Hq_i‖ so far.

        Args:
            how: How rounding is known.
            tested: False for what was known before homogeneity was tested, ρ = 0.
        """
        product = self.evidence.rounding.product
        if how == "proven" and product is not None:
            return [product] * len(self.norms)
        factor = max(32 * self.unit, 8 * self.derivation.homogeneity if tested else 0.0)
        return [factor * norm for norm in self.norms]

    def epsilon(self, how: str, *, tested: bool = True) -> list[float]:
        """Return ε_j if rounding is known in this way; the report has them for that of λ_max."""
        stated = self.enclosure.epsilon.values if self.enclosure.epsilon is not None else []
        ours = self.derivation.lambda_max.how
        if how == ours and tested:
            return list(stated)
        pairs = zip(stated, self.noise(ours), self.noise(how, tested=tested), strict=True)
        return [max(value - known, 0.0) + other for value, known, other in pairs]

    def ritz(self, steps: int) -> tuple[float, float]:
        """Return the outermost Ritz values after so many steps."""
        return _ritz(self, steps)

    def ritz_value(self, sign: int, steps: int) -> float:
        """λ_max of ±T."""
        smallest, largest = self.ritz(steps)
        return largest if sign > 0 else -smallest

    def symmetric(self, steps: int) -> tuple[list[float], list[float]]:
        """Return the diagonal of the symmetric T, and what is beside it."""
        alpha, beta = self.all_steps
        if self.has_basis:
            return alpha[:steps], beta[: steps - 1]
        gamma = self.recurrence.gamma
        return alpha[:steps], [math.sqrt(b * g) for b, g in zip(beta[: steps - 1], gamma[1:steps], strict=True)]

    @cached_property
    def has_moments(self) -> bool:
        """True if an enclosure may rest on moments, whose squares are within the range of floats."""
        part = self.report.moments
        return part is not None and part.frobenius_squared >= SMALLEST_SQUARE

    @property
    def loses_squares(self) -> bool:
        """True if there are moments that are too small to rest anything on."""
        return self.report.moments is not None and not self.has_moments

    def moments(self, *, confirmed: bool = True) -> tuple[Known, bool] | None:
        """Return ranges of t and ‖H‖_F, and whether t is known; None without moments.

        Args:
            confirmed: False for what was known of ‖E‖ before the outer Ritz vectors were multiplied.
        """
        part, rounding = self.report.moments, self.evidence.rounding
        if part is None or not self.has_moments:
            return None
        more = 2 * (arb(self.derivation.operator) - arb(rounding.operator)) if confirmed else arb(0)
        if not part.exact:
            # The norm of a report with probes has the rounding of H in it once; an enclosure adds it to q̄ too.
            return Known(arb(0), arb(0), arb(0), arb(part.frobenius_squared).sqrt() + more), False
        known = known_moments(self.report, self.order, part.trace, part.frobenius_squared)
        if known is None:
            return None
        spread = arb(self.order).sqrt() * more
        wider = Known(known.trace_low - spread, known.trace_high + spread, known.norm_low, known.norm_high + more)
        return wider, True

    def deflated(
        self, sign: int, steps: int, eta: float, *, margin: float = 0.0, confirmed: bool = True
    ) -> tuple[Recurrence, arb | None]:
        """Return ±T and β_k after so many steps, and φ; arguments as of ``remainder`` and ``moments``."""
        alpha, beta = self.all_steps
        recurrence = Recurrence([sign * a for a in alpha[:steps]], beta[:steps], [])
        moments = self.moments(confirmed=confirmed)
        if moments is None or steps == self.order:
            return recurrence, None
        known, has_trace = moments
        if sign < 0:
            known = Known(-known.trace_high, -known.trace_low, known.norm_low, known.norm_high)
        return recurrence, remainder(known, has_trace, recurrence, self.order, eta, margin=margin)


@lru_cache(maxsize=512)
def _ritz_of(diagonal: tuple[float, ...], off: tuple[float, ...]) -> tuple[float, float]:
    return extreme_ritz_values(diagonal, off)


def _ritz(claims: Claims, steps: int) -> tuple[float, float]:
    diagonal, off = claims.symmetric(steps)
    return _ritz_of(tuple(diagonal), tuple(off))
