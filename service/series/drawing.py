"""How to draw series, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from markupsafe import Markup

Axis = Literal["x", "y"]
Across = Literal["position", "order"]
AXES: tuple[Axis, ...] = get_args(Axis)

MAX_TITLE = 60
"""Most characters of the name of a run in a plot."""


@dataclass(frozen=True)
class Drawing:
    """How to draw."""

    across: Across = "position"
    """What is along the horizontal axis: the number that positions a checkpoint, or its rank in the order."""
    log: frozenset[Axis] = frozenset()
    """Logarithmic axes."""


class Plot(NamedTuple):
    """A plot with what to say about it."""

    svg: Markup | None
    """None if there is nothing to draw."""
    notes: list[str]
    """Sentences: what is left out, and why."""


def plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"
