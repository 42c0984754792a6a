"""What the first sentence about an analysis compares λ_max with."""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncSession

from service.analyses import repository
from service.analyses.positions import position
from service.analyses.table import AnalysisRow
from service.analyses.verdicts import stored_policy_and_baseline
from service.policies import Policy, Verdict
from service.rendering import yardstick
from wsb_engine.presentation.headline import Reference, Yardstick
from wsb_engine.presentation.text import name as shown
from wsb_engine.report import Interval, Report

_RUN, _BRANCH = "run", "branch"
"""Labels that make a series: checkpoints of a training run, or checks of a branch."""


async def yardstick_of(session: AsyncSession, row: AnalysisRow) -> Yardstick:
    """Return the learning rate, the comparable baseline or else the last analysis of the same series."""
    policy, baseline = await stored_policy_and_baseline(session, row)
    rate = row.options.get("learning_rate")
    rate = _policy_rate(policy) if rate is None else rate
    if rate is not None:
        return Yardstick(rate)
    verdict = None if row.verdict is None else Verdict.model_validate(row.verdict)
    report = None if baseline is None or verdict is None else await asyncio.to_thread(_report, baseline)
    return yardstick.yardstick_of(None, report, verdict, await _earlier(session, row))


def _policy_rate(policy: dict[str, Any] | None) -> float | None:
    try:
        return None if policy is None else Policy.model_validate(policy).learning_rate
    except ValidationError:  # stored by an older version
        return None


def _report(stored: dict[str, Any]) -> Report | None:
    try:
        return Report.model_validate(stored)
    except ValidationError:
        return None


async def _earlier(session: AsyncSession, row: AnalysisRow) -> Reference | None:
    """Return λ_max of the last analysis of the same run, or else of the same branch and name."""
    labels = row.labels
    if _RUN in labels:
        found = await repository.earlier(session, row, AnalysisRow.labels.contains({_RUN: labels[_RUN]}))
        if found is not None:
            return _reference(found, "run")
    if _BRANCH in labels:
        same = AnalysisRow.labels.contains({_BRANCH: labels[_BRANCH]})
        names = (
            AnalysisRow.name.is_not_distinct_from(row.name),
            AnalysisRow.model_name.is_not_distinct_from(row.model_name),
        )
        found = await repository.earlier(session, row, same, *names)
        if found is not None:
            return _reference(found, "branch")
    return None


def _reference(found: AnalysisRow, series: str) -> Reference | None:
    lower, upper = found.lambda_max_lower, found.lambda_max_upper
    if lower is None or upper is None:
        return None
    place = position(found.labels)
    what = f"{place[0]} {shown(place[1])}" if place else f"the last analysis ({str(found.id)[:8]})"
    return Reference(f"{what} of the same {series}", Interval(lower=lower, upper=upper))
