"""The plots of a report: the numbers that go into each, and the text for readers who don't see it."""

from __future__ import annotations

import heapq
import re
from collections.abc import Sequence

from markupsafe import Markup

from service.policies.schemas import Verdict
from service.rendering.plots import LabelledInterval, Limit, Line, bars, curve, heat_map, lines, number_line, stem
from service.rendering.svg import Caption
from service.rendering.wording import condition
from wsb_engine.presentation import bounds
from wsb_engine.presentation.numbers import interval, number, percent, width
from wsb_engine.presentation.text import name
from wsb_engine.report import CertifiedInterval, Interval, Report

MAX_LIMITS = 4
"""Most limits of a policy to draw."""
MAX_LAYERS = 40
"""Layers of the heat map; if there are more, those with the largest diagonal blocks."""
MAX_BARS = 12
"""Most samples whose shares are drawn."""

_EXTREME = re.compile(
    r"(enclosure|bounds\.wolkowicz_styan|bounds_list\.\w+)\.lambda_(max|min)(\.lower|\.upper)?|spectrum\.eigenvalues\.0"
)


def report_plots(report: Report, verdict: Verdict | None) -> dict[str, Markup]:
    """Draw every plot that the report has the numbers for, by name."""
    drawn = {
        "bounds": _bounds(report, verdict),
        "convergence": _convergence(report),
        "spectrum": _spectrum(report),
        "density": _density(report),
        "blocks": _blocks(report),
        "shares": _shares(report),
        "orthogonality": _orthogonality(report),
    }
    return {key: plot for key, plot in drawn.items() if plot is not None}


def shown_layers(report: Report) -> Sequence[int]:
    """Return the indices of the layers of the heat map, in the model's order."""
    layers = report.layers or []
    return sorted(heapq.nlargest(MAX_LAYERS, range(len(layers)), key=lambda i: layers[i].frobenius_squared or 0.0))


def _bounds(report: Report, verdict: Verdict | None) -> Markup | None:
    intervals: list[tuple[str, Interval | CertifiedInterval, int]] = []
    named = [(bounds.words(bound.name).title, bound) for bound in bounds.shown(report)]
    if report.enclosure is not None:
        intervals.append(("λ_max lies here", report.enclosure.lambda_max, 1))
    intervals += [(f"λ_max by {title}", bound.lambda_max, 3) for title, bound in named]
    if report.enclosure is not None:
        intervals.append(("λ_min lies here", report.enclosure.lambda_min, 2))
    intervals += [(f"λ_min by {title}", bound.lambda_min, 3) for title, bound in named]
    if not intervals:
        return None
    ranges = [LabelledInterval(label, found.lower, found.upper, style) for label, found, style in intervals]
    limits = [
        Limit(
            f"{rule.severity} unless {'λ_min' if 'lambda_min' in rule.metric else 'λ_max'} {condition(rule)}",
            rule.limit,
        )
        for rule in (verdict.rules if verdict is not None else [])
        if rule.limit is not None and _EXTREME.fullmatch(rule.metric)
    ][:MAX_LIMITS]
    said = [f"{label}: {interval(found)}" for label, found, _ in intervals]
    said += [f"limit: {limit.label}" for limit in limits]
    caption = Caption("bounds", "Both ends of the spectrum, enclosed and bounded", "; ".join(said) + ".")
    return number_line(ranges, limits, caption=caption)


def _convergence(report: Report) -> Markup | None:
    steps = report.enclosure.convergence if report.enclosure is not None else None
    if not steps:
        return None
    ends = [(step.products, step.lambda_max, step.lambda_min) for step in steps]
    drawn = [
        Line("λ_max", [(n, width(most)) for n, most, _ in ends], 1, "circle"),
        Line("λ_min", [(n, width(least)) for n, _, least in ends], 2, "triangle"),
    ]
    last, most, least = ends[-1]
    description = (
        f"Width of both intervals by the number of Hessian-vector products. After {last} products "
        f"{number(width(most), 2)} for λ_max and {number(width(least), 2)} for λ_min."
    )
    caption = Caption("convergence", "How the enclosure closed", description)
    return lines(drawn, x_label="Hessian-vector products", y_label="width of the interval", caption=caption)


def _spectrum(report: Report) -> Markup | None:
    if report.spectrum is None or not report.spectrum.eigenvalues:
        return None
    values = report.spectrum.eigenvalues
    negative = sum(value < 0 for value in values)
    which = "All" if report.spectrum.method == "dense" else "The largest"
    description = (
        f"Magnitudes of {number(len(values))} eigenvalues by rank on a logarithmic axis, from {number(values[0])} "
        f"to {number(values[-1])}; {number(negative)} of them negative."
    )
    return stem(values, caption=Caption("spectrum", f"{which} {number(len(values))} eigenvalues", description))


def _density(report: Report) -> Markup | None:
    density = report.spectrum.density if report.spectrum is not None else None
    if density is None or not density.grid or len(density.grid) != len(density.values):
        return None
    description = (
        f"Estimated density of all eigenvalues from {number(density.grid[0], 3)} to {number(density.grid[-1], 3)}, "
        f"on a logarithmic axis, smoothed with Gaussians of standard deviation {number(density.sigma, 3)}."
    )
    caption = Caption("density", "Density of the eigenvalues", description)
    return curve(density.grid, density.values, x_label="λ", y_label="density", caption=caption)


def _blocks(report: Report) -> Markup | None:
    count = len(report.layers or [])
    if not report.layers or not report.blocks or [len(row) for row in report.blocks] != [count] * count:
        return None
    shown = shown_layers(report)
    ranks = [i + 1 for i in shown]
    names = [name(report.layers[i].name) for i in shown]
    values = [[report.blocks[i][k] for k in shown] for i in shown]
    largest = max((value, i, k) for i, row in enumerate(values) for k, value in enumerate(row))
    description = (
        f"Frobenius norms of the blocks of the Hessian between {len(shown)} layers. The largest is "
        f"{number(largest[0])}, between {names[largest[1]]} and {names[largest[2]]}."
    )
    caption = Caption("blocks", "Curvature between layers, ‖H_lk‖_F", description)
    return heat_map(names, values, caption=caption, ranks=ranks)


def _shares(report: Report) -> Markup | None:
    shares = report.orthogonality.sample_shares[:MAX_BARS] if report.orthogonality is not None else []
    if not shares:
        return None
    description = f"The sample in row {shares[0].row} has the largest share, {percent(shares[0].share)}."
    caption = Caption("shares", "Samples with the largest shares of ‖H‖_F²", description)
    items = [(f"row {sample.row}", sample.share) for sample in shares]
    return bars(items, caption=caption, written=[percent(sample.share) for sample in shares])


def _orthogonality(report: Report) -> Markup | None:
    found = report.orthogonality
    if found is None:
        return None
    items = [("cross-sample share", found.cross_sample_share)]
    if found.coherence is not None:
        items.insert(0, ("coherence", found.coherence))
    said = ", ".join(f"{label} {number(value, 3)}" for label, value in items) + "; 1 is the end of the axis."
    return bars(items, caption=Caption("orthogonality", "How far the samples are from orthogonal", said), maximum=1.0)
