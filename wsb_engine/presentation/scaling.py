"""Words for scaled sharpness and for the largest stable learning rate of an optimizer."""

from __future__ import annotations

from typing import NamedTuple

from wsb_engine.presentation.numbers import at_least, at_most, exact, interval, number, rounded
from wsb_engine.report import CertifiedInterval, Report, Rounding, StableSteps

_DESCENT, _ADAM = "gradient descent", "Adam"
_NAMES = {
    "sgd": _DESCENT,
    "momentum": _DESCENT,
    "nesterov": _DESCENT,
    "adam": _ADAM,
    "amsgrad": _ADAM,
    "adamw": "AdamW",
    "nadam": "NAdam",
    "rmsprop": "RMSProp",
}
_LARGE = 1e300
"""Rates beyond this stand for no limit."""


class Row(NamedTuple):
    """A number as a row of a table: as ``wording.Quantity``."""

    label: str
    value: str
    note: str


def rows(report: Report) -> list[Row]:
    """List what a report says of scaled sharpness and of the optimizer; empty if nothing was asked."""
    found = []
    if report.scaled is not None:
        part = report.scaled
        how = _certainty(part.lambda_max, part.rounding)
        found.append(Row(f"Scaled λ_max ({part.scaling})", interval(part.lambda_max), how))
        if part.wolkowicz_styan is not None:
            note = "from the exact moments of the scaled Hessian"
            found.append(Row("Wolkowicz-Styan, scaled λ_max", interval(part.wolkowicz_styan), note))
    if report.optimizer is not None:
        steps = report.optimizer
        how = _certainty(steps.lambda_max, _rounding(report))
        found.append(Row(f"λ_max in the units of {name(steps)}", interval(steps.lambda_max), how))
        found.append(Row("Largest stable learning rate", _rate(steps), f"of {name(steps)}, on the quadratic model"))
        if steps.ratio is not None:
            note = f"learning rate {number(steps.learning_rate)}; stable below 1"
            found.append(Row("Learning rate over the largest stable one", interval(steps.ratio), note))
    return found


def sentence(steps: StableSteps) -> str:
    """Say whether the optimizer is stable, or up to which learning rate."""
    stable, ratio = steps.largest_stable_learning_rate, steps.ratio
    if stable is None:
        return f"On the quadratic model no learning rate of {name(steps)} is too large: λ_max is not positive."
    who = f"{name(steps)} with learning rate {number(steps.learning_rate)}"
    if ratio is None:
        return f"On the quadratic model {name(steps)} is stable up to a learning rate of {at_least(stable.lower, 4)}."
    if ratio.upper < 1:
        share = f"{at_most(_percents(ratio.upper), 3)} %"
        return f"On the quadratic model {who} is stable: that is at most {share} of the largest stable rate."
    if ratio.lower > 1:
        share = f"{at_least(_percents(ratio.lower), 3)} %"
        return f"On the quadratic model {who} is unstable: that is at least {share} of the largest stable rate."
    return f"Whether {who} is stable is not certain: the largest stable rate may be on either side of it."


def name(steps: StableSteps) -> str:
    """Return the name of the optimizer, with what sets it apart."""
    settings, base = steps.settings, _NAMES[steps.kind]
    if settings.nesterov:
        return f"{base} with Nesterov's momentum {number(settings.momentum)}"
    if settings.momentum:
        return f"{base} with momentum {number(settings.momentum)}"
    return f"{base} (AMSGrad)" if settings.amsgrad else base


def _percents(ratio: float) -> float:
    return rounded(100 * exact(ratio))


def _rate(steps: StableSteps) -> str:
    stable = steps.largest_stable_learning_rate
    if stable is None:
        return "no limit"
    return interval(stable) if stable.upper < _LARGE else f"at least {at_least(stable.lower)}"


def _rounding(report: Report) -> Rounding | None:
    if report.optimizer is not None and report.optimizer.rounding is not None:
        return report.optimizer.rounding
    return None if report.enclosure is None else report.enclosure.rounding


def _certainty(found: CertifiedInterval, rounding: Rounding | None) -> str:
    proven = rounding is not None and rounding.how == "proven"
    how = ", rounding included" if proven else " up to measured rounding"
    but = "" if found.failure_probability is None else f", but for a probability of {number(found.failure_probability)}"
    return f"{found.kind}: certified{how}{but}"
