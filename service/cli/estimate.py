"""Words for what an analysis will cost."""

from __future__ import annotations

from wsb_engine.costs import Estimate
from wsb_engine.presentation.numbers import amount, duration


def described(estimate: Estimate) -> str:
    """Return a table of the phases, their total, what is assumed and what would be left out."""
    rows = [
        ("phase", "operations", "memory", "time"),
        *(
            (phase.name, f"{phase.operations:.1e}", amount(phase.bytes), duration(phase.seconds))
            for phase in estimate.phases
        ),
        ("total", f"{estimate.operations:.1e}", amount(estimate.bytes), duration(estimate.seconds)),
    ]
    lines = [f"{name:<12}{operations:>12}{memory:>12}{time:>12}" for name, operations, memory, time in rows]
    lines.append(
        f"on {estimate.device} in {estimate.dtype} at {estimate.rate:.1e} operations per second, for an enclosure of "
        f"{estimate.products} products; start-up, reading files and short operators are not counted"
    )
    return "\n".join([*lines, *(f"left out: {each}" for each in estimate.left_out)])
