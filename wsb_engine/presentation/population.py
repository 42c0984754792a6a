"""The words for what a batch tells of the distribution that its rows come from."""

from __future__ import annotations

from math import ceil, floor, log10

from wsb_engine.presentation.numbers import at_most, ends, number, percent
from wsb_engine.report import Population, Report

CAVEAT = (
    "That holds for independent rows that the parameters have not seen; of rows that were trained on it says nothing "
    "about the distribution."
)


def advice(report: Report) -> str:
    """Say what the batch tells of the distribution, and how many rows would tell more; empty if nobody asked."""
    found = report.population
    if found is None:
        return ""
    told = "" if found.factor is None else f": this batch tells it within a factor of {at_most(found.factor, 3)}"
    rows = f"about {_rounded(found.rows_for_ten_percent):,} rows would tell it within 10 %"
    return (
        f"The distribution's λ_max is in {_interval(found)} at {percent(found.confidence)} confidence (asymptotic)"
        f"{told}; {rows}."
    )


def quantities(report: Report) -> list[tuple[str, str, str]]:
    """List label, value and note of each number about the distribution."""
    found = report.population
    if found is None:
        return []
    share = found.largest_share
    return [
        (
            "λ_max of the distribution",
            _interval(found),
            f"{found.kind}: at {percent(found.confidence)} confidence in the limit of many rows that the parameters "
            f"have not seen; from {number(found.rows)} rows",
        ),
        ("Estimate of it", f"about {number(found.estimate, 3)}", "the interval is not centred on it"),
        (
            "Curvature of one row",
            number(found.in_sample.mean, 3),
            f"along the eigenvector of λ_max: mean; standard deviation {number(found.in_sample.standard_deviation, 3)}"
            f", skewness {number(found.in_sample.skewness, 3)}; row {share.row} holds {percent(share.share)}",
        ),
    ]


def _interval(found: Population) -> str:
    lower, upper = ends(found.lambda_max, fewest=3)
    return f"[{lower}, {upper}]"


def _rounded(rows: int) -> int:
    """Round up to two digits: the number itself is an estimate."""
    unit = 10 ** max(0, floor(log10(rows)) - 1) if rows else 1
    return ceil(rows / unit) * unit
