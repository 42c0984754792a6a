"""The report of one analysis: the one schema that Python, the command line and HTTP share.

Numbers are finite or null. Absent parts are null. The same input, options, seed and device give the same
report, ``timings`` aside. Symbols: t = tr H, q = ‖H‖_F², P the number of parameters, N of samples.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

SCHEMA_VERSION = "1.2"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Engine(_Part):
    """What computed the report."""

    version: str
    torch: str
    device: str
    dtype: Literal["float64", "float32"]
    seed: int
    sandbox: list[str] | None = None
    """Protections that were active; null for none."""


class ParameterTensor(_Part):
    name: str
    shape: list[int]
    count: int


class Parameters(_Part):
    count: int
    tensors: list[ParameterTensor]
    tied: list[str]
    """Names of tensors that the model uses more than once; each counts once."""


class Parity(_Part):
    """Agreement of the logits with an independent runtime on the same batch."""

    reference: str
    max_abs_error: float


class Model(_Part):
    format: Literal["onnx", "torchscript", "module"]
    sha256: str | None
    architecture: Literal["mlp", "general"]
    parameters: Parameters
    activations: list[str]
    smooth: bool
    nonsmooth_operators: list[str]
    head: str
    parity: Parity | None


class BatchSummary(_Part):
    sha256: str | None
    samples: int
    classes: int
    """Number of classes; 2 for one binary logit."""


class Loss(_Part):
    kind: Literal["cross_entropy", "binary_cross_entropy"]
    value: float
    gradient_norm: float
    accuracy: float
    """Weighted share of samples whose most probable class is the label's."""


MomentsMethod = Literal["closed_form", "basis", "probes"]


class Moments(_Part):
    method: MomentsMethod
    exact: bool
    trace: float
    """Exact, or with ``probes`` an unbiased estimate."""
    frobenius_squared: float
    """Exact, or with ``probes`` an upper bound that holds but for the failure probability."""
    failure_probability: float | None = None
    """Null where exact."""
    trace_standard_error: float | None = None
    """Of the estimate; null where exact."""
    gauss_newton_trace: float | None = None
    """tr G of the generalised Gauss-Newton matrix: the part of the trace that is the loss's own curvature; null where
    the samples' Jacobians are too large."""


class Interval(_Part):
    lower: float
    upper: float


class ExtremeBounds(_Part):
    lambda_max: Interval
    lambda_min: Interval


class Bounds(_Part):
    wolkowicz_styan: ExtremeBounds


class CertifiedInterval(_Part):
    """An interval that contains the eigenvalue: always, or except with the failure probability."""

    lower: float
    upper: float
    relative_gap: float | None
    """(upper − lower) / |λ_max|; for λ_min over the larger of |λ_max| and |λ_min|. Null where only that is 0."""
    kind: Literal["deterministic", "probabilistic"]
    failure_probability: float | None
    """Null for a deterministic interval."""


class EnclosureStep(_Part):
    """What was certified after some products."""

    products: int
    lambda_max: Interval
    lambda_min: Interval


class Rounding(_Part):
    """How the enclosure accounts for rounding in the Hessian and its products."""

    how: Literal["proven", "measured"]
    """``proven``: a running error analysis bounds every rounding error. ``measured``: perturbed or more precise
    products estimate it, so the enclosure is certified up to measured rounding."""
    slack: float
    """Distance by which each end was moved outwards."""


StoppedBy = Literal["gap", "precision", "products", "time", "memory"]


class Enclosure(_Part):
    lambda_max: CertifiedInterval
    lambda_min: CertifiedInterval
    hessian_vector_products: int
    rounding_slack: float
    """Distance by which each end was moved outwards for rounding; the same as ``rounding.slack``."""
    convergence: list[EnclosureStep] | None = None
    """Both ends by number of products, some hundred rows at most; null in reports before schema 1.1."""
    rounding: Rounding | None = None
    """Null in reports before schema 1.2."""
    floor: float | None = None
    """Relative gap of λ_max below which rounding does not let the enclosure narrow; null where it sets no limit."""
    stopped_by: StoppedBy | None = None
    """``gap``: the relative gap asked for was reached. ``precision``: what is left is rounding. ``products``, ``time``,
    ``memory``: a limit was reached. Null in reports before schema 1.2."""


class Density(_Part):
    """Density of the eigenvalues, (1/P) Σ_i δ(λ − λ_i), with each node drawn as a Gaussian."""

    grid: list[float]
    values: list[float]
    sigma: float
    """Standard deviation of the Gaussians."""
    mean: float
    """Estimate of t/P."""
    mean_error: float
    """Its standard error over the random starts."""
    second_moment: float
    """Estimate of q/P."""
    second_moment_error: float


class SpectrumResult(_Part):
    method: Literal["dense", "lanczos"]
    eigenvalues: list[float]
    """Descending; all of them where dense, the largest where lanczos."""
    residuals: list[float] | None
    """‖Hv − θv‖ of each, by a product of its own; null where dense."""
    upper_bounds: list[float | None] | None
    """Certified: the i-th largest eigenvalue is not above the i-th of these; null where that can't be had."""
    density: Density | None


class LayerCurvature(_Part):
    name: str
    parameters: int
    trace: float
    frobenius_squared: float
    wolkowicz_styan_upper: float


class SampleShare(_Part):
    row: int
    share: float


class Orthogonality(_Part):
    coherence: float | None
    """Largest |cos| between two different samples' ã = [x; 1] (x without a bias) at the first layer; null where
    the samples are too many to compare and q did not need it."""
    cross_sample_share: float
    """Share of q that comes from pairs of different samples; negative where they cancel."""
    sample_shares: list[SampleShare]
    """The largest ones, Σ_t of q by sample."""


class Check(_Part):
    name: str
    passed: bool
    value: float | None
    tolerance: float | None


class ReportWarning(_Part):
    code: str
    message: str


class Report(_Part):
    """Sharpness of one classifier on one batch."""

    schema_version: str = SCHEMA_VERSION
    engine: Engine
    model: Model
    batch: BatchSummary
    loss: Loss
    moments: Moments | None
    bounds: Bounds | None
    enclosure: Enclosure | None
    spectrum: SpectrumResult | None
    layers: list[LayerCurvature] | None
    blocks: list[list[float]] | None
    """‖H_lk‖_F, layer × layer, in the order of ``layers``."""
    orthogonality: Orthogonality | None
    checks: list[Check]
    warnings: list[ReportWarning]
    timings: dict[str, float]
    """Seconds by phase; ``total`` covers all of them."""
