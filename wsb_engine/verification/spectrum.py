"""The spectrum against moments, bounds and enclosures, and the moments of its density, from the report alone."""

from __future__ import annotations

import math
from itertools import pairwise

from wsb_engine.report import Density, Report, SpectrumResult
from wsb_engine.verification.findings import Ledger
from wsb_engine.verification.moments import SMALLEST_SQUARE
from wsb_engine.verification.theorems import UNIT

QUADRATURE = 1e-8
"""Share of a density that lies beyond its grid, with room for rounding."""
SPREAD = 140.0
"""Standard deviations of one node across the grid: 128 across the nodes, and 6 beyond each of the outermost."""
NARROW = 1e-7
"""Standard deviation of a node relative to the eigenvalues, below which floats do not resolve the grid."""
UNLIKELY = 50.0
"""Standard errors, over 8 starts, that a mean is off with a probability below 1e-9."""


def check_spectrum(report: Report, ledger: Ledger) -> None:
    """Check order, sums and intervals of the eigenvalues, and the density's moments."""
    spectrum = report.spectrum
    if spectrum is None:
        return
    values = spectrum.eigenvalues
    first = next((i for i, (a, b) in enumerate(pairwise(values)) if a < b), None)
    ledger.refute("spectrum.eigenvalues", first is None, "descending order")
    if spectrum.method == "dense":
        if ledger.refute(
            "spectrum.eigenvalues", len(values) == report.model.parameters.count, "one for each parameter", len(values)
        ):
            _check_sums(report, values, ledger)
    else:
        _check_largest(spectrum, ledger)
    _refute_ends(report, spectrum, ledger)
    if spectrum.density is not None:
        _check_density(report, spectrum.density, ledger)


def _slack(report: Report) -> float:
    """Return how far rounding may move an eigenvalue."""
    if report.evidence is None:
        return 1e-6 * max(map(abs, report.spectrum.eigenvalues if report.spectrum else [0.0]), default=0.0)
    return report.evidence.rounding.operator


def _check_sums(report: Report, values: list[float], ledger: Ledger) -> None:
    """Σ λ = t and Σ λ² = q, up to rounding of H, of sums and of the eigensolver."""
    moments, P = report.moments, len(values)
    if moments is None or report.evidence is None or moments.frobenius_squared < SMALLEST_SQUARE:
        return
    terms = report.evidence.rounding
    largest = max(map(abs, values))
    norm = largest * math.sqrt(math.fsum((value / largest) ** 2 for value in values)) if largest else 0.0
    root, solver = math.sqrt(moments.frobenius_squared), 16 * P * UNIT * norm
    if moments.exact:
        spread = math.sqrt(P) * (2 * terms.operator + terms.relative_square_error * root + terms.trace_error)
        tolerance = spread + math.sqrt(P) * solver
        ledger.near(
            "spectrum.eigenvalues.sum", math.fsum(values), moments.trace, tolerance, "eigenvalues add up to the trace"
        )
        tolerance = 2 * terms.operator + solver + (terms.relative_square_error * root if root else 0.0)
        how = "squares of the eigenvalues add up to ‖H‖_F²"
        ledger.near("spectrum.eigenvalues.norm", norm, root, tolerance + math.sqrt(terms.square_error), how)
    else:
        how = "squares of the eigenvalues are below the bound on ‖H‖_F²"
        ledger.refute("spectrum.eigenvalues.norm", norm <= root + 2 * terms.operator + solver, how, norm, root)


def _check_largest(spectrum: SpectrumResult, ledger: Ledger) -> None:
    values = spectrum.eigenvalues
    for name in ("residuals", "upper_bounds"):
        found = getattr(spectrum, name)
        ledger.refute(f"spectrum.{name}", found is None or len(found) == len(values), "one for each eigenvalue")
    ledger.refute("spectrum.residuals", all(each >= 0 for each in spectrum.residuals or []), "norms are not negative")


def _refute_ends(report: Report, spectrum: SpectrumResult, ledger: Ledger) -> None:
    """No eigenvalue lies beyond what is certified about both ends."""
    values, slack = spectrum.eigenvalues, _slack(report)
    if not values:
        return
    slack += 1e3 * len(values) * UNIT * max(map(abs, values))
    uppers = [bound.lambda_max.upper for bound in report.named_bounds]
    lowers = [bound.lambda_min.lower for bound in report.named_bounds]
    if report.enclosure is not None:
        uppers.append(report.enclosure.lambda_max.upper)
        lowers.append(report.enclosure.lambda_min.lower)
    how = "no eigenvalue lies beyond a bound"
    if uppers:
        ledger.refute("spectrum.eigenvalues.0", values[0] <= min(uppers) + slack, how, values[0], min(uppers))
        ledger.refute(f"spectrum.eigenvalues.{len(values) - 1}", values[-1] >= max(lowers) - slack, how, values[-1])
    if report.enclosure is not None and spectrum.method == "dense":
        for place, value, end in (
            ("0", values[0], report.enclosure.lambda_max),
            (str(len(values) - 1), values[-1], report.enclosure.lambda_min),
        ):
            inside = end.lower - slack <= value <= end.upper + slack
            ledger.refute(f"spectrum.eigenvalues.{place}", inside, "its enclosure", value)


def _check_density(report: Report, density: Density, ledger: Ledger) -> None:
    """The density has mass 1, and the moments that are stated beside it."""
    grid, values = density.grid, density.values
    if not ledger.refute("spectrum.density.values", len(grid) == len(values) >= 2, "one value for each of the grid"):
        return
    if not ledger.refute("spectrum.density.values", min(values) >= 0, "a density is not negative", min(values)):
        return
    largest, span = max(map(abs, grid)), grid[-1] - grid[0]
    step = span / (len(grid) - 1)
    even = [grid[0] + index * step for index in range(len(grid))]
    ledger.each("spectrum.density.grid", grid, even, 1e-12 * largest, "evenly spaced")
    if density.sigma <= NARROW * largest:
        ledger.skip("spectrum.density.values", "all eigenvalues are so close that the grid does not resolve them")
        return
    ledger.near("spectrum.density.sigma", density.sigma, span / SPREAD, 1e-10 * span, "share of the grid's span")
    scale = max(largest, 5e-324)
    relative = [x / scale for x in grid]
    mass = math.fsum(values) * step
    first = math.fsum(x * v for x, v in zip(relative, values, strict=True)) * step
    second = math.fsum(x * x * v for x, v in zip(relative, values, strict=True)) * step
    ledger.near("spectrum.density.values.mass", mass, 1.0, QUADRATURE, "the density integrates to 1")
    ledger.near("spectrum.density.mean", density.mean, first * scale, QUADRATURE * scale, "mean of the density")
    squared = (second - (density.sigma / scale) ** 2) * scale * scale
    tolerance = QUADRATURE * scale * scale
    how = "second moment of the density, less σ²"
    ledger.near("spectrum.density.second_moment", density.second_moment, squared, tolerance, how)
    moments, P = report.moments, report.model.parameters.count
    if moments is not None and moments.exact and P:
        wide = UNLIKELY * density.mean_error + QUADRATURE * scale
        how = "t/P within many standard errors"
        ledger.refute("spectrum.density.mean", abs(density.mean - moments.trace / P) <= wide, how, density.mean)
