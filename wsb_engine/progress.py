"""How far a running analysis is, as its caller's callback learns it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from wsb_engine.costs import Estimate


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far an analysis is; passed to the callback, which may raise to stop the analysis.

    Examples:
        >>> import wsb
        >>> classifier, batch, seen = wsb.load_model("model.onnx"), wsb.load_batch("batch.npz"), []
        >>> report = wsb.analyze(classifier, batch, progress=seen.append)
        >>> seen[0].phase, seen[-1].fraction
        ('setup', 1.0)
    """

    phase: str
    """Name of the phase: setup, loss, moments, enclosure, spectrum, …"""
    fraction: float
    """Fraction of the phase that is done, from 0 to 1."""
    hessian_vector_products: int = 0
    """Hessian-vector products of the phase so far."""
    estimate: Estimate | None = None
    """What the whole analysis is expected to cost; None before its files are read."""
    one_thread: bool = False
    """True if the rest of the analysis uses one thread of a CPU."""


ProgressCallback = Callable[[Progress], None]
