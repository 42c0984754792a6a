"""The quantities of a report that a series follows along its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from wsb_engine.presentation.numbers import middle, width
from wsb_engine.report import CertifiedInterval, NamedBound, Report

Scalar = Literal["lambda_max", "lambda_min", "trace", "loss", "accuracy"]
Quantity = Literal["lambda_max", "lambda_min", "trace", "loss", "accuracy", "eigenvalues"]
Map = Literal["spectrum", "density"]
Shown = Literal["lambda_max", "lambda_min", "trace", "loss", "accuracy", "eigenvalues", "spectrum", "density"]

SCALARS: tuple[Scalar, ...] = get_args(Scalar)
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)
MAPS: tuple[Map, ...] = get_args(Map)

TITLES: Mapping[Shown, str] = {
    "lambda_max": "λ_max",
    "lambda_min": "λ_min",
    "trace": "Trace, tr H",
    "loss": "Loss",
    "accuracy": "Accuracy",
    "eigenvalues": "Largest eigenvalues",
    "spectrum": "Spectrum",
    "density": "Spectral density",
}

EIGENVALUE = "eigenvalue_"
"""Begins the name of one of the largest eigenvalues, which goes on with its rank from 1."""


@dataclass(frozen=True, slots=True)
class Value:
    """What one report says about one quantity."""

    value: float | None
    """The number, or the middle of an enclosure; None if only a bound is known."""
    by: str
    """``enclosure``, the name of a bound, how the moments or the spectrum were computed, or which loss it is."""
    lower: float | None = None
    upper: float | None = None
    failure_probability: float | None = None
    """With which the interval does not hold; None if it is certain, or if there is no interval."""

    @property
    def is_bound(self) -> bool:
        """True if the quantity is only bounded: its value is unknown."""
        return self.value is None


def scalars_of(report: Report) -> dict[Scalar, Value]:
    """Return the quantities that a report has, by name; those that it lacks are absent."""
    enclosure, moments, loss = report.enclosure, report.moments, report.loss
    found: dict[Scalar, Value | None] = {
        "lambda_max": _enclosed(enclosure.lambda_max) if enclosure is not None else _bounded(report, "lambda_max"),
        "lambda_min": _enclosed(enclosure.lambda_min) if enclosure is not None else _bounded(report, "lambda_min"),
        "trace": None if moments is None else Value(moments.trace, moments.method),
        "loss": Value(loss.value, loss.kind),
        "accuracy": _number(loss.accuracy, loss.kind),
    }
    return {name: value for name, value in found.items() if value is not None}


def eigenvalues_of(report: Report, most: int) -> list[Value]:
    """Return the largest eigenvalues of the spectrum, in descending order; none without a spectrum."""
    spectrum = report.spectrum
    return [] if spectrum is None else [Value(each, spectrum.method) for each in spectrum.eigenvalues[:most]]


def _number(value: float | None, by: str) -> Value | None:
    return None if value is None else Value(value, by)


def _enclosed(found: CertifiedInterval) -> Value:
    return Value(middle(found), "enclosure", found.lower, found.upper, found.failure_probability)


def _bounded(report: Report, name: Literal["lambda_max", "lambda_min"]) -> Value | None:
    """Return the narrowest bound on an end of the spectrum."""

    def interval(bound: NamedBound) -> float:
        return width(getattr(bound, name))

    bound = min(report.named_bounds, key=interval, default=None)
    if bound is None:
        return None
    ends = getattr(bound, name)
    return Value(None, bound.name, ends.lower, ends.upper, bound.failure_probability)
