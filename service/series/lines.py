"""A quantity of series over common axes: the numbers to draw, and the text for readers who don't see them."""

from __future__ import annotations

from collections.abc import Sequence

from service.rendering import overlay
from service.rendering.overlay import Axes, Point
from service.rendering.svg import Caption
from service.series.checkpoints import Checkpoint, Series
from service.series.drawing import MAX_TITLE, Drawing, Plot, plural
from service.series.quantities import TITLES, Quantity, Value
from wsb_engine.presentation.numbers import interval, number
from wsb_engine.presentation.text import name as cleaned
from wsb_engine.report import Interval

_NEAR = 2.0
_NEAR_LOG = 1e3
"""How many times the largest number 2/η may be for it to be drawn: farther away it would flatten the curves."""

_STABILITY: tuple[Quantity, ...] = ("lambda_max", "eigenvalues")
"""Quantities that 2/η limits."""


def lines_of(series: Sequence[Series], quantity: Quantity, drawing: Drawing) -> Plot:
    """Draw a quantity of all series over common axes."""
    drawing = _possible(series, drawing)
    runs = [_run(one, quantity, drawing, style) for style, one in enumerate(series, start=1)]
    limit, limits_note = _common_limit(series, quantity, drawing)
    if limit is None and not limits_note and quantity in _STABILITY:
        runs = [_limited(run, one, drawing) for run, one in zip(runs, series, strict=True)]
    axes = Axes(x_label(series, drawing), TITLES[quantity], "x" in drawing.log, "y" in drawing.log)
    caption = Caption(f"series-{quantity}", f"{TITLES[quantity]} along {_names(series)}", _said(series, quantity))
    drawn = overlay.overlay(runs, axes, caption=caption, limit=limit)
    notes = _lacking(series, quantity) + ([limits_note] if limits_note and drawn.svg is not None else [])
    if drawing.across == "position":
        notes += _unplaced(series, quantity)
    if drawn.left_out:
        notes.append(
            f"Left out, because they are not positive and a logarithmic axis has no place for them:"
            f" {number(drawn.left_out)} {plural('number', drawn.left_out)}."
        )
    if drawn.is_thinned:
        notes.append(f"There are more than {number(overlay.MAX_DRAWN)} points; evenly spread ones are drawn.")
    return Plot(drawn.svg, notes)


def x_label(series: Sequence[Series], drawing: Drawing) -> str:
    """Name the horizontal axis."""
    if drawing.across == "order":
        return "checkpoint, in order"
    return " or ".join(sorted({each.kind for one in series for each in one.checkpoints if each.number is not None}))


def _possible(series: Sequence[Series], drawing: Drawing) -> Drawing:
    """Use the order if no checkpoint has a number as its position."""
    has_numbers = any(each.number is not None for one in series for each in one.checkpoints)
    return drawing if has_numbers else Drawing("order", drawing.log)


def _across(rank: int, checkpoint: Checkpoint, drawing: Drawing) -> float | None:
    return rank + 1.0 if drawing.across == "order" else checkpoint.number


def values_of(checkpoint: Checkpoint, quantity: Quantity) -> Sequence[Value]:
    """Return what a checkpoint says about a quantity: one value, several eigenvalues, or nothing."""
    if quantity == "eigenvalues":
        return checkpoint.eigenvalues
    return [checkpoint.scalars[quantity]] if quantity in checkpoint.scalars else []


def _run(series: Series, quantity: Quantity, drawing: Drawing, style: int) -> overlay.Run:
    ranks = max((len(values_of(each, quantity)) for each in series.checkpoints), default=0)
    lines: list[list[Point | None]] = [[] for _ in range(ranks)]
    for i, checkpoint in enumerate(series.checkpoints):
        x, found = _across(i, checkpoint, drawing), values_of(checkpoint, quantity)
        if x is None:
            continue
        for rank, drawn in enumerate(lines):
            value = found[rank] if rank < len(found) else None
            doubtful = not checkpoint.reliable
            drawn.append(None if value is None else Point(x, value.value, value.lower, value.upper, doubtful))
    return overlay.Run(cleaned(series.title, MAX_TITLE), style, lines)


def _limited(run: overlay.Run, series: Series, drawing: Drawing) -> overlay.Run:
    """Add 2/η along the run, as far as it is near enough to the numbers."""
    highest = max((end for line in run.lines for point in line if point for end in point.ends()), default=0.0)
    most = highest * (_NEAR_LOG if "y" in drawing.log else _NEAR)
    limits = [
        (x, limit)
        for i, each in enumerate(series.checkpoints)
        if (x := _across(i, each, drawing)) is not None and (limit := each.stability_limit) is not None
    ]
    return overlay.Run(run.label, run.style, run.lines, [pair for pair in limits if pair[1] <= most])


def _common_limit(series: Sequence[Series], quantity: Quantity, drawing: Drawing) -> tuple[float | None, str]:
    """Return 2/η if all series have the same learning rate and it is near, or what to say of one that is far."""
    limits = {one.stability_limit for one in series if one.checkpoints}
    limit = limits.pop() if len(limits) == 1 else None
    if limit is None or quantity not in _STABILITY:
        return None, ""
    ends = [
        end
        for one in series
        for each in one.checkpoints
        for value in values_of(each, quantity)
        for end in (value.value, value.upper)
        if end is not None
    ]
    highest = max(ends, default=0.0)
    if limit <= highest * (_NEAR_LOG if "y" in drawing.log else _NEAR):
        return limit, ""
    return None, f"2/η = {number(limit)} is far above all of these numbers, and not drawn."


def _lacking(series: Sequence[Series], quantity: Quantity) -> list[str]:
    """Name the series without this quantity, if others have it."""
    lacking = [one for one in series if not any(values_of(each, quantity) for each in one.checkpoints)]
    if not lacking or len(lacking) == len(series):
        return []
    return [f"No report of {_names(lacking)} has it."]


def _unplaced(series: Sequence[Series], quantity: Quantity) -> list[str]:
    """Say how many checkpoints have the quantity and no place on the axis of positions."""
    count = sum(each.number is None and bool(values_of(each, quantity)) for one in series for each in one.checkpoints)
    kinds = {each.kind for one in series for each in one.checkpoints if each.number is not None}
    notes = []
    if count:
        notes.append(
            f"Not drawn, because they have no number as epoch or step: {number(count)} {plural('checkpoint', count)}."
            " Choose the order as the horizontal axis to draw all."
        )
    if len(kinds) > 1:
        notes.append("Some checkpoints are numbered by epoch and others by step, on the same axis.")
    return notes


def _said(series: Sequence[Series], quantity: Quantity) -> str:
    told = []
    for one in series:
        known = [(each.position, found[0]) for each in one.checkpoints if (found := values_of(each, quantity))]
        if not known:
            told.append(f"{cleaned(one.title, MAX_TITLE)}: nothing")
            continue
        (start, first), (end, last) = known[0], known[-1]
        told.append(
            f"{cleaned(one.title, MAX_TITLE)}: {_written(first)} at {cleaned(start, MAX_TITLE)} to {_written(last)} at"
            f" {cleaned(end, MAX_TITLE)}, {number(len(known))} {plural('checkpoint', len(known))}"
        )
    return "; ".join(told) + "."


def _written(value: Value) -> str:
    if value.lower is None or value.upper is None:
        return number(value.value)
    ends = Interval(lower=value.lower, upper=value.upper)
    return f"bound {interval(ends)}" if value.is_bound else interval(ends)


def _names(series: Sequence[Series]) -> str:
    shown = [cleaned(one.title, MAX_TITLE) for one in series]
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
