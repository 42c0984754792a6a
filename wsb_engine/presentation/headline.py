"""The first two lines about a report: what is certain about λ_max, and what that means.

Every rendering shows these words; none rephrases them.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from wsb_engine.presentation import bounds, scaling, wording
from wsb_engine.presentation.numbers import at_least, at_most, certain, ends, exact, number, percent, rounded
from wsb_engine.presentation.text import name
from wsb_engine.report import CertifiedInterval, Interval, Report

MIN_SHARE = 0.005
"""Smallest share of ‖H‖_F² worth a word."""


class Headline(NamedTuple):
    """What a reader sees first."""

    value: str
    """One line: λ_max with as many digits as are certain, and how certain they are."""
    sentence: str
    """What that means, for a reader who knows no Hessian."""


@dataclass(frozen=True)
class Reference:
    """λ_max of another report."""

    name: str
    """What the other report is, as the object of "than": ``the baseline``."""
    interval: Interval | CertifiedInterval

    @property
    def chance(self) -> float:
        """Probability that the interval is wrong; 0 if it is certain or not known."""
        return getattr(self.interval, "failure_probability", None) or 0.0


@dataclass(frozen=True)
class Yardstick:
    """What λ_max of a report is compared with."""

    learning_rate: float | None = None
    reference: Reference | None = None
    """The baseline, or the last analysis of the same series."""


def headline(report: Report, yardstick: Yardstick | None = None) -> Headline:
    """Choose the words: on the optimizer, else against 2/η, else another report, else what dominates the curvature."""
    yardstick = yardstick or Yardstick()
    if wording.doubts(report):
        return Headline(_value(report), wording.UNRELIABLE)
    found = None if report.lambda_max is None else report.lambda_max.interval
    if report.optimizer is not None:
        return Headline(_value(report), scaling.sentence(report.optimizer))
    if found is not None and yardstick.learning_rate is not None:
        return Headline(_value(report), _stability(found, yardstick.learning_rate))
    if found is not None and yardstick.reference is not None:
        return Headline(_value(report), _change(found, yardstick.reference))
    return Headline(_value(report), _dominance(report))


def _value(report: Report) -> str:
    closest = report.lambda_max
    if closest is None:
        if report.largest_eigenvalue is None:
            return "λ_max is not known: the report holds no bound on it"
        method = "" if report.spectrum is None else f" of the {report.spectrum.method} spectrum"
        return f"λ_max ≈ {number(report.largest_eigenvalue)} (largest eigenvalue{method}, not certified)"
    shown, how = certain(closest.interval), _certainty(report, closest.interval)
    if shown is None:
        lower, upper = ends(closest.interval, fewest=3)
        return f"{lower} ≤ λ_max ≤ {upper} ({how})"
    radius = f", ± {shown.radius}" if shown.radius else ""
    return f"λ_max = {shown.value} ({how}{radius})"


def _certainty(report: Report, found: CertifiedInterval) -> str:
    if wording.doubts(report):
        return "not reliable: a check has failed"
    measured = report.enclosure is not None and report.enclosure.is_measured
    by = "" if report.enclosure is not None else f" by the {wording.source(report)}"
    chance = found.failure_probability
    # Earlier reports may not say how probable a bound is.
    kind = "probabilistic" if found.kind == "probabilistic" and not chance else "certified"
    but = f" except with probability {number(chance)}" if chance else ""
    return f"{kind}{by}{' up to measured rounding' if measured else ''}{but}"


def _stability(found: CertifiedInterval, learning_rate: float) -> str:
    """Compare with 2/η, below which gradient descent is stable on the quadratic model."""
    limit = f"2/η = {number(2 / learning_rate, 4)}"
    descent = f"gradient descent with learning rate {number(learning_rate)}"
    low, high = (Fraction(end) * exact(learning_rate) / 2 for end in (found.lower, found.upper))
    if high < 1:
        return f"On the quadratic model {descent} is stable: λ_max is at most {_share(high, up=True)} of {limit}."
    if low > 1:
        return f"On the quadratic model {descent} is unstable: λ_max is at least {_share(low, up=False)} of {limit}."
    return f"Whether {descent} is stable is not certain: λ_max may be on either side of {limit}."


def _share(ratio: Fraction, *, up: bool) -> str:
    value = rounded(100 * ratio)
    return f"{at_most(value, 3) if up else at_least(value, 3)} %"


def _change(found: CertifiedInterval, reference: Reference) -> str:
    """Compare with λ_max of another report."""
    other = reference.interval
    chance = (found.failure_probability or 0.0) + reference.chance
    but = f", except with probability {number(min(1.0, chance))}" if chance else ""
    if found.lower > other.upper:
        grown = _relative(found.lower, other.upper, other.lower)
        return f"Sharper than {reference.name}: λ_max is higher by at least {grown}{but}."
    if found.upper < other.lower:
        shrunk = _relative(other.lower, found.upper, other.lower)
        return f"Flatter than {reference.name}: λ_max is lower by at least {shrunk}{but}."
    return f"No certain difference from {reference.name}: the intervals of λ_max overlap."


def _relative(high: float, low: float, other: float) -> str:
    """Write high − low, rounded down: relative to the other report's λ_max if that is positive for certain."""
    difference = Fraction(high) - Fraction(low)
    if other > 0:
        # Of a rise, low is the other's upper end; of a fall, high is the other's lower end.
        return _share(difference / Fraction(max(low, other)), up=False)
    return at_least(rounded(difference), 3)


def _dominance(report: Report) -> str:
    """Say where the curvature is, and how loose the bound in closed form is."""
    shares = [part for part in (_layer(report), _sample(report)) if part]
    parts = [*([f"of the curvature (‖H‖_F²), {' and '.join(shares)}"] if shares else []), *_looseness(report)]
    if not parts:
        return "Nothing to compare it with: given a learning rate, this line says whether gradient descent is stable."
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _layer(report: Report) -> str:
    layers, moments = report.layers or [], report.moments
    if len(layers) < 2 or moments is None or not moments.exact or moments.frobenius_squared <= 0:
        return ""
    largest = max(layers, key=lambda layer: layer.frobenius_squared or 0.0)
    share = (largest.frobenius_squared or 0.0) / moments.frobenius_squared
    return f"{percent(share)} is in layer {name(largest.name)} alone" if MIN_SHARE <= share <= 1 else ""


def _sample(report: Report) -> str:
    shares = [] if report.orthogonality is None else report.orthogonality.sample_shares
    if not shares or not MIN_SHARE <= shares[0].share <= 1:
        return ""
    return f"{percent(shares[0].share)} comes from row {shares[0].row} of the batch"


def _looseness(report: Report) -> list[str]:
    if report.enclosure is None and report.largest_eigenvalue is None:
        return []
    loose = ((bounds.words(bound.name).title, wording.looseness(report, bound)) for bound in bounds.shown(report))
    return [f"the {title} bound is {factor}" for title, factor in loose if factor][:1]
