"""The rows of an enclosure's convergence, from the report alone."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator

from flint import arb

from wsb_engine.report import Interval
from wsb_engine.verification.claims import EVALUATION, ROOT, Claims
from wsb_engine.verification.findings import Ledger
from wsb_engine.verification.moments import UNDERFLOWN
from wsb_engine.verification.theorems import UNIT, bordered_below, start_vector_holds

FAR = 0.5 * sys.float_info.max
"""Ends beyond this claim nothing."""


def check_rows(claims: Claims, ledger: Ledger) -> None:
    """Each row but the last follows from one of the theorems at its steps, or repeats an earlier row's end."""
    rows = (claims.enclosure.convergence or [])[:-1]
    total = len(claims.all_steps[0])
    seen: dict[int, set[float]] = {1: set(), -1: set()}
    for index, row in enumerate(rows):
        if not 1 <= row.products <= total:
            ledger.judge(f"enclosure.convergence.{index}.products", False, "steps that the run took", row.products)
            continue
        for sign, name in ((1, "lambda_max"), (-1, "lambda_min")):
            interval: Interval = getattr(row, name)
            inner, outer = (interval.lower, interval.upper) if sign > 0 else (-interval.upper, -interval.lower)
            sides = ("lower", "upper") if sign > 0 else ("upper", "lower")
            place = f"enclosure.convergence.{index}.{name}"
            if claims.loses_squares:
                ledger.skip(f"{place}.{sides[1]}", UNDERFLOWN)
            elif outer < FAR:
                found = outer in seen[sign] or any(match(outer) for match in _matches(claims, sign, row.products))
                how = "a theorem at these steps, or at earlier ones, whose root is searched to 1e-3 of its distance"
                ledger.judge(f"{place}.{sides[1]}", found, how, sign * outer)
                if found:
                    seen[sign].add(outer)
            low, high = _inner_range(claims, sign, row.products)
            how = "Ritz value less rounding"
            low, high = sorted((sign * low, sign * high))
            ledger.within(f"{place}.{sides[0]}", sign * inner, low, high, how)


def _inner_range(claims: Claims, sign: int, steps: int) -> tuple[float, float]:
    theta = claims.ritz_value(sign, steps)
    slack = 4 * (_largest_eta(claims, steps) + claims.derivation.slack) + 64 * steps * UNIT * claims.recurrence.size
    low = theta - slack
    if not claims.has_basis:
        # Provisional ends are moved out to the confirmed one.
        end = claims.enclosure.lambda_max.lower if sign > 0 else -claims.enclosure.lambda_min.upper
        low = min(low, end)
    return low, theta + slack


def _largest_eta(claims: Claims, steps: int) -> float:
    """Return what η is at most at earlier steps, with proven or measured rounding."""
    ends = claims.derivation.lambda_max, claims.derivation.lambda_min
    product = claims.evidence.rounding.product or 0.0
    return max(end.factorisation_error for end in ends) + math.sqrt(2 * steps) * product


def _matches(claims: Claims, sign: int, steps: int) -> Iterator[Callable[[float], bool]]:
    """Yield tests of whether an outer end is that of a theorem at these steps; then at all earlier ones."""
    hows = ["measured"] if claims.evidence.rounding.product is None else ["proven", "measured"]
    for k in range(steps, 0, -1):
        for how in hows:
            yield _start_vector_matches(claims, sign, k, how)
        if claims.has_basis and (claims.has_moments or k == claims.order):
            yield _deflation_matches(claims, sign, k)


def _start_vector_matches(claims: Claims, sign: int, steps: int, how: str) -> Callable[[float], bool]:
    k = min(steps, len(claims.recurrence.alpha))
    recurrence = claims.recurrence.first(k).signed(sign)
    delta, operator = claims.derivation.failure_probability, claims.derivation.operator
    rounding, theta = 64 * (k + 8) * UNIT * recurrence.size, claims.ritz_value(sign, steps)

    def matches(outer: float) -> bool:
        size = max(recurrence.size, abs(outer))
        bound = outer - operator
        low = arb(theta) + arb(bound - theta) * (1 - ROOT) - rounding
        return start_vector_holds(
            arb(bound) + rounding, recurrence, claims.epsilon(how, tested=False), claims.order, delta
        ) and not start_vector_holds(
            *(low, recurrence, claims.epsilon(how), claims.order, delta), evaluation=EVALUATION * UNIT * size * 1.01
        )

    return matches


def _deflation_matches(claims: Claims, sign: int, steps: int) -> Callable[[float], bool]:
    eta, operator = _largest_eta(claims, steps), claims.derivation.operator
    rounding = 64 * (steps + 8) * UNIT * claims.recurrence.size

    def matches(outer: float) -> bool:
        recurrence, corner = claims.deflated(sign, steps, 0.0, confirmed=False)
        if not bordered_below(arb(outer) - operator + rounding, recurrence, corner):
            return False
        recurrence, corner = claims.deflated(sign, steps, eta, margin=2 * (3 * steps + 16) * UNIT)
        return not bordered_below(arb(outer) - operator - eta - 2 * rounding, recurrence, corner)

    return matches
