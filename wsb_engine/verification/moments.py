"""Bounds from moments, and sums of their parts, derived from the report alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

from flint import arb

from wsb_engine.report import Interval, NamedBound, Report, RoundingTerms
from wsb_engine.verification.findings import Ledger
from wsb_engine.verification.theorems import UNIT, Known, norm_factor, two_traces, within_rounding

MARGIN = 64 * UNIT
"""Most that floats may move a bound outwards, relative to ‖H‖_F; inwards nothing is allowed."""
SUMS = 1e-13
"""Rounding of a sum in float64, relative to the sum of magnitudes, with room for a million terms summed by parts."""
SMALLEST_SQUARE = 1e-280
"""Squares below this have lost digits, or everything, at the end of the range of floats."""
UNDERFLOWN = "‖H‖_F² is at the end of the range of floats, where squares lose their digits"
HARMLESS_EXPONENT = 60
"""A matrix is not scaled if its size is within this power of two of 1."""
WS = "Wolkowicz-Styan bound from t, q and P"
LATER = "the report's schema is older than 1.7, and does not say how rounding is allowed for"


def known_moments(report: Report, order: int, trace: float, square: float) -> Known | None:
    """Return t and ‖H‖_F with the rounding that the report states; None in reports without it."""
    if report.evidence is None:
        return None
    terms = report.evidence.rounding
    return within_rounding(
        trace,
        square,
        order,
        operator=terms.operator,
        relative=terms.relative_square_error,
        absolute=terms.square_error,
        of_trace=terms.trace_error,
    )


def check_moments(report: Report, ledger: Ledger) -> None:
    """Check every bound from the moments, and that layers and blocks add up to them."""
    moments = report.moments
    if moments is None:
        for name in ("bounds", "blocks", "orthogonality"):
            ledger.refute(name, getattr(report, name) is None, "there are no moments that this could come from")
        # A certified layer has an interval without moments.
        summed = any(layer.trace is not None for layer in report.layers or [])
        ledger.refute("layers", not summed, "there are no moments that this could come from")
        ledger.refute("bounds_list", not report.bounds_list, "there are no moments that this could come from")
        return
    ledger.equal("moments.exact", moments.exact, moments.method != "probes", "probes estimate, other methods sum")
    P, t, q = report.model.parameters.count, moments.trace, moments.frobenius_squared
    ledger.refute("moments.frobenius_squared", q >= 0, "a sum of squares", q)
    if moments.exact:
        ledger.equal("moments.failure_probability", moments.failure_probability, None, "exact moments can't fail")
        if 0 <= q < SMALLEST_SQUARE:
            for index, _ in enumerate(report.bounds_list or []):
                ledger.skip(f"bounds_list.{index}", UNDERFLOWN)
        else:
            _refute_cauchy(report, ledger, "moments.trace", t, q, P)
            _check_two_traces(report, ledger, t, q, P)
    elif moments.probes is not None:
        _check_probes(report, ledger)
    else:
        for index, _ in enumerate(report.bounds_list or []):
            ledger.skip(f"bounds_list.{index}", LATER)
    _check_first(report, ledger)
    check_layers(report, ledger)
    _check_orthogonality(report, ledger)


def _refute_cauchy(report: Report, ledger: Ledger, path: str, t: float, q: float, n: int) -> None:
    known = known_moments(report, n, t, max(q, 0.0))
    if known is None:
        holds = t * t <= n * q * (1 + 1e-6)
    else:
        least, most = abs(arb(t)) - (known.trace_high - arb(t)), arb(n).sqrt() * known.norm_high
        holds = not least > most
    ledger.refute(path, holds, "t² ≤ P q", t, math.sqrt(n * max(q, 0.0)))


def _check_two_traces(report: Report, ledger: Ledger, t: float, q: float, P: int) -> None:
    known = known_moments(report, P, t, max(q, 0.0))
    rounding = None if report.evidence is None else report.evidence.rounding
    for index, bound in enumerate(report.bounds_list or []):
        place = f"bounds_list.{index}"
        if bound.name != "wolkowicz_styan":
            ledger.judge(f"{place}.name", False, "no bound of this name follows from exact moments", bound.name)
            continue
        if known is None or rounding is None:
            ledger.skip(place, LATER)
            continue
        found = two_traces(known, P)
        _check_ends(ledger, place, bound, found, float(known.norm_high.upper()))
        _check_chance(ledger, place, bound, rounding.failure_probability, rounding)


def _check_ends(ledger: Ledger, place: str, bound: NamedBound, found: Sequence[arb], norm: float) -> None:
    max_lower, max_upper, min_lower, min_upper = found
    tolerance = MARGIN * norm
    for name, end, value, sign in (
        ("lambda_max.lower", bound.lambda_max.lower, max_lower, -1),
        ("lambda_max.upper", bound.lambda_max.upper, max_upper, 1),
        ("lambda_min.lower", bound.lambda_min.lower, min_lower, -1),
        ("lambda_min.upper", bound.lambda_min.upper, min_upper, 1),
    ):
        outward(ledger, f"{place}.{name}", end, value, tolerance, sign, WS)


def outward(ledger: Ledger, path: str, claimed: float, derived: arb, tolerance: float, sign: int, how: str) -> None:
    """Record whether an end is on the outer side of the exact bound, and within the tolerance of it.

    Args:
        ledger: Receives the finding.
        path: Path of the end.
        claimed: The end.
        derived: The exact bound.
        tolerance: Most that the end may be farther out.
        sign: 1 for an upper end, −1 for a lower one.
        how: What it is derived from.
    """
    beyond = sign * (arb(claimed) - derived)
    # A ball too wide to decide is no excuse: it is far narrower than any float.
    holds = bool(beyond >= 0) or derived.contains(arb(claimed))
    low, high = sorted((float(derived), float(derived) + sign * tolerance))
    if not holds:
        ledger.judge(path, False, f"{how}: the end is on the inner side of it", claimed, float(derived))
    else:
        ledger.within(path, claimed, min(low, claimed) if holds and beyond <= tolerance else low, high, how)


def _check_chance(ledger: Ledger, place: str, bound: NamedBound, chance: float, rounding: RoundingTerms) -> None:
    how = "failure probabilities of what it rests on"
    ledger.equal(f"{place}.failure_probability", bound.failure_probability, chance or None, how)
    ledger.equal(f"{place}.kind", bound.kind, "probabilistic" if chance else "deterministic", how)


def _check_probes(report: Report, ledger: Ledger) -> None:
    """Derive q̄ from the mean square of the probes and the steps before them, and the bound from it."""
    moments, evidence, enclosure = report.moments, report.evidence, report.enclosure
    if moments is None or moments.probes is None or evidence is None:
        return
    if 0 <= moments.frobenius_squared < SMALLEST_SQUARE:
        for path in (
            "moments.frobenius_squared",
            *(f"bounds_list.{i}" for i, _ in enumerate(report.bounds_list or [])),
        ):
            ledger.skip(path, UNDERFLOWN)
        return
    probes, rounding = moments.probes, evidence.rounding
    chance = probes.failure_probability + rounding.failure_probability
    ledger.near(
        "moments.failure_probability",
        *(moments.failure_probability, chance, 4 * UNIT),
        "failure probabilities of probes and of rounding",
    )
    alpha, beta = steps_of(report)
    if enclosure is None or len(alpha) < probes.steps:
        if probes.steps:
            ledger.skip("moments.frobenius_squared", "the report lacks the recurrence before the probes")
            for index, _ in enumerate(report.bounds_list or []):
                ledger.skip(f"bounds_list.{index}", "the report lacks the recurrence before the probes")
            return
        alpha, beta = [], []
    k = probes.steps
    inside = sum((arb(a) ** 2 for a in alpha[:k]), arb(0)) + 2 * sum((arb(b) ** 2 for b in beta[:k]), arb(0))
    rest = arb(probes.mean_square) / norm_factor(probes.count, probes.failure_probability)
    whole = ((inside + rest).sqrt() + arb(probes.factorisation_error)) ** 2
    summed = whole * (1 + arb(rounding.relative_square_error)) + arb(rounding.square_error)
    norm = summed.sqrt() + 2 * arb(rounding.operator)
    square = norm * norm
    # A relative error of 1e-12 is taken off x, and sums of squares round.
    tolerance = float(square) * (2e-12 + 4 * (k + 8) * UNIT)
    ledger.near(
        "moments.frobenius_squared",
        *(moments.frobenius_squared, float(square), tolerance),
        "(‖T‖² + 2β² + Q/x)^½ + η, widened by rounding",
    )
    for index, bound in enumerate(report.bounds_list or []):
        _check_norm_bound(report, ledger, f"bounds_list.{index}", bound, norm, alpha[:k], beta[:k])
        _check_chance(ledger, f"bounds_list.{index}", bound, moments.failure_probability or 0.0, rounding)


def _check_norm_bound(
    report: Report,
    ledger: Ledger,
    place: str,
    bound: NamedBound,
    norm: arb,
    alpha: Sequence[float],
    beta: Sequence[float],
) -> None:
    how, tolerance = "‖H‖_F from q̄, Ritz values of the steps before the probes", 2e-12 * float(norm)
    ledger.equal(f"{place}.name", bound.name, "frobenius_norm", "the trace is unknown")
    ledger.near(f"{place}.lambda_max.upper", bound.lambda_max.upper, float(norm), tolerance, how)
    ledger.near(f"{place}.lambda_min.lower", bound.lambda_min.lower, -float(norm), tolerance, how)
    inwards = None if report.moments is None or report.moments.probes is None else report.moments.probes.ritz_slack
    low, high = float(norm), -float(norm)
    if alpha and inwards is not None:
        smallest, largest = extreme_ritz_values(alpha, beta[: len(alpha) - 1])
        low, high = min(smallest + inwards, low), max(largest - inwards, high)
    tolerance = max(tolerance, 8 * (len(alpha) + 8) * UNIT * float(norm))
    ledger.near(f"{place}.lambda_max.lower", bound.lambda_max.lower, high, tolerance, how)
    ledger.near(f"{place}.lambda_min.upper", bound.lambda_min.upper, low, tolerance, how)


def _check_first(report: Report, ledger: Ledger) -> None:
    """``bounds`` repeats an entry of ``bounds_list``."""
    if report.bounds_list is None:
        return
    first = report.bounds_list[0] if report.bounds_list else None
    if report.bounds is None or first is None:
        ledger.judge("bounds", report.bounds is None and first is None, "it repeats an entry of bounds_list")
        return
    for end in ("lambda_max", "lambda_min"):
        ours: Interval = getattr(report.bounds.wolkowicz_styan, end)
        theirs: Interval = getattr(first, end)
        for side in ("lower", "upper"):
            path = f"bounds.wolkowicz_styan.{end}.{side}"
            ledger.equal(path, getattr(ours, side), getattr(theirs, side), "it repeats bounds_list")


def check_layers(report: Report, ledger: Ledger) -> None:
    """Check that layers and blocks add up to t and q, each layer's bound, and the symmetry of blocks."""
    moments, layers, blocks = report.moments, report.layers, report.blocks
    if moments is None or layers is None:
        ledger.refute("blocks", blocks is None, "there are no layers that they belong to")
        return
    traces = [layer.trace for layer in layers if layer.trace is not None]
    if layers and len(traces) == len(layers):
        scale = math.fsum(map(abs, traces))
        how = "traces of the layers add up to moments.trace"
        ledger.near("layers.sum.trace", math.fsum(traces), moments.trace, SUMS * scale, how)
        total = sum(layer.parameters for layer in layers)
        ledger.equal("layers.sum.parameters", total, report.model.parameters.count, "every parameter is in one layer")
    for index, layer in enumerate(layers):
        if layer.trace is not None and layer.frobenius_squared is not None:
            place = f"layers.{index}"
            _check_layer(report, ledger, place, layer.trace, layer.frobenius_squared, layer.parameters, index)
    if blocks is None:
        return
    square = [value for row in blocks for value in row]
    if not ledger.refute(
        "blocks", len(blocks) == len(layers) and all(len(row) == len(layers) for row in blocks), "one row a layer"
    ):
        return
    ledger.near(
        "blocks.sum.squares",
        *(math.fsum(value * value for value in square), moments.frobenius_squared),
        *(
            4 * SUMS * moments.frobenius_squared + SMALLEST_SQUARE,
            "squares of the blocks add up to moments.frobenius_squared",
        ),
    )
    for index, layer in enumerate(layers):
        how = "the diagonal block's square is the layer's, and blocks are symmetric"
        squared = blocks[index][index] ** 2
        tolerance = 8 * UNIT * squared + SMALLEST_SQUARE
        if layer.frobenius_squared is None:
            continue
        ledger.near(f"layers.{index}.frobenius_squared", layer.frobenius_squared, squared, tolerance, how)
        mirrored = [row[index] for row in blocks]
        largest = max(map(abs, mirrored), default=0.0)
        ledger.each(f"blocks.{index}", blocks[index], mirrored, SUMS * largest, how)


def _check_layer(report: Report, ledger: Ledger, place: str, t: float, q: float, n: int, index: int) -> None:
    upper = (report.layers or [])[index].wolkowicz_styan_upper
    if upper is None:
        return
    if n and 0 <= q < SMALLEST_SQUARE:
        ledger.skip(f"{place}.wolkowicz_styan_upper", UNDERFLOWN)
        return
    _refute_cauchy(report, ledger, f"{place}.trace", t, q, max(n, 1))
    if n == 0:
        ledger.equal(f"{place}.wolkowicz_styan_upper", upper, 0.0, "a layer without parameters")
        return
    known = known_moments(report, n, t, max(q, 0.0))
    if known is None:
        ledger.skip(f"{place}.wolkowicz_styan_upper", LATER)
        return
    tolerance = MARGIN * float(known.norm_high.upper())
    outward(ledger, f"{place}.wolkowicz_styan_upper", upper, two_traces(known, n).max_upper, tolerance, 1, WS)


def _check_orthogonality(report: Report, ledger: Ledger) -> None:
    """Refute shares that no batch can have."""
    part, N = report.orthogonality, report.batch.samples
    if part is None:
        return
    shares = part.sample_shares
    if part.coherence is not None:
        known = -SUMS <= part.coherence <= 1 + 1e-6
        ledger.refute("orthogonality.coherence", known, "the cosine of an angle", part.coherence)
    most = 1 - 1 / N if N else 1.0
    ledger.refute(
        "orthogonality.cross_sample_share",
        *(part.cross_sample_share <= most + 1e-9, "at most 1 − 1/N, by Cauchy-Schwarz", part.cross_sample_share, most),
    )
    for index, share in enumerate(shares):
        place = f"orthogonality.sample_shares.{index}"
        ledger.refute(f"{place}.row", share.row < N, "a row of the batch", share.row, N)
        following = shares[index + 1].share if index + 1 < len(shares) else -math.inf
        ledger.refute(f"{place}.share", share.share >= following, "descending order", share.share, following)
    if N and len(shares) == N:
        total = math.fsum(share.share for share in shares)
        if report.moments is not None and report.moments.frobenius_squared:
            ledger.near("orthogonality.sample_shares.sum", total, 1.0, 1e-10, "shares of all samples add up to 1")


def steps_of(report: Report) -> tuple[list[float], list[float]]:
    """Return α and β of all steps, those after a breakdown included; empty if the report lacks them."""
    enclosure = report.enclosure
    if enclosure is None or enclosure.alpha is None or enclosure.beta is None:
        return [], []
    alpha, beta = list(enclosure.alpha), list(enclosure.beta)
    if enclosure.derivation is not None and enclosure.derivation.continued is not None:
        alpha += enclosure.derivation.continued.alpha
        beta += enclosure.derivation.continued.beta
    return alpha, beta


def extreme_ritz_values(diagonal: Sequence[float], off: Sequence[float]) -> tuple[float, float]:
    """Compute the smallest and the largest eigenvalue of a symmetric tridiagonal matrix to a few units of its norm.

    By bisection with Sturm's count of negative pivots, whose computed values are exact for a matrix within a few units
    of rounding (Kahan 1966).
    """
    largest = max((abs(value) for part in (diagonal, off) for value in part), default=0.0)
    exponent = math.frexp(largest)[1]
    if largest and abs(exponent) > HARMLESS_EXPONENT:  # lest squares leave the range of numbers
        ends = extreme_ritz_values(*([math.ldexp(value, -exponent) for value in part] for part in (diagonal, off)))
        return math.ldexp(ends[0], exponent), math.ldexp(ends[1], exponent)
    radius = [abs(b) for b in off]
    around = [a + b for a, b in zip([0.0, *radius], [*radius, 0.0], strict=True)]
    low = min(a - r for a, r in zip(diagonal, around, strict=True))
    high = max(a + r for a, r in zip(diagonal, around, strict=True))
    return -_largest([-a for a in diagonal], off, -high, -low), _largest(diagonal, off, low, high)


def _largest(diagonal: Sequence[float], off: Sequence[float], low: float, high: float) -> float:
    squares = [0.0, *(b * b for b in off)]
    tiny = max(abs(low), abs(high)) * UNIT * UNIT or 5e-324
    for _ in range(120):
        middle = low + (high - low) / 2
        if middle in (low, high):
            break
        pivot, above = 1.0, True
        for a, square in zip(diagonal, squares, strict=True):
            pivot = middle - a - square / pivot
            if abs(pivot) < tiny:
                pivot = -tiny
            if pivot < 0:
                above = False
                break
        low, high = (low, middle) if above else (middle, high)
    return high
