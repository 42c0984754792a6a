"""The report of one analysis: the one schema that Python, the command line and HTTP share.

Numbers are finite or null. Absent parts are null. The same input, options, seed and device give the same
report, ``timings`` aside. Symbols: t = tr H, q = ‖H‖_F², P the number of parameters, N of samples.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from wsb_engine.options import MAX_NUMBERS, LossKind

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SCHEMA_VERSION = "1.6"

MAX_STEPS = 10_000
"""Largest number of steps whose recurrence is reported."""
MAX_BLOCKS = 1000
"""Largest number of layers whose blocks are reported."""

Name = Annotated[str, Field(max_length=8192)]
Message = Annotated[str, Field(max_length=1 << 16)]
Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0)]
Item = TypeVar("Item")
# fail_fast: a hostile list of a hundred thousand wrong items would otherwise cost a second, and as many errors.
Few = Annotated[list[Item], Field(max_length=1000, fail_fast=True)]
"""A list of what there are at most a few hundred of."""
Many = Annotated[list[Item], Field(max_length=100_000, fail_fast=True)]
"""A list with an entry for each tensor or eigenvalue."""
Weights = Annotated[list[float], Field(max_length=MAX_NUMBERS, fail_fast=True)]
Steps = Annotated[list[Item], Field(max_length=MAX_STEPS, fail_fast=True)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Engine(_Part):
    """What computed the report."""

    version: Name
    torch: Name
    device: Name
    dtype: Literal["float64", "float32"]
    seed: int
    sandbox: Few[Name] | None = None
    """Active protections; null if there are none."""


class ParameterTensor(_Part):
    name: Name
    shape: Few[Count]
    count: Count


class Parameters(_Part):
    count: Count
    tensors: Many[ParameterTensor]
    tied: Many[Name]
    """Names of tensors that the model uses more than once; each counts once."""
    stored_dtypes: Annotated[dict[Name, Count], Field(max_length=64)] | None = None
    """Number of parameters by the dtype that the model stores them in; null in reports before schema 1.4."""
    left_out: Many[ParameterTensor] | None = None
    """Other stored floating tensors that the logits depend on, taken for constants: masks, tables of positions, running
    statistics; single numbers only if they may have been parameters. H is that of the file: what its exporter dropped
    or merged is in no list. Null in earlier reports, and for models that declare their parameters."""


class Parity(_Part):
    """Agreement of the logits with those of an independent runtime on the same batch."""

    reference: Name
    max_abs_error: float


class Model(_Part):
    format: Literal["onnx", "torchscript", "pt2", "module"]
    sha256: Name | None
    architecture: Literal["mlp", "general"]
    parameters: Parameters
    activations: Few[Name]
    smooth: bool
    nonsmooth_operators: Few[Name]
    head: Name
    parity: Parity | None


class BatchSummary(_Part):
    sha256: Name | None
    samples: Count
    classes: Count | None
    """Number of classes; 2 for one binary logit, the number of labels of ``multilabel``, null of ``squared_error``."""
    positions: Count | None = None
    """Number of labels of each sample (tokens, pixels); null if a sample has one."""


class Loss(_Part):
    kind: LossKind
    value: float
    gradient_norm: float
    accuracy: float | None
    """Weighted share of samples (of positions that count) whose most probable class is that of the label; null if the
    loss predicts no classes."""
    ignored: Count | None = None
    """Number of labels that do not count, by ``ignore_index``; null if all do."""
    ignore_index: int | None = None
    """Label that does not count; null if there is none."""
    label_smoothing: float | None = None
    """As the option of that name was set, and null if it was not, as for those that follow."""
    class_weights: Weights | None = None
    pos_weight: Weights | None = None


MomentsMethod = Literal["closed_form", "basis", "probes"]


class Moments(_Part):
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


class Interval(_Part):
    lower: float
    upper: float


class ExtremeBounds(_Part):
    lambda_max: Interval
    lambda_min: Interval


class Bounds(_Part):
    """The bound from the moments, which ``bounds_list`` holds under its name."""

    wolkowicz_styan: ExtremeBounds
    """From t, q and P; with ``probes`` the outer ends are ±‖H‖_F, as t is unknown, and the inner ones Ritz values."""


Kind = Literal["deterministic", "probabilistic"]


class NamedBound(_Part):
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


class CertifiedInterval(_Part):
    """An interval that contains the eigenvalue: always, or except with the failure probability."""

    lower: float
    upper: float
    relative_gap: float | None
    """(upper − lower) / |λ_max|; for λ_min relative to the larger of |λ_max| and |λ_min|. Null if only that is 0."""
    kind: Kind
    failure_probability: Probability | None
    """Null for a deterministic interval."""


class EnclosureStep(_Part):
    """Certified intervals after a number of products."""

    products: Count
    lambda_max: Interval
    lambda_min: Interval


class Rounding(_Part):
    """How the enclosure accounts for rounding in the Hessian and its products."""

    how: Literal["proven", "measured"]
    """``proven``: a running error analysis bounds every rounding error. ``measured``: perturbed or more precise
    products estimate rounding, so the enclosure is certified up to measured rounding."""
    slack: float
    """Distance by which each end was moved outwards."""


class Epsilon(_Part):
    """Bounds ε_j ≥ ‖f_j‖ on what rounding did in each step."""

    form: Literal["worst_case"]
    values: Steps[float]


class Modelled(_Part):
    """An upper end under a model of rounding, in place of no certified number."""

    upper: float
    form: Literal["isotropic"] = "isotropic"
    """``isotropic``: the errors f_j of the steps point in no direction more than in others."""


StoppedBy = Literal["gap", "decided", "precision", "products", "time", "memory"]


class Enclosure(_Part):
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

    @property
    def is_measured(self) -> bool:
        """True if rounding was measured, so that the enclosure is certified up to that."""
        return self.rounding is not None and self.rounding.how == "measured"


class Density(_Part):
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


class SpectrumResult(_Part):
    method: Literal["dense", "lanczos"]
    eigenvalues: Many[float]
    """Descending: all of them if ``dense``, the largest if ``lanczos``."""
    residuals: Many[float] | None
    """‖Hv − θv‖ of each pair, by a fresh product; null if ``dense``."""
    upper_bounds: Many[float | None] | None
    """Certified: the i-th largest eigenvalue is at most the i-th of these; null if unavailable."""
    density: Density | None


class LayerCurvature(_Part):
    name: Name
    parameters: Count
    trace: float
    frobenius_squared: float
    wolkowicz_styan_upper: float


class SampleShare(_Part):
    row: Count
    share: float


class Orthogonality(_Part):
    coherence: float | None
    """Largest |cos| between ã = [x; 1] (x without a bias) of two different samples at the first layer; null if
    there are too many samples to compare and q did not need it."""
    cross_sample_share: float
    """Share of q that comes from pairs of different samples; negative if they cancel."""
    sample_shares: Few[SampleShare]
    """The largest shares of q by sample, in descending order."""


class Check(_Part):
    name: Name
    passed: bool
    value: float | None
    tolerance: float | None


class ReportWarning(_Part):
    code: Name
    message: Message


class Citation(_Part):
    """A publication that numbers of the report rest on."""

    key: Name
    """Stable identifier, such as ``wolkowicz_styan_1980``."""
    reference: Message
    """Authors, year, title and place, in one line."""
    url: Name
    supports: Few[Name]
    """Paths of the report, such as ``enclosure.lambda_max``."""


Plot = Literal["density", "spectrum", "bounds", "convergence"]
"""What a plot of a report shows."""


class Closest(NamedTuple):
    """The closest interval about λ_max in a report."""

    source: str
    """``enclosure``, or the name of a bound."""
    interval: CertifiedInterval


class Report(_Part):
    """Sharpness of one classifier on one batch.

    Examples:
        >>> import wsb
        >>> batch = wsb.load_batch("batch.npz")
        >>> report = wsb.analyze(wsb.load_model("model.onnx"), batch, wsb.Options(spectrum="dense"))
        >>> report.model.parameters.count, report.moments.method, report.enclosure.lambda_max.kind
        (51, 'closed_form', 'deterministic')
        >>> print(f"{report.spectrum.eigenvalues[0]:.4f}")
        0.8378
        >>> [check.name for check in report.checks if not check.passed]
        []
        >>> wsb.Report.model_validate_json(report.model_dump_json()) == report
        True
    """

    model_config = ConfigDict(json_schema_extra={"description": "Sharpness of one classifier on one batch."})

    schema_version: Name = SCHEMA_VERSION
    engine: Engine
    model: Model
    batch: BatchSummary
    loss: Loss
    moments: Moments | None
    bounds: Bounds | None
    bounds_list: Few[NamedBound] | None = None
    """Every bound that holds, without the enclosure; null in reports before schema 1.3."""
    enclosure: Enclosure | None
    spectrum: SpectrumResult | None
    layers: Many[LayerCurvature] | None
    blocks: Annotated[list[Few[float]], Field(max_length=MAX_BLOCKS)] | None
    """‖H_lk‖_F, layer × layer, in the order of ``layers``; null for more than 1 000."""
    orthogonality: Orthogonality | None
    checks: Few[Check]
    warnings: Few[ReportWarning]
    timings: Annotated[dict[Name, Seconds], Field(max_length=64)]
    """Seconds by phase; ``total`` covers all of them."""
    products: Annotated[dict[Name, Count], Field(max_length=64)] | None = None
    """Hessian-vector products by phase, those of a second pass and of confirmations included; all that measure rounding
    by perturbed or more precise models count as ``rounding``. Null in reports before schema 1.5."""
    citations: Few[Citation] | None = None
    """Sources of the theorems and methods used; null in reports before schema 1.6."""

    @property
    def named_bounds(self) -> list[NamedBound]:
        """``bounds_list``, or for a report before schema 1.3 the bound that it holds elsewhere."""
        if self.bounds_list is not None:
            return self.bounds_list
        if self.bounds is None:
            return []
        chance = None if self.moments is None else self.moments.failure_probability
        # Bounds from exact moments in float32 rest on rounding measured with random vectors.
        is_certain = chance is None and self.engine.dtype == "float64"
        if chance is None and self.enclosure is not None and not is_certain:
            chance = self.enclosure.lambda_max.failure_probability
        bound = NamedBound(
            name="wolkowicz_styan" if self.moments is None or self.moments.exact else "frobenius_norm",
            assumptions=[],
            kind="deterministic" if is_certain else "probabilistic",
            failure_probability=chance,
            lambda_max=self.bounds.wolkowicz_styan.lambda_max,
            lambda_min=self.bounds.wolkowicz_styan.lambda_min,
        )
        return [bound]

    @property
    def lambda_max(self) -> Closest | None:
        """The enclosure of λ_max, or without one the narrowest bound; None if there is neither."""
        if self.enclosure is not None:
            return Closest("enclosure", self.enclosure.lambda_max)
        if not self.named_bounds:
            return None
        bound = min(self.named_bounds, key=lambda each: each.lambda_max.upper - each.lambda_max.lower)
        interval = CertifiedInterval(
            **bound.lambda_max.model_dump(),
            relative_gap=None,
            kind=bound.kind,
            failure_probability=bound.failure_probability,
        )
        return Closest(bound.name, interval)

    @property
    def largest_eigenvalue(self) -> float | None:
        """The largest eigenvalue of the spectrum, which is not certified; None without a spectrum."""
        return self.spectrum.eigenvalues[0] if self.spectrum is not None and self.spectrum.eigenvalues else None

    @property
    def failed_checks(self) -> list[Check]:
        """Checks that void the numbers of the report."""
        return [check for check in self.checks if not check.passed]

    def messages(self, code: str) -> list[str]:
        """Return the messages of the warnings with this code."""
        return [warning.message for warning in self.warnings if warning.code == code]

    def plot(self, ax: Axes | None = None, *, show: Plot | None = None, log: bool | None = None) -> Axes:
        """Plot the report with matplotlib, without pyplot: nothing is registered or shown.

        Args:
            ax: Axes to draw on; by default those of a new figure, ``report.plot().figure``.
            show: ``density`` of the eigenvalues, their ``spectrum`` by rank, the ``bounds`` on both of its ends, or the
                ``convergence`` of the enclosure; by default the first of the first three that the report has.
            log: Whether the axis of the density, of |λ| or of the interval's width is logarithmic, as it is by default;
                of ``bounds`` the eigenvalue's, symmetric about 0.

        Raises:
            OptionsError: ``plot_unavailable`` if the report lacks what ``show`` names, ``matplotlib_missing``.

        Examples:
            >>> import wsb
            >>> report = wsb.analyze(wsb.load_model("model.onnx"), wsb.load_batch("batch.npz"))
            >>> axes = report.plot()  # doctest: +SKIP
            >>> axes.figure.savefig("bounds.pdf")  # doctest: +SKIP
        """
        axes: Axes = _presentation("plots").plot(self, ax, show=show, log=log)
        return axes

    def _repr_html_(self) -> str:
        """Return a summary for notebooks."""
        html: str = _presentation("notebook").summary(self)
        return html


def _presentation(name: str) -> Any:
    """Import a module that presents reports: by name, since those modules import this one."""
    return import_module(f"wsb_engine.presentation.{name}")
