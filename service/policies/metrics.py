"""Numbers of a report by path, each with what is certain about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from wsb_engine.bounds import registry
from wsb_engine.presentation.numbers import exact, rounded
from wsb_engine.report import CertifiedInterval, Interval, NamedBound, Report

STABILITY_RATIO = "stability_ratio"
"""λ_max × learning rate / 2; gradient descent is stable on the quadratic model below 1."""

BOUNDS_LIST = "bounds_list."
"""Begins the path of a number of a bound, which goes on with the bound's name."""

_LONGEST_WORD = 100
"""Characters of a word that suggestions are searched for; with a megabyte, that takes a second."""
_ENDS = ("lower", "upper")
_FROM_MOMENTS = ("moments", "bounds", "bounds_list", "layers", "blocks", "orthogonality")
"""Parts of a report that exist only with moments."""

Eigenvalue = Literal["lambda_max", "lambda_min"]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A number of a report, known exactly (``low == high``) or between two ends."""

    value: float | None
    """The number at the path; None for an interval as a whole."""
    low: Fraction
    high: Fraction
    enclosed: bool = False
    """True if the number is only known to lie between ``low`` and ``high``."""


def check_metric(metric: str) -> None:
    """Check that a report can have a number at this path.

    Raises:
        ValueError: a part of the path is wrong; the message lists what exists there, and suggests the nearest path.
    """
    try:
        _check(metric)
    except ValueError as error:
        raise ValueError(f"{error}{_suggestion(metric)}") from error


def _check(metric: str) -> None:
    if metric == STABILITY_RATIO:
        return
    kind: Any = Report
    parts = metric.split(".")
    for index, part in enumerate(parts):
        kind = _step(kind, part, ".".join(parts[:index]))
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        if not set(_ENDS) <= set(kind.model_fields):
            raise ValueError(f"{metric} is no number; it has {', '.join(kind.model_fields)}")
    elif kind not in (int, float, bool):
        raise ValueError(f"{metric} is no number")


def _suggestion(metric: str) -> str:
    """Suggest a path that ends like the one given, or else one that is written like it."""
    within = [path for path in known_metrics() if metric and path.endswith(f".{metric}")]
    return f"; did you mean '{min(within, key=_rank)}'?" if within else did_you_mean(metric, known_metrics())


def _rank(path: str) -> tuple[bool, int]:
    """Rank paths with the same end: the enclosure of H before those of its parts, then the shortest."""
    return not about_enclosure(path), len(path)


@cache
def known_metrics() -> tuple[str, ...]:
    """List the paths of numbers that a report can have; of lists, the first entry, and of seconds, the total."""
    return (STABILITY_RATIO, *_paths(Report, ""))


def _paths(kind: Any, path: str) -> Iterator[str]:
    below = f"{path}." if path else ""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        if set(_ENDS) <= set(kind.model_fields):
            yield path
        for name, field in kind.model_fields.items():
            yield from _paths(_bare(field.annotation), f"{below}{name}")
    elif kind == list[NamedBound]:
        for bound in registry.BOUNDS:
            yield from _paths(NamedBound, f"{below}{bound.name}")
    elif get_origin(kind) is list:
        yield from _paths(_bare(get_args(kind)[0]), f"{below}0")
    elif get_origin(kind) is dict and path == "timings":
        yield f"{below}total"
    elif kind in (int, float, bool):
        yield path


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a suggestion to append to a message, or an empty string."""
    near = difflib.get_close_matches(word[:_LONGEST_WORD], list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def measure(report: Report, metric: str, learning_rate: float | None = None) -> Measurement | None:
    """Look up the number at a path; None if the report has none.

    Either end of an enclosure stands for the eigenvalue, which lies between the two.

    Args:
        report: The report.
        metric: Path that ``check_metric`` accepts.
        learning_rate: Learning rate for ``stability_ratio``.
    """
    if metric == STABILITY_RATIO:
        return None if report.lambda_max is None else measured(metric, report.lambda_max.interval, learning_rate)
    owner: Any = None
    found: Any = report
    parts = metric.split(".")
    for part in parts:
        owner, found = found, _child(found, part)
        if found is None:
            return None
    if isinstance(owner, CertifiedInterval) and parts[-1] in _ENDS:
        return measured(metric, owner)
    if isinstance(found, CertifiedInterval | Interval):
        return measured(metric, found)
    return Measurement(value=float(found), low=exact(found), high=exact(found))


def measured(
    metric: str, interval: CertifiedInterval | Interval, learning_rate: float | None = None
) -> Measurement | None:
    """Return what an interval says about the number; None for ``stability_ratio`` without a learning rate.

    Args:
        metric: Path to the interval or to an end of it, or ``stability_ratio``.
        interval: The interval; for ``stability_ratio`` that of λ_max.
        learning_rate: Learning rate for ``stability_ratio``.
    """
    low, high = exact(interval.lower), exact(interval.upper)
    if metric == STABILITY_RATIO:
        if learning_rate is None:
            return None
        factor = exact(learning_rate) / 2
        return Measurement(value=rounded(factor * high), low=factor * low, high=factor * high, enclosed=True)
    end = metric.rpartition(".")[2]
    return Measurement(value=getattr(interval, end) if end in _ENDS else None, low=low, high=high, enclosed=True)


def about_enclosure(metric: str) -> bool:
    """Return whether the number depends on the enclosure, as the distribution's and stable steps of descent do."""
    return metric == STABILITY_RATIO or metric.partition(".")[0] in ("enclosure", "optimizer", "population")


def about_moments(metric: str) -> bool:
    """Return whether a report has the number only if it has moments."""
    parts = metric.split(".")
    # λ_max of a layer is certified by products, with or without moments.
    return parts[0] in _FROM_MOMENTS and not (parts[0] == "layers" and "lambda_max" in parts)


def eigenvalue(metric: str) -> Eigenvalue | None:
    """Return which eigenvalue a number of the enclosure stands for; None if it is about something else."""
    if metric == STABILITY_RATIO:
        return "lambda_max"
    names = (metric, metric.rpartition(".")[0] if metric.rpartition(".")[2] in _ENDS else "")
    known: tuple[Eigenvalue, ...] = get_args(Eigenvalue)
    return next((name for name in known if f"enclosure.{name}" in names), None)


def _child(value: Any, part: str) -> Any:
    if isinstance(value, Report) and part == "bounds_list":
        return {bound.name: bound for bound in reversed(value.named_bounds)}
    if isinstance(value, BaseModel):
        return getattr(value, part)
    if isinstance(value, dict):
        return value.get(part)
    return value[int(part)] if int(part) < len(value) else None


def _step(kind: Any, part: str, path: str) -> Any:
    """Return the type of a part of this type."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        if part not in kind.model_fields:
            where = path or "the report"
            raise ValueError(f"{where} has no '{part[:80]}', but {', '.join(kind.model_fields)}")
        return _bare(kind.model_fields[part].annotation)
    if get_origin(kind) is dict:
        return _bare(get_args(kind)[1])
    if kind == list[NamedBound]:
        names = [bound.name for bound in registry.BOUNDS]
        if part not in names:
            raise ValueError(f"{path} has no '{part[:80]}', but {', '.join(names)}")
        return NamedBound
    if get_origin(kind) is list:
        if not (part.isdecimal() and part.isascii() and len(part) <= 9):
            raise ValueError(f"{path} is a list: its parts are 0, 1, …")
        return _bare(get_args(kind)[0])
    raise ValueError(f"{path} has no parts")


def _bare(kind: Any) -> Any:
    """Return a type without None as an alternative and without constraints."""
    if get_origin(kind) in (Union, UnionType):
        return _bare(next(part for part in get_args(kind) if part is not type(None)))
    return _bare(get_args(kind)[0]) if get_origin(kind) is Annotated else kind
