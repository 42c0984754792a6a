"""The verdict of an analysis that has a policy."""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from service.analyses.table import AnalysisRow
from service.policies import Policy, Verdict, evaluate, terms
from wsb_engine.options import Options
from wsb_engine.report import Report


async def judge(session: AsyncSession, row: AnalysisRow, report: str) -> dict[str, Any] | None:
    """Apply the analysis's policy to its report; None without a policy."""
    policy, baseline = await stored_policy_and_baseline(session, row)
    if policy is None:
        return None
    return await asyncio.to_thread(verdict_document, policy, baseline, row.options.get("learning_rate"), report)


async def stored_terms(session: AsyncSession, row: AnalysisRow) -> dict[str, Any]:
    """Return what the analysis has to know of its policy, as ``service.policies.terms`` does."""
    policy, baseline = await stored_policy_and_baseline(session, row)
    if policy is None:
        return {}
    return await asyncio.to_thread(_terms, policy, baseline, row.options)


def _terms(policy: dict[str, Any], baseline: dict[str, Any] | None, options: dict[str, Any]) -> dict[str, Any]:
    wanted = Options.model_validate(options)
    compared = baseline if wanted.stop == "decided" else None
    try:
        report = None if compared is None else Report.model_validate(compared)
        return terms(Policy.model_validate(policy), report, wanted)
    except ValidationError:
        return {}  # as in ``verdict_document``, which says so


async def stored_policy_and_baseline(
    session: AsyncSession, row: AnalysisRow
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Load the policy and the baseline, which are large and not loaded with the row."""
    query = select(AnalysisRow.policy, AnalysisRow.baseline).where(AnalysisRow.id == row.id)
    policy, baseline = (await session.execute(query)).one()
    return policy, baseline


def verdict_document(
    policy: dict[str, Any], baseline: dict[str, Any] | None, learning_rate: float | None, report: str
) -> dict[str, Any]:
    """Compute the verdict as the resource shows it.

    Args:
        policy: Stored policy.
        baseline: Stored baseline report.
        learning_rate: Learning rate from the options.
        report: Report as JSON.
    """
    try:
        verdict = evaluate(
            Policy.model_validate(policy),
            Report.model_validate_json(report),
            None if baseline is None else Report.model_validate(baseline),
            learning_rate,
        )
    except ValidationError as error:
        # An older version of the service accepted and stored them.
        message = f"The policy or the baseline is no longer valid: {error.errors()[0]['msg']}."
        verdict = Verdict(outcome="error", code="policy_outdated", message=message, rules=[])
    return verdict.model_dump(mode="json")
