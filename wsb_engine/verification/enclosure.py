"""Both ends of an enclosure and what is derived from them, from the report alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from flint import arb

from wsb_engine.report import CertifiedInterval, Enclosure, EndDerivation, Interval, Report
from wsb_engine.verification.claims import EVALUATION, NAMES, ROOT, Claims
from wsb_engine.verification.convergence import FAR, check_rows
from wsb_engine.verification.findings import Ledger
from wsb_engine.verification.moments import LATER, UNDERFLOWN, steps_of
from wsb_engine.verification.theorems import (
    UNIT,
    Recurrence,
    bordered_below,
    density_peak,
    overlap,
    precisely,
    start_vector_holds,
)

TESTED = 12
"""Steps after which homogeneity has been tested."""
ISOTROPIC = 4.0
"""ε_j = 4 ‖f_j‖/√P in the model of ``modelled``."""
PAIGE = 2.0
"""Units of √k ν by which Ritz values may leave the spectrum without a basis."""
TOO_LONG = "the recurrence has more steps than a report holds"


def check_enclosure(report: Report, ledger: Ledger) -> None:
    """Check all that follows from an enclosure's recurrence, moments and failure probability."""
    enclosure = report.enclosure
    if enclosure is None:
        return
    for name in NAMES:
        end: CertifiedInterval = getattr(enclosure, name)
        place = f"enclosure.{name}"
        ledger.refute(f"{place}.upper", end.lower <= end.upper, "an interval is not empty", end.upper, end.lower)
    _check_products(report, enclosure, ledger)
    if enclosure.derivation is None or report.evidence is None or enclosure.epsilon is None:
        _skip_older(enclosure, ledger)
        return
    claims = Claims(report, enclosure, enclosure.derivation, report.evidence)
    if not _recurrence_is_whole(claims, ledger):
        return
    with precisely():
        for name in NAMES:
            _check_end(claims, name, ledger)
        _check_ending(claims, ledger)
        _check_slack(claims, ledger)
        _check_floor(claims, ledger)
        _check_modelled(claims, ledger)
        check_rows(claims, ledger)


def _skip_older(enclosure: Enclosure, ledger: Ledger) -> None:
    """Say that a report does not state what its ends rest on."""
    why = LATER if enclosure.derivation is None else TOO_LONG
    for name in NAMES:
        for part in ("lower", "upper", "relative_gap", "failure_probability"):
            ledger.skip(f"enclosure.{name}.{part}", why)


def _check_products(report: Report, enclosure: Enclosure, ledger: Ledger) -> None:
    rounding, alpha = enclosure.rounding, enclosure.alpha
    if rounding is not None:
        ledger.equal("enclosure.rounding_slack", enclosure.rounding_slack, rounding.slack, "it repeats rounding.slack")
    rows = enclosure.convergence
    if rows:
        last = rows[-1]
        how = "the last row of convergence"
        ledger.equal("enclosure.hessian_vector_products", enclosure.hessian_vector_products, last.products, how)
        for name in NAMES:
            for side in ("lower", "upper"):
                path = f"enclosure.convergence.{len(rows) - 1}.{name}.{side}"
                ours: Interval = getattr(last, name)
                ends: CertifiedInterval = getattr(enclosure, name)
                ledger.equal(path, getattr(ours, side), getattr(ends, side), "the enclosure is the last row")
        for index, (row, following) in enumerate(pairwise(rows)):
            path = f"enclosure.convergence.{index}.products"
            ledger.refute(path, row.products < following.products, "rows are in order", row.products)
    if alpha is not None:
        steps = len(steps_of(report)[0])
        ledger.equal("enclosure.hessian_vector_products", enclosure.hessian_vector_products, steps, "one a step")
    if report.products is not None:
        total, steps = sum(report.products.values()), enclosure.hessian_vector_products
        ledger.refute("products", total >= steps, "all products, those of the enclosure among them", total, steps)


def _check_ending(claims: Claims, ledger: Ledger) -> None:
    """Refute a reason for the end of a run that its options and warnings exclude."""
    part, options = claims.enclosure, claims.evidence.options
    codes = {warning.code for warning in claims.report.warnings}
    possible = {
        "gap": not {"enclosure_open"} & codes,
        "decided": options.stop == "decided",
        "precision": True,
        "products": part.hessian_vector_products >= options.max_products,
        "time": options.time_limit is not None,
        "memory": "enclosure_memory" in codes,
    }
    holds = part.stopped_by is None or possible[part.stopped_by]
    ledger.refute("enclosure.stopped_by", holds, "the analysis's options and warnings", part.stopped_by)


def _recurrence_is_whole(claims: Claims, ledger: Ledger) -> bool:
    part, k = claims.enclosure, len(claims.recurrence.alpha)
    epsilon = None if part.epsilon is None else part.epsilon.values
    lists = {
        "beta": part.beta,
        "gamma": part.gamma,
        "epsilon.values": epsilon,
        "derivation.norms": claims.derivation.norms,
    }
    wrong = [name for name, values in lists.items() if values is None or len(values) != k or k == 0]
    for name in wrong:
        ledger.judge(f"enclosure.{name}", False, "one number a step, as many as alpha has")
    continued = claims.derivation.continued
    if continued is not None and len(continued.alpha) != len(continued.beta):
        ledger.judge("enclosure.derivation.continued", False, "one number a step")
        return False
    steps = [claims.derivation.lambda_max.steps, claims.derivation.lambda_min.steps]
    for name, count in zip(NAMES, steps, strict=True):
        known = 1 <= count <= len(claims.all_steps[0])
        if not ledger.refute(f"enclosure.derivation.{name}.steps", known, "steps that the run took", count):
            return False
    for name, values in lists.items():
        ledger.refute(f"enclosure.{name}", all(v >= 0 for v in values or []), "no number is negative")
    return not wrong


def _check_end(claims: Claims, name: str, ledger: Ledger) -> None:
    """Check one end of the spectrum: the theorem's end, the inner one, its certainty and its gap."""
    sign = 1 if name == "lambda_max" else -1
    end: CertifiedInterval = getattr(claims.enclosure, name)
    found: EndDerivation = getattr(claims.derivation, name)
    inner, outer = (end.lower, end.upper) if sign > 0 else (-end.upper, -end.lower)
    sides = ("lower", "upper") if sign > 0 else ("upper", "lower")
    place = f"enclosure.{name}"
    _check_inner(claims, sign, inner, found, f"{place}.{sides[0]}", ledger)
    _check_distance(claims, name, found, ledger)
    if found.theorem == "deflation" and claims.loses_squares:
        ledger.skip(f"{place}.{sides[1]}", UNDERFLOWN)
    elif outer < FAR:
        how = _theorem(found)
        holds = _outer_holds(claims, sign, outer, found)
        tight = holds and _outer_is_tight(claims, sign, outer, found)
        text = how if holds else f"{how}: the end is on the inner side of it"
        ledger.judge(f"{place}.{sides[1]}", holds and tight, text if tight else f"{text}, or farther out", sign * outer)
    _check_certainty(claims, name, end, found, ledger)
    steps = len(claims.all_steps[0])
    smallest, largest = claims.ritz(steps)
    size = abs(largest) if sign > 0 else max(abs(largest), abs(smallest))
    if end.relative_gap is not None and size and end.upper - end.lower < FAR:
        gap = (end.upper - end.lower) / size
        tolerance = gap * (1e-9 + 64 * steps * UNIT * claims.size / size) + 2 * UNIT
        ledger.near(f"{place}.relative_gap", end.relative_gap, gap, tolerance, "width over the Ritz value's size")


def _overlap_bounds(claims: Claims, tau: arb, recurrence: Recurrence, epsilon: Sequence[float], delta: float) -> bool:
    """Return whether λ_1 ≤ τ follows from the start vector; without any error or residual λ_1 is θ_1 itself."""
    if recurrence.size == 0 and not any(epsilon):
        return bool(tau >= 0)
    return start_vector_holds(tau, recurrence, epsilon, claims.order, delta)


def _theorem(found: EndDerivation) -> str:
    names = {
        "deflation": "deflation by t and q with the basis",
        "start_vector": "overlap of the random start vector",
        "whole_space": "the basis spans the whole space",
    }
    return f"{names[found.theorem]}, after {found.steps} steps"


def _outer_holds(claims: Claims, sign: int, outer: float, found: EndDerivation) -> bool:
    """Return whether the outer end follows from its theorem, all rounding added, in ball arithmetic."""
    if found.theorem == "start_vector":
        tau = arb(outer) - arb(claims.derivation.operator)
        recurrence = claims.recurrence.first(found.steps).signed(sign)
        epsilon = claims.epsilon(found.how, tested=found.steps >= TESTED)
        delta = found.failure_probability
        return _overlap_is_certain(claims.order, delta) and _overlap_bounds(claims, tau, recurrence, epsilon, delta)
    tau = arb(outer) - arb(found.factorisation_error) - arb(claims.derivation.operator)
    if found.theorem == "deflation" and not (claims.has_basis and claims.has_moments):
        return False
    if found.theorem == "whole_space" and found.steps != claims.order:
        return False
    recurrence, corner = claims.deflated(sign, found.steps, found.factorisation_error)
    return bordered_below(tau, recurrence, corner)


def _overlap_is_certain(order: int, delta: float) -> bool:
    """Return whether P(|u·v| ≤ c) ≤ δ for the c of the theorem: an interval of length 2c times the largest density."""
    if not 0 < delta <= 1:
        return False
    return order < 3 or bool(2 * overlap(order, delta) * density_peak(order) <= delta)


def _outer_is_tight(claims: Claims, sign: int, outer: float, found: EndDerivation) -> bool:
    """Return whether the outer end is no farther out than its theorem and rounding in floats put it."""
    size, steps = claims.recurrence.size, found.steps
    rounding = 64 * (steps + 8) * UNIT * max(size, abs(outer))
    theta = claims.ritz_value(sign, steps)
    if found.theorem == "start_vector":
        distance = outer - found.outer_slack - theta
        tau = arb(theta) + arb(distance) * (1 - ROOT) - arb(rounding)
        evaluation = EVALUATION * UNIT * max(size, abs(outer)) * 1.01
        recurrence = claims.recurrence.first(steps).signed(sign)
        epsilon = claims.epsilon(found.how)
        return not start_vector_holds(
            *(tau, recurrence, epsilon, claims.order, found.failure_probability), evaluation=evaluation
        )
    tau = arb(outer) - arb(found.outer_slack) - arb(rounding)
    margin = 2 * (3 * steps + 16) * UNIT
    recurrence, corner = claims.deflated(sign, steps, found.factorisation_error * (1 + 1e-9), margin=margin)
    return not bordered_below(tau, recurrence, corner)


def _check_inner(claims: Claims, sign: int, inner: float, found: EndDerivation, path: str, ledger: Ledger) -> None:
    """The inner end is a Rayleigh quotient less rounding, and near the Ritz value that it confirms."""
    value = sign * found.inner
    tolerance = 2 * UNIT * (abs(value) + abs(found.inner_slack))
    outer = getattr(claims.enclosure, "lambda_max" if sign > 0 else "lambda_min")
    expected = min(value - found.inner_slack, outer.upper if sign > 0 else -outer.lower)
    ledger.near(path, sign * inner, sign * expected, tolerance, "Rayleigh quotient or Ritz value less its slack")
    steps = len(claims.all_steps[0])
    theta = claims.ritz_value(sign, steps)
    allowed = 4 * (claims.derivation.slack + found.inner_slack + found.outer_slack) + 64 * steps * UNIT * claims.size
    place = f"enclosure.derivation.{'lambda_max' if sign > 0 else 'lambda_min'}.inner"
    if claims.has_basis:
        ledger.near(place, found.inner, sign * theta, allowed, "Ritz value of T, up to the stated slack")
    else:
        ledger.refute(place, value <= theta + allowed, "no Rayleigh quotient of the run exceeds T's", found.inner)
    noise = claims.noise(found.how)[-1] if claims.norms else 0.0
    least = noise + claims.derivation.operator
    ledger.refute(
        f"{place}_slack",
        *(found.inner_slack >= least * (1 - 1e-12), "rounding of H and of one product", found.inner_slack, least),
    )


def _check_distance(claims: Claims, name: str, found: EndDerivation, ledger: Ledger) -> None:
    """The distance of the outer end from its theorem's bound is the rounding that the report states."""
    path, operator = f"enclosure.derivation.{name}.outer_slack", claims.derivation.operator
    if found.theorem == "start_vector":
        ledger.near(path, found.outer_slack, operator, 4 * UNIT * operator, "rounding of H")
        return
    least = found.factorisation_error + operator
    norms = claims.norms[: found.steps]
    if norms and len(norms) == found.steps:
        expected = least + (found.steps + 8) * UNIT * norms[-1]
        ledger.near(path, found.outer_slack, expected, 1e-12 * expected, "η, rounding of H and of eigenvalues")
    else:
        ledger.refute(path, found.outer_slack >= least, "η and rounding of H", found.outer_slack, least)


def _check_certainty(claims: Claims, name: str, end: CertifiedInterval, found: EndDerivation, ledger: Ledger) -> None:
    """The failure probability is the sum of those of all events that the end rests on."""
    how, place = "sum over the events that the end rests on", f"enclosure.{name}"
    rounding, moments = claims.evidence.rounding.failure_probability, claims.report.moments
    probes = 0.0 if moments is None or moments.probes is None else moments.probes.failure_probability
    start = claims.derivation.failure_probability
    if found.theorem == "start_vector":
        sums = [found.failure_probability + rounding, found.failure_probability + rounding + probes]
        raised = found.failure_probability >= start
        ledger.judge(f"enclosure.derivation.{name}.failure_probability", raised, "δ, or more if it was raised")
    elif found.theorem == "deflation":
        sums = [start + rounding + probes] if rounding + probes else [0.0]
    else:
        sums = [start + rounding, start + rounding + probes] if rounding else [0.0]
    chance = end.failure_probability or 0.0
    nearest = min(sums, key=lambda each: abs(each - chance))
    ledger.near(f"{place}.failure_probability", chance, nearest, 1e-12 * nearest, how)
    ledger.equal(f"{place}.kind", end.kind, "probabilistic" if chance else "deterministic", how)
    options, single = claims.evidence.options, claims.report.engine.dtype == "float32"
    shares = [options.failure_probability / (1 + single + probing) for probing in (0, 1)]
    ledger.judge(
        "enclosure.derivation.failure_probability",
        *(any(math.isclose(start, share, rel_tol=1e-12) for share in shares), "an equal part of the option's δ"),
        *(start, shares[0]),
    )


def _check_slack(claims: Claims, ledger: Ledger) -> None:
    """The stated slack is the mean distance by which rounding moved the wider end; the proof is that of both."""
    derivation, rounding = claims.derivation, claims.enclosure.rounding
    if rounding is None:
        return
    both = {derivation.lambda_max.how, derivation.lambda_min.how}
    how = "proven" if both == {"proven"} else "measured"
    ledger.equal("enclosure.rounding.how", rounding.how, how, "proven only if both ends are")
    means = [
        (derivation.slack + derivation.operator) / 2 if each.theorem == "start_vector" else derivation.slack
        for each in (derivation.lambda_max, derivation.lambda_min)
    ]
    if len(both) == 1:
        slack = max(means)
        ledger.near("enclosure.rounding.slack", rounding.slack, slack, 1e-12 * slack, "mean distance of both sides")
    else:
        ledger.refute("enclosure.rounding.slack", rounding.slack >= means[0] * (1 - 1e-12), "mean distance")
    if not claims.has_basis:
        steps = len(claims.recurrence.alpha)
        slack = PAIGE * math.sqrt(steps) * claims.noise("measured")[-1] + derivation.operator
        ledger.near("enclosure.derivation.slack", derivation.slack, slack, 1e-12 * slack, "2 √k ν and rounding of H")
    elif derivation.lambda_max.theorem != "start_vector" and derivation.lambda_max.steps == len(claims.all_steps[0]):
        slack = derivation.lambda_max.outer_slack
        ledger.near("enclosure.derivation.slack", derivation.slack, slack, 1e-12 * slack, "as that of the outer end")
    initial = claims.evidence.rounding.operator
    ledger.refute(
        "enclosure.derivation.operator",
        *(derivation.operator >= initial, "measuring more never lowers it", derivation.operator, initial),
    )


def _check_floor(claims: Claims, ledger: Ledger) -> None:
    """The floor is the gap of λ_max with the residual set to 0, which leaves rounding."""
    floor, derivation = claims.enclosure.floor, claims.derivation
    found, steps = derivation.lambda_max, len(claims.all_steps[0])
    theta = claims.ritz_value(1, steps)
    size = abs(theta)
    if floor is None or not size:
        return
    if found.theorem != "start_vector":
        ledger.near(
            "enclosure.floor", floor, 2 * derivation.slack / size, 1e-9 * floor, "slack of both sides over size"
        )
        return
    width = floor * size
    recurrence = claims.recurrence
    settled = Recurrence(recurrence.alpha, [*recurrence.beta[:-1], 0.0], recurrence.gamma)
    above = claims.ritz_value(1, len(recurrence.alpha))
    bound = width - derivation.slack - derivation.operator + theta
    delta = derivation.failure_probability
    _check_root(claims, "enclosure.floor", bound, above, settled, claims.epsilon(found.how), delta, floor, ledger)


def _check_modelled(claims: Claims, ledger: Ledger) -> None:
    """The modelled end is that of the start vector with ε_j = 4 ‖f_j‖/√P."""
    part, derivation = claims.enclosure.modelled, claims.derivation
    if part is None:
        return
    share = min(1.0, ISOTROPIC / math.sqrt(claims.order))
    epsilon = [share * value for value in claims.epsilon(derivation.lambda_max.how)]
    theta = claims.ritz_value(1, len(claims.recurrence.alpha))
    bound, delta = part.upper - derivation.operator, derivation.failure_probability
    path = "enclosure.modelled.upper"
    _check_root(claims, path, bound, theta, claims.recurrence, epsilon, delta, part.upper, ledger)


def _check_root(
    claims: Claims,
    path: str,
    bound: float,
    theta: float,
    recurrence: Recurrence,
    epsilon: Sequence[float],
    delta: float,
    claimed: float,
    ledger: Ledger,
) -> None:
    """Record whether h falls to c at the bound, up to the accuracy of floats."""
    size = recurrence.size
    rounding = 64 * (len(recurrence.alpha) + 8) * UNIT * max(size, abs(bound))
    distance, evaluation = bound - theta, EVALUATION * UNIT * max(size, abs(bound)) * 1.01
    above, below = arb(bound) + rounding, arb(theta) + arb(distance) * (1 - ROOT) - rounding
    holds = _overlap_bounds(claims, above, recurrence, epsilon, delta)
    tight = not start_vector_holds(below, recurrence, epsilon, claims.order, delta, evaluation=evaluation)
    ledger.judge(path, holds and tight, "overlap of the start vector, with this recurrence", claimed)
