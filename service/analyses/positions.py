"""Where an analysis stands in its run."""

from __future__ import annotations

from collections.abc import Mapping

POSITIONS = ("epoch", "step")
"""Labels that position a checkpoint in its run; the first that an analysis has counts."""


def position(labels: Mapping[str, str]) -> tuple[str, str] | None:
    """Return the label that positions an analysis, and its value; None without one."""
    return next(((name, labels[name]) for name in POSITIONS if name in labels), None)
