"""Enclosures of both ends of a spectrum, and their premises."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from wsb_engine.bounds.rounding import How, Rounding

Kind = Literal["deterministic", "probabilistic"]
StoppedBy = Literal["gap", "decided", "precision", "products", "time", "memory"]
Theorem = Literal["deflation", "start_vector", "whole_space"]


@dataclass(frozen=True)
class ExactMoments:
    """t and q as summed, exact up to rounding."""

    trace: float
    frobenius_squared: float


@dataclass(frozen=True)
class CertifiedNorm:
    """An upper bound on q that may fail; t is unknown."""

    frobenius_squared: float
    failure_probability: float


KnownMoments = ExactMoments | CertifiedNorm


@dataclass(frozen=True)
class Premises:
    """What an enclosure rests on, apart from the Krylov run."""

    rounding: Rounding
    moments: KnownMoments | None
    failure_probability: float
    """δ of the start vector's overlap, for each end."""
    relative_gap: float
    """Gap at which to stop."""
    both: bool = True
    """True if the enclosure of λ_min has to be as narrow as that of λ_max."""

    def scaled(self, factor: float) -> Premises:
        """Return the premises for factor · H."""
        moments = self.moments
        if moments is not None:
            moments = replace(moments, frobenius_squared=moments.frobenius_squared * factor * factor)
        if isinstance(moments, ExactMoments):
            moments = replace(moments, trace=moments.trace * factor)
        return replace(self, moments=moments, rounding=self.rounding.scaled(factor))

    @property
    def deflation_risk(self) -> float:
        """Failure probability of what rests on the moments; 0 if nothing can fail."""
        moments = self.moments.failure_probability if isinstance(self.moments, CertifiedNorm) else 0.0
        return moments + self.rounding.failure_probability

    @property
    def risk(self) -> float:
        """Failure probability of the tighter of two probabilistic ends: it fails only if one of them does."""
        return self.failure_probability + self.deflation_risk


@dataclass(frozen=True)
class Derivation:
    """What an end follows from: a number inside the spectrum and a theorem's bound, each moved outwards."""

    theorem: Theorem
    steps: int
    """Steps that the outer end rests on."""
    inner: float
    inner_slack: float
    outer_slack: float
    factorisation_error: float
    """η of those steps."""
    failure_probability: float = 0.0
    """δ of the start vector's overlap; 0 if the end does not rest on it."""


@dataclass(frozen=True)
class End:
    """An interval that contains λ_max, or λ_min."""

    lower: float
    upper: float
    failure_probability: float
    """0 for a deterministic bound."""
    size: float
    """Magnitude that the gap is relative to."""
    how: How
    slack: float
    """Distance by which each side was moved outwards for rounding, on average."""
    derivation: Derivation

    @property
    def kind(self) -> Kind:
        return "probabilistic" if self.failure_probability else "deterministic"

    @property
    def width(self) -> float:
        return self.upper - self.lower

    @property
    def relative_gap(self) -> float:
        """inf if the eigenvalue is 0 and the interval is not."""
        if self.size:
            return self.width / self.size
        return 0.0 if self.width == 0 else math.inf

    @property
    def mirrored(self) -> End:
        """The same end for −H."""
        derivation = replace(self.derivation, inner=-self.derivation.inner)
        return replace(self, lower=-self.upper, upper=-self.lower, derivation=derivation)

    def widened(self, by: float) -> End:
        return replace(self, lower=self.lower - by, upper=self.upper + by, slack=self.slack + by)

    def scaled(self, factor: float) -> End:
        """Return the end for factor · H, with a positive factor."""
        size, slack, found = self.size * factor, self.slack * factor, self.derivation
        derivation = replace(
            found,
            inner=found.inner * factor,
            inner_slack=found.inner_slack * factor,
            outer_slack=found.outer_slack * factor,
            factorisation_error=found.factorisation_error * factor,
        )
        lower, upper = self.lower * factor, self.upper * factor
        return replace(self, lower=lower, upper=upper, size=size, slack=slack, derivation=derivation)


@dataclass(frozen=True)
class Enclosures:
    """Both ends after some products."""

    lambda_max: End
    lambda_min: End
    products: int
    history: tuple[Enclosures, ...] = ()
    """Earlier enclosures, in order, each without a history."""
    stopped_by: StoppedBy = "products"
    floor: float | None = None
    """Relative gap of λ_max that rounding leaves open, however many products are taken."""
    modelled: float | None = None
    """Upper end of λ_max if rounding is isotropic, which is a model and no certificate."""

    @property
    def how(self) -> How:
        return "proven" if self.lambda_max.how == self.lambda_min.how == "proven" else "measured"

    @property
    def slack(self) -> float:
        return max(self.lambda_max.slack, self.lambda_min.slack)

    def widened(self, by: float) -> Enclosures:
        """Move each end outwards; drop the history."""
        return replace(self, lambda_max=self.lambda_max.widened(by), lambda_min=self.lambda_min.widened(by), history=())
