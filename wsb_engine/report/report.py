"""A whole report, and what is found in it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import ConfigDict, Field

from wsb_engine.report.curvature import (
    Bounds,
    Enclosure,
    LayerCurvature,
    Moments,
    NamedBound,
    Orthogonality,
    SpectrumResult,
)
from wsb_engine.report.evidence import Evidence
from wsb_engine.report.fields import MAX_BLOCKS, CertifiedInterval, Count, Few, Many, Message, Name, Part, Seconds
from wsb_engine.report.inputs import BatchSummary, Engine, Loss, Model
from wsb_engine.report.local import Alignment, ClassCurvature, GaussNewton, GroupCurvature
from wsb_engine.report.population import Population
from wsb_engine.report.scaling import Scaled, StableSteps

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SCHEMA_VERSION = "1.7"


class Check(Part):
    name: Name
    passed: bool
    value: float | None
    tolerance: float | None


class ReportWarning(Part):
    code: Name
    message: Message


class Citation(Part):
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


class Report(Part):
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
    evidence: Evidence | None = None
    """What ``wsb verify`` needs to repeat the analysis; null in reports before schema 1.7."""
    population: Population | None = None
    """λ_max of the distribution that the rows come from, if it was asked for; null in reports before schema 1.7."""
    scaled: Scaled | None = None
    """Scaled sharpness; null unless ``scaling`` was asked for."""
    optimizer: StableSteps | None = None
    """Largest stable learning rate; null unless an ``optimizer`` was given."""
    groups: Few[GroupCurvature] | None = None
    """In the order of the option ``groups``; null without it, and as the next three in reports before schema 1.7."""
    classes: Few[ClassCurvature] | None = None
    """Those that have a weight, in the order of the logits; null unless ``classes`` is ``certified``."""
    gauss_newton: GaussNewton | None = None
    alignment: Alignment | None = None

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
