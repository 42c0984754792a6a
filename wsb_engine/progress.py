"""How far a running analysis is, as its caller's callbacks learn it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from wsb_engine.costs import Estimate
from wsb_engine.report import CertifiedInterval


class InterimEnclosure(BaseModel):
    """What is certified about both ends of the spectrum so far; it contains what later products certify."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    lambda_max: CertifiedInterval
    lambda_min: CertifiedInterval
    hessian_vector_products: int = Field(ge=0, le=10**9)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for end in (self.lambda_max, self.lambda_min):
            if end.lower > end.upper or (end.relative_gap or 0.0) < 0:
                raise ValueError("an end is no interval")
        return self

    def within(self, earlier: InterimEnclosure | None) -> InterimEnclosure:
        """Return the intersection with an earlier enclosure of the same run; all of them hold together."""
        if earlier is None:
            return self
        ends = {
            name: _intersection(getattr(self, name), getattr(earlier, name)) for name in ("lambda_max", "lambda_min")
        }
        return self.model_copy(update=ends)


def _intersection(end: CertifiedInterval, earlier: CertifiedInterval) -> CertifiedInterval:
    lower, upper = max(end.lower, earlier.lower), min(end.upper, earlier.upper)
    if (lower, upper) == (end.lower, end.upper) or lower > upper:
        return end
    chance = max(end.failure_probability or 0.0, earlier.failure_probability or 0.0)
    gap = end.relative_gap if end.relative_gap is None else end.relative_gap * (upper - lower) / (end.upper - end.lower)
    return CertifiedInterval(
        lower=lower,
        upper=upper,
        relative_gap=gap,
        kind="probabilistic" if chance else "deterministic",
        failure_probability=chance or None,
    )


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far an analysis is; passed to the callback, which may raise to stop the analysis.

    Examples:
        >>> import wsb
        >>> classifier, batch, seen = wsb.load_model("model.onnx"), wsb.load_batch("batch.npz"), []
        >>> report = wsb.analyze(classifier, batch, progress=seen.append)
        >>> seen[0].phase, seen[-1].fraction
        ('setup', 1.0)
        >>> seen[-1].enclosure.lambda_max.upper <= report.enclosure.lambda_max.upper
        True
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
    enclosure: InterimEnclosure | None = None
    """What is certified so far; None as long as that says nothing."""


ProgressCallback = Callable[[Progress], None]
Decided = Callable[[InterimEnclosure], bool]
"""Returns True if an enclosure decides all that its caller wants to know."""
