"""Named bounds on both ends of a spectrum: what a bound assumes, and how it follows from what is known of H."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Range = tuple[float, float]
"""Lower and upper limit of a number that is not known exactly."""


@dataclass(frozen=True)
class ExtremeBounds:
    """Lower and upper bounds on λ_max and λ_min."""

    lambda_max_lower: float
    lambda_max_upper: float
    lambda_min_lower: float
    lambda_min_upper: float


@dataclass(frozen=True)
class Quantities:
    """What is known of H, rounding included."""

    order: int
    """P, the number of rows."""
    norm: Range
    """Range of ‖H‖_F."""
    trace: Range | None = None
    """Range of tr H; None if unknown."""
    ritz: Range | None = None
    """A number not below λ_min and one not above λ_max, from Ritz values; None if unknown."""
    failure_probability: float = 0.0
    """Probability that one of these is wrong; 0 if nothing random enters them."""


@dataclass(frozen=True)
class Bound:
    """A theorem that bounds both ends of the spectrum."""

    name: str
    """Identifier in reports and policies; never changes."""
    assumptions: tuple[str, ...]
    """What has to be true of the quantities, in sentences; how rounding is accounted for is stated separately."""
    evaluate: Callable[[Quantities], ExtremeBounds | None]
    """Returns None if the quantities do not suffice, or another bound is never wider."""
