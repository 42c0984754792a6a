"""The words for where the curvature is: parts of the model and of the batch, the gradient, and the network's share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from wsb_engine.presentation.numbers import interval, number, percent
from wsb_engine.presentation.text import name
from wsb_engine.report import CertifiedInterval, LayerShare, Report

MAX_SHARES = 3
"""Layers that a sentence names."""

Row = tuple[str, str, str]
"""Label, value and note of a quantity."""


class Table(NamedTuple):
    """Entries of a list of the report, by row."""

    title: str
    heads: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    """The first cell of each names its entry; the others are numbers."""


def quantities(report: Report) -> list[Row]:
    """List what is known of the Gauss-Newton matrix, and along the gradient and the direction of negative curvature."""
    return [*_gauss_newton(report), *_alignment(report)]


def _gauss_newton(report: Report) -> list[Row]:
    found = report.gauss_newton
    if found is None:
        return []
    rows = [
        ("Gauss-Newton, λ_max(G)", enclosed(found.lambda_max), how(found.lambda_max)),
        ("Network's part, ‖H − G‖", enclosed(found.remainder), how(found.remainder)),
    ]
    if found.eigenvalues:
        largest, count = number(found.eigenvalues[0], 10), len(found.eigenvalues)
        rows.append(("Eigenvalues of G", number(count), f"the largest is {largest}; not certified"))
    return rows


def _alignment(report: Report) -> list[Row]:
    found = report.alignment
    if found is None:
        return []
    rows = []
    if found.gradient_curvature is not None:
        rows.append(("Along the gradient, gᵀHg/gᵀg", interval(found.gradient_curvature), "rounding included"))
    if found.subspace_cosine is not None:
        count = number(len(found.eigenvectors))
        rows.append(
            ("Gradient in the top subspace", number(found.subspace_cosine), f"cosine with {count} eigenvectors")
        )
    negative = found.negative_curvature
    if negative is not None:
        cosine = "" if negative.cosine is None else f", |cos| to the gradient {number(negative.cosine, 3)}"
        where = f"in {layers(negative.layers)}{cosine}"
        rows.append(("Negative curvature, xᵀHx", interval(negative.rayleigh_quotient), where))
    else:
        rows.append(("Negative curvature", "none found", "no direction is certain to curve downwards"))
    return rows


def tables(report: Report) -> list[Table]:
    """List groups, classes and eigenvectors, each as a table."""
    return [*_groups(report), *_classes(report), *_eigenvectors(report)]


def _groups(report: Report) -> list[Table]:
    rows = [(each.name, number(each.parameters), *_certified(each.lambda_max)) for each in report.groups or []]
    return [Table("Groups of parameters", ("Group", "Parameters", "λ_max", "Certainty"), rows)] if rows else []


def _classes(report: Report) -> list[Table]:
    rows = [
        (each.label or str(each.index), number(each.labels), percent(each.weight), *_certified(each.lambda_max))
        for each in report.classes or []
    ]
    return [Table("Classes", ("Class", "Labels", "Weight", "λ_max", "Certainty"), rows)] if rows else []


def _eigenvectors(report: Report) -> list[Table]:
    heads = ("Eigenvector", "Eigenvalue", "|cos| to the gradient", "At most off by", "Layers")
    rows = [
        (
            str(rank),
            number(each.eigenvalue, 10),
            number(each.cosine),
            "not certain" if each.cosine_error is None else number(each.cosine_error, 2),
            layers(each.layers),
        )
        for rank, each in enumerate([] if report.alignment is None else report.alignment.eigenvectors, 1)
    ]
    return [Table("Eigenvectors and the gradient", heads, rows)] if rows else []


def _certified(found: CertifiedInterval | None) -> tuple[str, str]:
    return enclosed(found), how(found)


def enclosed(found: CertifiedInterval | None) -> str:
    """Write a certified interval."""
    return "not known" if found is None else interval(found)


def how(found: CertifiedInterval | None) -> str:
    """Say how certain an interval is."""
    if found is None:
        return "a limit or rounding leaves nothing to say"
    chance = found.failure_probability
    return f"{found.kind}" + ("" if chance is None else f", but for a probability of {number(chance)}")


def layers(shares: Sequence[LayerShare]) -> str:
    """Name the layers with the largest shares of a direction."""
    return ", ".join(f"{name(each.name)} {percent(each.share)}" for each in shares[:MAX_SHARES])
