"""What it takes to derive the numbers of a report again, from the report alone or from its model and batch."""

from __future__ import annotations

from typing import Literal

from wsb_engine.options import Options
from wsb_engine.report.fields import Count, Few, Name, Part, Probability, Steps

Theorem = Literal["deflation", "start_vector", "whole_space"]
"""``deflation``: the moments bound what the basis leaves over. ``start_vector``: the random start vector overlaps the
eigenvector. ``whole_space``: the basis spans everything."""
How = Literal["proven", "measured"]


class EndDerivation(Part):
    """How one end of the spectrum was enclosed: ``inner`` and a theorem's bound, each moved outwards for rounding."""

    theorem: Theorem
    """What the outer end rests on."""
    how: How
    """How rounding is known."""
    steps: Count
    """Steps of the recurrence that the outer end rests on."""
    inner: float
    """Rayleigh quotient or Ritz value that the inner end is."""
    inner_slack: float
    outer_slack: float
    factorisation_error: float
    """η: distance of H to a matrix of which the recurrence is exact."""
    failure_probability: Probability
    """δ of the start vector's overlap; 0 if the end does not rest on it."""


class Continued(Part):
    """The recurrence after its first breakdown, restarted in the complement."""

    alpha: Steps[float]
    beta: Steps[float]


class EnclosureDerivation(Part):
    """What an enclosure rests on besides moments and recurrence."""

    lambda_max: EndDerivation
    lambda_min: EndDerivation
    operator: float
    """Bound on the rounding error of H that products share, ‖E‖_F; that of ``Evidence.rounding`` or, once the outer
    Ritz vectors were multiplied, larger."""
    failure_probability: Probability
    """δ that the options leave to each start vector."""
    slack: float
    """Distance by which inner ends of the last step were moved outwards before fresh products replaced them."""
    norms: Steps[float] | None
    """‖H q_j‖; null after more than 10 000 steps."""
    homogeneity: float
    """ρ: largest ‖3 fl(H(q/3)) − fl(Hq)‖ relative to ‖Hq‖."""
    continued: Continued | None
    """Null without a breakdown, or without a basis."""


class ProbeTerms(Part):
    """What ``moments.frobenius_squared`` of probes consists of."""

    count: Count
    """m: Gaussian vectors."""
    steps: Count
    """Steps of the recurrence before them."""
    mean_square: float
    """Q: mean of ‖F z‖² in the complement of those steps."""
    factorisation_error: float
    ritz_slack: float | None
    """Distance by which the inner ends of the bound were moved inwards from Ritz values; null without steps."""
    failure_probability: Probability
    """δ of the bound on ‖F‖_F²."""


class RoundingTerms(Part):
    """Bounds on rounding that the bounds from moments allow for, as in mathematics.md, section 11."""

    how: How
    operator: float
    """‖E‖_F ≤ this, for the rounding of H that products share."""
    product: float | None
    """Bound on the rounding of one product with a unit vector; null if it is measured."""
    failure_probability: Probability
    relative_square_error: float
    square_error: float
    trace_error: float


class Machine(Part):
    """Where the analysis ran, as far as its last digits may depend on it."""

    processor: Name
    threads: Count
    """CPU threads that torch could use."""
    memory: Count
    """Bytes of working memory, which decide how sums are divided."""
    members: Count = 1
    """Devices or processes that shared the analysis."""


class Evidence(Part):
    """What it takes to repeat an analysis, and how its bounds allow for rounding."""

    options: Options
    """All options, with the device that was chosen; ``memory_limit`` is in ``machine``."""
    needs: Few[Name]
    """Parts that had to be computed whatever they cost."""
    machine: Machine
    rounding: RoundingTerms
