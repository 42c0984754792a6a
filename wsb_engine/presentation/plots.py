"""Plots of reports on axes of matplotlib, which only these functions import. None of them touches pyplot.

Every number of the schema can be drawn: those too large or too small for an axis are drawn at its end, or at 0.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, get_args

from wsb_engine.errors import OptionsError
from wsb_engine.presentation import bounds, wording
from wsb_engine.presentation.numbers import Ends, middle, width
from wsb_engine.presentation.text import MAX_NAME, name
from wsb_engine.report import CertifiedInterval, Interval, Plot, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLOTS: tuple[Plot, ...] = get_args(Plot)
WIDTH, HEIGHT = 5.0, 3.2
"""Size of a new figure in inches."""
DECADES = 6
"""Decades of the logarithmic axis of a density; what is further below its peak is smoothing."""
MAX_POINTS = 20_000
"""Most eigenvalues to draw; of more, evenly spread ones."""

MAX_BOUND_NAME = 24
"""Most characters of the name of a bound; longer ones would leave no room for the axes."""

_LARGEST = 1e100
_SMALLEST = 1e-100
_DIAMOND = 0.01
"""Share of the axis below which an interval is drawn as a diamond."""
_LAMBDA = {"max": r"$\lambda_{\max}$", "min": r"$\lambda_{\min}$"}
_ADVICE: dict[Plot, str] = {
    "density": "Analyse with density=True (--density).",
    "spectrum": 'Analyse with spectrum="dense" or "top" (--spectrum).',
    "bounds": "Analyse with an enclosure or moments.",
    "convergence": "Analyse with an enclosure; reports have its convergence since schema 1.1.",
}


def plot(
    report: Report, ax: Axes | None = None, *, show: Plot | None = None, log: bool | None = None, label: str = ""
) -> Axes:
    """Plot a report: see ``Report.plot``.

    Args:
        report: The report.
        ax: Axes to draw on; None for those of a new figure.
        show: What to draw; None for the first of density, spectrum and bounds that the report has.
        log: Whether the axis is logarithmic; None for the default of ``show``.
        label: Name of the report among several on the same axes, which then show no more than its curve.

    Raises:
        OptionsError: ``plot_unavailable``, ``matplotlib_missing``.
    """
    require_matplotlib()
    shown = show or next((each for each in PLOTS[:3] if _has(report, each)), "bounds")
    if shown not in PLOTS:
        raise OptionsError(f"There is no plot {shown!r}", code="plot_unavailable", advice=f"Give {', '.join(PLOTS)}.")
    if not _has(report, shown):
        raise OptionsError(f"This report has no {shown} to plot", code="plot_unavailable", advice=_ADVICE[shown])
    axes = new_axes() if ax is None else ax
    with opening(axes):
        _DRAW[shown](report, axes, log, literal(label))
    if report.failed_checks and not label:
        axes.set_title(wording.UNRELIABLE, fontsize="small", color="C3")
    explain(axes)
    return axes


def require_matplotlib() -> None:
    """Check that plots can be drawn.

    Raises:
        OptionsError: ``matplotlib_missing``.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise OptionsError(
            "Plots are drawn by matplotlib, which is not installed",
            code="matplotlib_missing",
            advice="pip install 'wsb-sharpness[plot]'",
        ) from error


def new_axes(size: tuple[float, float] = (WIDTH, HEIGHT)) -> Axes:
    """Return the axes of a new figure of this width and height in inches, which no list of figures holds."""
    from matplotlib.figure import Figure

    axes: Axes = Figure(figsize=size, layout="constrained").subplots()
    return axes


def literal(text: str, limit: int = MAX_NAME) -> str:
    """Return untrusted text so that matplotlib shows it as it is: no formula, and not left out of a legend."""
    shown = name(text, limit).replace("\\", "∖").replace("$", r"\$") if text else ""
    return f" {shown}" if shown.startswith("_") else shown


def _has(report: Report, shown: Plot) -> bool:
    spectrum = report.spectrum
    if shown == "density":
        density = None if spectrum is None else spectrum.density
        return density is not None and 0 < len(density.grid) == len(density.values)
    if shown == "spectrum":
        return spectrum is not None and bool(spectrum.eigenvalues)
    if shown == "convergence":
        return report.enclosure is not None and bool(report.enclosure.convergence)
    return report.lambda_max is not None


def _density(report: Report, axes: Axes, log: bool | None, label: str) -> None:
    """Draw the density over λ, and where λ_max is certified to lie."""
    density = None if report.spectrum is None else report.spectrum.density
    if density is None:
        return
    grid, values = drawable(density.grid), drawable(density.values)
    top = max(values)
    logarithmic = log is not False and top > 0
    if logarithmic:
        floor = top / 10**DECADES
        values = [max(value, floor) for value in values]
        axes.set_yscale("log")
    [line] = axes.plot(grid, values, label=label, linewidth=1.2)
    axes.fill_between(
        grid, values, min(values) if logarithmic else 0.0, color=line.get_color(), alpha=0.15, linewidth=0
    )
    if not label:
        _mark_largest(report, axes.axvline, axes.axvspan)
    axes.set(xlabel=r"eigenvalue $\lambda$", ylabel="density")


def _spectrum(report: Report, axes: Axes, log: bool | None, label: str) -> None:
    """Draw the eigenvalues by rank: on a logarithmic axis their magnitudes, negative ones as hollow triangles."""
    eigenvalues = [] if report.spectrum is None else drawable(report.spectrum.eigenvalues)
    ranked = [(i + 1, eigenvalues[i]) for i in _spread(len(eigenvalues))]
    logarithmic = log is not False and any(eigenvalues)
    if not logarithmic:
        axes.plot(*_columns(ranked), "o", markersize=3, label=label)
        axes.set(xlabel="rank", ylabel=r"eigenvalue $\lambda$")
    else:
        color = next(iter(axes.plot([], [])))  # takes the next colour of the cycle for both signs
        signs = (("o", color.get_color(), 1), ("v", "none", -1))
        for marker, face, sign in signs:
            points = [(rank, abs(value)) for rank, value in ranked if value * sign > 0]
            text = (label or rf"$\lambda {'>' if sign > 0 else '<'} 0$") if points and (sign > 0 or not label) else ""
            style: dict[str, Any] = {"markerfacecolor": face, "markeredgecolor": color.get_color(), "markersize": 3}
            axes.plot(*_columns(points), marker, label=text, **style)
        axes.set(xlabel="rank", ylabel=r"$|\lambda|$", yscale="log")
    if not label:
        _mark_largest(report, axes.axhline, axes.axhspan)


def _bounds(report: Report, axes: Axes, log: bool | None, label: str) -> None:
    """Draw the intervals that contain both ends of the spectrum, below each other, and the moments m and m ± s."""
    rows = _rows(report)
    places = [end for _, found in rows for end in drawable([found.lower, found.upper])]
    if log:
        sizes = [abs(place) for place in places if place]
        axes.set_xscale("symlog", linthresh=min(sizes, default=1.0))
    visible = _DIAMOND * (max(places) - min(places))
    for y, (_, found) in enumerate(rows):
        low, high = drawable([found.lower, found.upper])
        color = "C0" if isinstance(found, CertifiedInterval) else "C1"
        if high - low <= visible:
            axes.plot([drawable([middle(found)])[0]], [y], "D", color=color, markersize=5)
        else:
            axes.plot([low, high], [y, y], "|-", color=color, markersize=9, markeredgewidth=1.5)
    _mark_moments(report, axes)
    axes.set_yticks(range(len(rows)), [text for text, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(f"eigenvalue of {label}" if label else "eigenvalue")


def _rows(report: Report) -> list[tuple[str, Interval | CertifiedInterval]]:
    """List the intervals of both ends with their labels: the enclosure, then the bounds."""
    rows: list[tuple[str, Interval | CertifiedInterval]] = []
    for end in ("max", "min"):
        if report.enclosure is not None:
            rows.append((f"{_LAMBDA[end]}, enclosure", getattr(report.enclosure, f"lambda_{end}")))
        for bound in bounds.shown(report):
            title = literal(bounds.words(bound.name).title, MAX_BOUND_NAME)
            rows.append((f"{_LAMBDA[end]}, {title}", getattr(bound, f"lambda_{end}")))
    return rows


def _mark_moments(report: Report, axes: Axes) -> None:
    """Draw the mean m = t/P of the eigenvalues, and m ± s, their standard deviation; nothing unless both are exact."""
    count, moments = report.model.parameters.count, report.moments
    if moments is None or not moments.exact or count == 0:
        return
    m = moments.trace / count
    s = math.sqrt(max(moments.frobenius_squared / count - min(m * m, sys.float_info.max), 0.0))
    for places, style, text in (([m], "-", "$m$"), ([m - s, m + s], ":", r"$m \pm s$")):
        for index, place in enumerate(drawable(places)):
            axes.axvline(place, color="0.5", linestyle=style, linewidth=1, zorder=0, label=text if index == 0 else "")


def _convergence(report: Report, axes: Axes, log: bool | None, label: str) -> None:
    """Draw the width of both intervals by the number of products."""
    steps = [] if report.enclosure is None else report.enclosure.convergence or []
    ends: tuple[tuple[str, Callable[[Any], Ends], str], ...] = (
        (_LAMBDA["max"], lambda step: step.lambda_max, "o-"),
        (_LAMBDA["min"], lambda step: step.lambda_min, "v:"),
    )
    # Among several reports, λ_max alone says how each closed.
    for text, end, style in ends[: 1 if label else 2]:
        widths = drawable(width(end(step)) for step in steps)
        points = [(step.products, size) for step, size in zip(steps, widths, strict=True) if log is False or size > 0]
        axes.plot(*_columns(points), style, markersize=3, linewidth=1, label=f"{text}, {label}" if label else text)
    axes.set(xlabel="Hessian-vector products", ylabel="width of the interval")
    if log is not False:
        axes.set_yscale("log")


def _mark_largest(report: Report, line: Callable[..., object], span: Callable[..., object]) -> None:
    """Mark where λ_max is enclosed, and its first bound."""
    if report.enclosure is not None:
        low, high = drawable([report.enclosure.lambda_max.lower, report.enclosure.lambda_max.upper])
        text = f"{_LAMBDA['max']}, enclosure"
        line(drawable([middle(report.enclosure.lambda_max)])[0], color="C3", linewidth=1, label=text)
        span(low, high, color="C3", alpha=0.2, linewidth=0)
    for bound in bounds.shown(report)[:1]:
        title = literal(bounds.words(bound.name).title, MAX_BOUND_NAME)
        line(drawable([bound.lambda_max.upper])[0], color="C1", linewidth=1, linestyle="--", label=f"{title} bound")


def explain(axes: Axes) -> None:
    """Add a legend if there is anything to explain."""
    if axes.get_legend_handles_labels()[1]:
        # The default place, named: otherwise matplotlib warns on a busy machine that it took long to find.
        axes.legend(loc="best", framealpha=0.8, edgecolor="none", fontsize="small")


@contextmanager
def opening(axes: Axes) -> Iterator[None]:
    """Draw inside the block, and give a logarithmic axis whose numbers are all alike a range; matplotlib only warns."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Attempting to set identical low and high", UserWarning)
        yield
        low, high = axes.dataLim.minposy, axes.dataLim.y1
        if axes.get_yscale() == "log" and 0 < low <= high < 1.1 * low:
            axes.set_ylim(low / 2, high * 2)


def drawable(values: Iterable[float]) -> list[float]:
    """Return numbers that an axis can hold."""
    return [0.0 if abs(v) < _SMALLEST else max(-_LARGEST, min(_LARGEST, float(v))) for v in values]


def _spread(count: int) -> Sequence[int]:
    """Select all of 0 … count − 1, or evenly spread ones with the first and the last."""
    if count <= MAX_POINTS:
        return range(count)
    return [round(i * (count - 1) / (MAX_POINTS - 1)) for i in range(MAX_POINTS)]


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


_DRAW: dict[Plot, Callable[[Report, Axes, bool | None, str], None]] = {
    "density": _density,
    "spectrum": _spectrum,
    "bounds": _bounds,
    "convergence": _convergence,
}
