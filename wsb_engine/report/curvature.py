"""What is known of the spectrum: moments, bounds, the enclosure and eigenvalues."""

from __future__ import annotations

from typing import Literal

from wsb_engine.report.evidence import EnclosureDerivation, ProbeTerms
from wsb_engine.report.fields import (
    CertifiedInterval,
    Count,
    Few,
    Interval,
    Kind,
    Many,
    Message,
    Name,
    Part,
    Probability,
    Steps,
)

MomentsMethod = Literal["closed_form", "basis", "probes"]


class Moments(Part):
    method: MomentsMethod
    exact: bool
    trace: float
    """Exact, or with ``probes`` an unbiased estimate."""
    frobenius_squared: float
    """Exact, or with ``probes`` an upper bound that holds except with the failure probability."""
    failure_probability: Probability | None = None
    """Null if exact."""
    trace_standard_error: float | None = None
    """Standard error of an estimated trace; null if exact."""
    gauss_newton_trace: float | None = None
    """tr G of the generalised Gauss-Newton matrix: the part of the trace that is the curvature of the loss; null if the
    Jacobians of the samples are too large."""
    probes: ProbeTerms | None = None
    """Null for other methods, and in reports before schema 1.7."""


class ExtremeBounds(Part):
    lambda_max: Interval
    lambda_min: Interval


class Bounds(Part):
    """The bound from the moments, which ``bounds_list`` holds under its name."""

    wolkowicz_styan: ExtremeBounds
    """From t, q and P; with ``probes`` the outer ends are ±‖H‖_F, as t is unknown, and the inner ones Ritz values."""


class NamedBound(Part):
    """A bound on both ends of the spectrum that holds for this analysis."""

    name: Name
    """Stable identifier, such as ``wolkowicz_styan`` or ``frobenius_norm``."""
    assumptions: Few[Message]
    """Sentences: what the bound rests on."""
    kind: Kind
    failure_probability: Probability | None
    """Null for a deterministic bound, and for bounds of earlier reports that do not state it."""
    lambda_max: Interval
    lambda_min: Interval


class EnclosureStep(Part):
    """Certified intervals after a number of products."""

    products: Count
    lambda_max: Interval
    lambda_min: Interval


class Rounding(Part):
    """How the enclosure accounts for rounding in the Hessian and its products."""

    how: Literal["proven", "measured"]
    """``proven``: a running error analysis bounds every rounding error. ``measured``: perturbed or more precise
    products estimate rounding, so the enclosure is certified up to measured rounding."""
    slack: float
    """Distance by which each end was moved outwards."""


class Epsilon(Part):
    """Bounds ε_j ≥ ‖f_j‖ on what rounding did in each step."""

    form: Literal["worst_case"]
    values: Steps[float]


class Modelled(Part):
    """An upper end under a model of rounding, in place of no certified number."""

    upper: float
    form: Literal["isotropic"] = "isotropic"
    """``isotropic``: the errors f_j of the steps point in no direction more than in others."""


StoppedBy = Literal["gap", "decided", "precision", "products", "time", "memory"]


class Enclosure(Part):
    lambda_max: CertifiedInterval
    lambda_min: CertifiedInterval
    hessian_vector_products: Count
    rounding_slack: float
    """Distance by which each end was moved outwards for rounding, as in ``rounding.slack``."""
    convergence: Few[EnclosureStep] | None = None
    """Both ends by number of products, about a hundred rows at most; null in reports before schema 1.1."""
    rounding: Rounding | None = None
    """Null in reports before schema 1.2."""
    floor: float | None = None
    """Relative gap of λ_max below which rounding keeps the enclosure from narrowing; null if rounding sets no limit."""
    stopped_by: StoppedBy | None = None
    """``gap``: the requested relative gap was reached. ``decided``: every rule of the policy was decided before that.
    ``precision``: only rounding is left. ``products``, ``time``, ``memory``: a limit was reached. Null in reports
    before schema 1.2."""
    basis: Literal["full", "three_vectors"] | None = None
    """``full``: all vectors of the recurrence were kept. ``three_vectors``: the last two and the residual, so that the
    outer ends rest on the start vector alone. Null in reports before schema 1.5, as are the next five."""
    alpha: Steps[float] | None = None
    """α_j of H q_j = γ_j q_{j−1} + α_j q_j + β_j q_{j+1} + f_j, one for each step up to the first breakdown; null, as
    β, γ and ε, after more than 10 000 steps."""
    beta: Steps[float] | None = None
    """β_j; the last is the norm of the residual."""
    gamma: Steps[float] | None = None
    """γ_j; the first is 0."""
    epsilon: Epsilon | None = None
    modelled: Modelled | None = None
    """Upper end of λ_max under a model of rounding, at the failure probability asked for: not certified. Null also if
    λ_max is enclosed with certainty."""
    derivation: EnclosureDerivation | None = None
    """Null in reports before schema 1.7."""

    @property
    def is_measured(self) -> bool:
        """True if rounding was measured, so that the enclosure is certified up to that."""
        return self.rounding is not None and self.rounding.how == "measured"


class Density(Part):
    """Density of the eigenvalues, (1/P) Σ_i δ(λ − λ_i), each node smoothed to a Gaussian."""

    grid: Many[float]
    values: Many[float]
    sigma: float
    """Standard deviation of the Gaussians."""
    mean: float
    """Estimate of t/P."""
    mean_error: float
    """Standard error of ``mean`` over the random starts."""
    second_moment: float
    """Estimate of q/P."""
    second_moment_error: float


class SpectrumResult(Part):
    method: Literal["dense", "lanczos"]
    eigenvalues: Many[float]
    """Descending: all of them if ``dense``, the largest if ``lanczos``."""
    residuals: Many[float] | None
    """‖Hv − θv‖ of each pair, by a fresh product; null if ``dense``."""
    upper_bounds: Many[float | None] | None
    """Certified: the i-th largest eigenvalue is at most the i-th of these; null if unavailable."""
    density: Density | None


class LayerCurvature(Part):
    """The diagonal block of H that belongs to a layer's parameters."""

    name: Name
    parameters: Count
    trace: float | None
    """Null without a closed form, as are the next two; never in reports before schema 1.7."""
    frobenius_squared: float | None
    wolkowicz_styan_upper: float | None
    lambda_max: CertifiedInterval | None = None
    """λ_max of the block; null unless ``layers`` is ``certified``, and if a limit or rounding leaves nothing to say."""


class SampleShare(Part):
    row: Count
    share: float


class Orthogonality(Part):
    coherence: float | None
    """Largest |cos| between ã = [x; 1] (x without a bias) of two different samples at the first layer; null if
    there are too many samples to compare and q did not need it."""
    cross_sample_share: float
    """Share of q that comes from pairs of different samples; negative if they cancel."""
    sample_shares: Few[SampleShare]
    """The largest shares of q by sample, in descending order."""
