"""What a running analysis tells its caller. Raising in the callback stops the analysis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Progress:
    phase: str
    """load, moments, enclosure, spectrum, …"""
    fraction: float
    """Of this phase, 0 to 1."""
    hessian_vector_products: int = 0
    one_thread: bool = False
    """Whether all that is left uses one thread of a CPU."""


ProgressCallback = Callable[[Progress], None]
