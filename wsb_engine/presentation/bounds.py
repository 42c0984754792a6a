"""The words for each bound that a report lists by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from wsb_engine.presentation.text import clean, name
from wsb_engine.report import NamedBound, Report

MAX_BOUNDS = 10
"""Bounds of a report that are shown."""


class BoundWords(NamedTuple):
    title: str
    """Goes with ``bounds`` or ``, λ_max``."""
    basis: str
    """Goes after a comma: what the bound follows from."""


WORDS = {
    "wolkowicz_styan": BoundWords("Wolkowicz-Styan", "from tr H and ‖H‖_F alone"),
    "frobenius_norm": BoundWords("Frobenius norm", "from ‖H‖_F and Ritz values"),
}
"""By name of a bound."""


def words(bound: str) -> BoundWords:
    """Look up a bound's words; a bound that this version does not know goes by its name."""
    return WORDS.get(bound) or BoundWords(name(bound), "as the report lists it")


def shown(report: Report) -> Sequence[NamedBound]:
    """Return the bounds to show."""
    return report.named_bounds[:MAX_BOUNDS]


def assumptions(bound: NamedBound) -> str:
    """Return what a bound assumes, as one line of text."""
    return clean(" ".join(bound.assumptions))
