"""What the first sentence about a report compares λ_max with, if there is a verdict."""

from __future__ import annotations

from service.policies.schemas import Verdict
from wsb_engine.presentation.headline import Reference, Yardstick
from wsb_engine.report import Report


def yardstick_of(
    learning_rate: float | None, baseline: Report | None, verdict: Verdict | None, earlier: Reference | None = None
) -> Yardstick:
    """Choose what to compare with: the baseline if the verdict found it comparable, or else the earlier analysis."""
    is_comparable = verdict is not None and verdict.baseline is not None and verdict.baseline.compatible
    if baseline is None or baseline.lambda_max is None or baseline.failed_checks or not is_comparable:
        return Yardstick(learning_rate, earlier)
    return Yardstick(learning_rate, Reference("the baseline", baseline.lambda_max.interval))
