"""The command `wsb plot`: figures of reports, for papers."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from service.cli.ending import Exit, end

# The help needs none of these.
if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from wsb_engine.presentation.figures import Curve, Point
    from wsb_engine.report import Plot, Report

LAMBDA_MAX = "lambda_max"
"""The quantity of several reports by default: the enclosure of λ_max, or else the narrowest bound on it."""
_LARGEST = (LAMBDA_MAX, "enclosure.lambda_max")
_STEP = re.compile(r"(.*?)(\d{1,15})(\D*)", re.DOTALL)
"""The last number of a name."""


class _Wanted(NamedTuple):
    """What to draw."""

    quantity: str
    log: bool | None
    learning_rate: float | None


def plot(
    reports: Annotated[
        list[Path],
        typer.Argument(exists=True, dir_okay=False, metavar="REPORT", help="Reports, written by --json."),
    ],
    out: Annotated[Path, typer.Option(dir_okay=False, help="File to write: .pdf, .svg or .png.")],
    quantity: Annotated[
        str | None,
        typer.Option(
            help="density, spectrum, bounds or convergence; or a number by its path in the report, such as "
            "enclosure.lambda_max or loss.value, for one curve along all reports.",
            show_default="of one report what it has; of several lambda_max",
        ),
    ] = None,
    log: Annotated[
        bool | None,
        typer.Option("--log/--no-log", help="Logarithmic axis.", show_default="not for bounds and numbers"),
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(min=1e-12, max=1e12, help="Draw 2/η beside λ_max; stability_ratio needs it.")
    ] = None,
    width: Annotated[float, typer.Option(min=1, max=40, help="Width in inches.")] = 5.0,
    height: Annotated[float, typer.Option(min=1, max=40, help="Height in inches.")] = 3.2,
) -> None:
    """Draw reports for a paper: one report, or a quantity along several.

    Several reports are placed by the last number in their names (step-100.json, step-200.json), with a curve for each
    rest of the name, or else side by side. The same reports give the same bytes. Needs the extra: wsb-sharpness[plot].

    Exit codes: 0 done, 2 invalid input.
    """
    from service.cli.outputs import Outputs, UnusableError
    from wsb_engine.errors import EngineError
    from wsb_engine.presentation.figures import FORMS, encoded, style
    from wsb_engine.presentation.plots import new_axes, require_matplotlib

    form = next((each for each in FORMS if out.suffix.lower() == f".{each}"), None)
    if form is None:
        known = ", ".join(f".{each}" for each in FORMS)
        end(f"{out} has none of the suffixes {known}: name the file by its format. [figure_format]", Exit.INVALID)
    along = len(reports) > 1 or learning_rate is not None
    wanted = _Wanted(quantity or (LAMBDA_MAX if along else ""), log, learning_rate)
    try:
        require_matplotlib()
        Outputs({"out": out}).check()
        _check(wanted, len(reports))
        with style():
            axes = new_axes((width, height))
            notes = [*_drawn(reports, wanted, axes)]
            content = encoded(axes, form)
        out.write_bytes(content)
    except EngineError as error:
        end(f"{error.message} [{error.code}]\n{error.advice}", Exit.INVALID)
    except UnusableError as error:
        end(str(error), Exit.INVALID)
    except OSError as error:
        end(f"{out} can't be written: {error.strerror or error}", Exit.INVALID)
    sys.stderr.write("".join(f"{note}\n" for note in notes))


def _check(wanted: _Wanted, count: int) -> None:
    """End the command if there is no such quantity."""
    from service.policies.metrics import STABILITY_RATIO, check_metric
    from wsb_engine.presentation.plots import PLOTS

    if wanted.quantity == "bounds" and count > 1:
        end("bounds is a plot of one report; give one, or --quantity lambda_max. [quantity_invalid]", Exit.INVALID)
    if wanted.quantity == STABILITY_RATIO and wanted.learning_rate is None:
        end("stability_ratio needs a --learning-rate, which reports do not record. [quantity_invalid]", Exit.INVALID)
    if wanted.learning_rate is not None and wanted.quantity not in (STABILITY_RATIO, *_LARGEST):
        known = f"{LAMBDA_MAX} or {STABILITY_RATIO}"
        end(f"--learning-rate goes with --quantity {known}. [quantity_invalid]", Exit.INVALID)
    if wanted.quantity in ("", LAMBDA_MAX, *PLOTS):
        return
    try:
        check_metric(wanted.quantity)
    except ValueError as error:
        known = ", ".join((*PLOTS, LAMBDA_MAX))
        end(f"--quantity: {error}; plots are {known}. [quantity_invalid]", Exit.INVALID)


def _drawn(paths: Sequence[Path], wanted: _Wanted, axes: Axes) -> Iterator[str]:
    """Draw the reports, of which no more than one is in memory; yield notes on what was left out."""
    from wsb_engine.presentation.plots import PLOTS

    names = _names(paths)
    show = next((each for each in PLOTS if each == wanted.quantity), None)
    if show is None and wanted.quantity:
        yield from _along(paths, names, wanted, axes)
    else:
        yield from _overlaid(paths, names, show, wanted.log, axes)


def _overlaid(
    paths: Sequence[Path], names: Sequence[str], show: Plot | None, log: bool | None, axes: Axes
) -> Iterator[str]:
    """Draw the same plot of each report on the same axes."""
    from service.cli.outputs import read_report
    from wsb_engine.errors import OptionsError
    from wsb_engine.presentation.plots import plot as draw

    missing: OptionsError | None = None
    for path, name in zip(paths, names, strict=True):
        report = read_report(path)
        yield from _doubt(path, report)
        try:
            draw(report, axes, show=show, log=log, label=name if len(paths) > 1 else "")
        except OptionsError as error:
            missing = error
            yield f"{path} is left out: {error.message}."
    if missing is not None and not axes.has_data():
        raise missing


def _along(paths: Sequence[Path], names: Sequence[str], wanted: _Wanted, axes: Axes) -> Iterator[str]:
    """Draw a quantity along the reports."""
    from service.cli.outputs import UnusableError, read_report
    from wsb_engine.presentation.figures import along
    from wsb_engine.presentation.plots import literal

    points: list[Point | None] = []
    for index, path in enumerate(paths):
        report = read_report(path)
        yield from _doubt(path, report)
        points.append(_point(report, index, wanted))
        if points[-1] is None:
            yield f"{path} is left out: it has no {wanted.quantity}."
    if not any(points):
        raise UnusableError(f"No report has {wanted.quantity}. [quantity_missing]")
    curves, steps = _by_step(names, points)
    left_out = along(
        curves,
        axes,
        x_label="step" if steps else "",
        y_label=r"$\lambda_{\max}$" if wanted.quantity == LAMBDA_MAX else literal(wanted.quantity),
        names=() if steps else names,
        limit=_limit(wanted),
        log=wanted.log is True,
    )
    if left_out:
        yield f"{left_out} of {len(paths)} reports are left out: their {wanted.quantity} is not positive."


def _doubt(path: Path, report: Report) -> Iterator[str]:
    """Say if a check of the report has failed."""
    from wsb_engine.presentation.wording import UNRELIABLE

    if report.failed_checks:
        yield f"{path}: {UNRELIABLE} [check_failed]"


def _limit(wanted: _Wanted) -> tuple[str, float] | None:
    """Return the line above which gradient descent is unstable, if there is a learning rate."""
    if wanted.learning_rate is None:
        return None
    if wanted.quantity in _LARGEST:
        return r"$2/\eta$", 2 / wanted.learning_rate
    return r"$\lambda_{\max} = 2/\eta$", 1.0


def _point(report: Report, x: int, wanted: _Wanted) -> Point | None:
    """Look up the quantity of a report; None if it has none."""
    from service.policies.metrics import measure
    from wsb_engine.presentation.figures import Point
    from wsb_engine.presentation.numbers import rounded

    if wanted.quantity == LAMBDA_MAX:
        closest = report.lambda_max
        if closest is None:
            return None
        return Point(x, closest.interval.lower, closest.interval.upper, is_bound=closest.source != "enclosure")
    found = measure(report, wanted.quantity, wanted.learning_rate)
    return None if found is None else Point(x, rounded(found.low), rounded(found.high))


def _names(paths: Sequence[Path]) -> list[str]:
    """Name the reports by the parts in which their paths differ."""
    parts = [list(path.with_suffix("").parts) for path in paths]
    for place in (0, -1):
        while all(len(each) > 1 for each in parts) and len({each[place] for each in parts}) == 1:
            for each in parts:
                del each[place]
    return ["/".join(each) for each in parts]


def _by_step(names: Sequence[str], points: Sequence[Point | None]) -> tuple[list[Curve], bool]:
    """Return a curve for each series of steps, and True; or all reports side by side, if names have no steps."""
    from wsb_engine.presentation.figures import Curve, Point

    found = [_STEP.fullmatch(name) for name in names]
    series: dict[str, dict[int, Point | None]] = {}
    for match, point in zip(found, points, strict=True):
        if match is not None:
            before, step, after = match.groups()
            placed = None if point is None else Point(float(step), *point[1:])
            series.setdefault(f"{before}{after}".strip("-_./ "), {})[int(step)] = placed
    has_steps = sum(map(len, series.values())) == len(names) and max(map(len, series.values()), default=0) > 1
    if not has_steps:
        return [Curve("", [point for point in points if point is not None])], False
    curves = [
        Curve(label if len(series) > 1 else "", [point for _, point in sorted(steps.items()) if point is not None])
        for label, steps in series.items()
    ]
    return curves, True
