"""One cell of the table of accepted exports."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from wsb_engine.report import Interval

HOLDS, FAILS, REFUSED, WRONG = "holds", "exporter fails", "refused", "wrong"
_RANKS = (HOLDS, FAILS, REFUSED, WRONG)
"""From the best outcome to the worst."""

RELATIVE = 1e-6
"""How far logits, and either end of the enclosure of λ_max, may lie from the right values."""


@dataclass(frozen=True)
class Cell:
    """What was observed of one file."""

    outcome: str
    parameters: int | None = None
    note: str = ""
    """The exporter's or the engine's own words, what is wrong, or the difference that is explained."""

    def worse_than(self, other: Cell) -> bool:
        return _RANKS.index(self.outcome) > _RANKS.index(other.outcome)


def disagreement(interval: Interval, truth: float, error: float) -> list[str]:
    """Say what is wrong with an enclosure of a value that is known up to an error."""
    wrong = []
    if not interval.lower - error <= truth <= interval.upper + error:
        wrong.append(f"λ_max = {truth!r} ± {error:.1e}, not in [{interval.lower!r}, {interval.upper!r}]")
    if not max(truth - interval.lower, interval.upper - truth) <= RELATIVE * abs(truth):
        wrong.append(f"wide: λ_max = {truth!r}, [{interval.lower!r}, {interval.upper!r}]")
    return wrong


def listed(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "") or "none"


def sentence(error: BaseException) -> str:
    """The innermost error's name and first line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]
