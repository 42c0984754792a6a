"""Figures of several reports, and figures as files: the same bytes for the same reports, with their fonts inside."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from wsb_engine.errors import OptionsError
from wsb_engine.presentation.plots import drawable, explain, literal, opening

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Form = Literal["pdf", "png", "svg"]
FORMS: tuple[Form, ...] = get_args(Form)
DPI = 300
"""Resolution of a PNG file."""
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Distinguishable for people with any form of colour blindness (Okabe and Ito 2008)."""
_MARKERS = "osv^D<>"
_METADATA: dict[Form, dict[str, None]] = {"pdf": {"CreationDate": None}, "png": {}, "svg": {"Date": None}}
"""Without times, which would make every file another one."""


class Point(NamedTuple):
    """A quantity of one report: a number, or an interval that contains it."""

    x: float
    lower: float
    upper: float
    is_bound: bool = False
    """True if a bound stands in for an enclosure."""


class Curve(NamedTuple):
    """Points in the order of x."""

    label: str
    """Untrusted; empty for a curve that needs no name."""
    points: Sequence[Point]


@contextmanager
def style() -> Iterator[None]:
    """Draw and encode with these settings inside the block, whatever the user's own are."""
    import matplotlib as mpl
    from cycler import cycler

    with mpl.rc_context(), warnings.catch_warnings():
        # A box stands for a character that the font lacks.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        mpl.rcdefaults()
        mpl.rcParams.update(
            {
                "axes.prop_cycle": cycler(color=_COLORS),
                "axes.spines.right": False,
                "axes.spines.top": False,
                "font.size": 9,
                "pdf.fonttype": 42,  # TrueType: conferences refuse the default, Type 3
                "svg.hashsalt": "wsb",  # otherwise identifiers are random
            }
        )
        yield


def encoded(axes: Axes, form: Form) -> bytes:
    """Return the figure of these axes as a file.

    Raises:
        OptionsError: ``figure_too_small`` for its names and numbers.
    """
    from matplotlib.figure import Figure

    figure = axes.get_figure(root=True)
    if not isinstance(figure, Figure):
        raise TypeError("the axes belong to no figure")
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "constrained_layout not applied", UserWarning)
        try:
            figure.savefig(buffer, format=form, metadata=_METADATA[form], dpi=DPI)
        except UserWarning as error:
            raise OptionsError(
                "The names and numbers leave no room for the axes",
                code="figure_too_small",
                advice="Make the figure wider or higher (--width, --height), or the names of the files shorter.",
            ) from error
    return buffer.getvalue()


def along(
    curves: Sequence[Curve],
    axes: Axes,
    *,
    x_label: str,
    y_label: str,
    names: Sequence[str] = (),
    limit: tuple[str, float] | None = None,
    log: bool = False,
) -> int:
    """Draw a quantity of several reports against their steps, or side by side.

    Args:
        curves: The points.
        axes: Axes to draw on.
        x_label: What x is.
        y_label: What the quantity is.
        names: What to write at x = 0, 1, … in place of numbers; untrusted.
        limit: Label and place of a line to compare with.
        log: True for a logarithmic axis, on which numbers that are not positive have no place.

    Returns:
        The number of points that were left out for that reason.
    """
    if log:
        axes.set_yscale("log", nonpositive="clip")
    drawn = [[point for point in curve.points if not log or _centre(point) > 0] for curve in curves]
    with opening(axes):
        for index, (curve, points) in enumerate(zip(curves, drawn, strict=True)):
            _draw(curve.label, points, axes, _MARKERS[index % len(_MARKERS)], f"C{index % len(_COLORS)}")
        if limit is not None:
            axes.axhline(drawable([limit[1]])[0], color="0.4", linestyle="--", linewidth=1, label=limit[0])
    if any(point.is_bound for points in drawn for point in points):
        axes.plot([], [], "o", markerfacecolor="white", markeredgecolor="0.4", label="a bound, not an enclosure")
    if names:
        lengthy = sum(len(name) for name in names) > 40
        shown = [literal(name) for name in names]
        axes.set_xticks(range(len(names)), shown, rotation=45 if lengthy else 0, ha="right" if lengthy else "center")
    axes.set(xlabel=literal(x_label), ylabel=y_label)
    explain(axes)
    return sum(len(curve.points) - len(points) for curve, points in zip(curves, drawn, strict=True))


def _draw(label: str, points: Sequence[Point], axes: Axes, marker: str, color: str) -> None:
    """Draw one curve with a bar for each interval; hollow markers stand for bounds."""
    x, y = [point.x for point in points], [_centre(point) for point in points]
    below = [max(centre - drawable([point.lower])[0], 0.0) for point, centre in zip(points, y, strict=True)]
    above = [max(drawable([point.upper])[0] - centre, 0.0) for point, centre in zip(points, y, strict=True)]
    axes.errorbar(x, y, yerr=[below, above], fmt="-", color=color, linewidth=1, capsize=2)
    style: dict[str, Any] = {"linestyle": "none", "marker": marker, "markersize": 4, "markeredgecolor": color}
    for is_bound, face in ((False, color), (True, "white")):
        chosen = [point for point in points if point.is_bound == is_bound]
        places = [point.x for point in chosen], [_centre(point) for point in chosen]
        axes.plot(*places, markerfacecolor=face, zorder=3, **style)
    if label:
        axes.plot([], [], marker=marker, markersize=4, color=color, linewidth=1, label=literal(label))


def _centre(point: Point) -> float:
    return drawable([point.lower / 2 + point.upper / 2])[0]
