"""When an enclosure has decided a policy, so that no more of it need be computed (mathematics.md, section 6)."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from service.policies.decision import holds
from service.policies.metrics import STABILITY_RATIO, Eigenvalue, about_enclosure, eigenvalue, measured
from service.policies.policy import Policy, Rule
from wsb_engine.options import Options
from wsb_engine.progress import InterimEnclosure
from wsb_engine.report import Interval, Report


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Condition(_Part):
    """A rule on an eigenvalue, and what it compares the eigenvalue with."""

    rule: Rule
    baseline: Interval | None = None
    """The baseline's enclosure of the same eigenvalue, for a rule about an increase."""


class Gate(_Part):
    """The part of a policy that an enclosure decides; what a sandboxed child gets instead of policy and baseline."""

    conditions: list[Condition]
    learning_rate: float | None = None
    needs_gap: bool = False
    """True if a rule is about another number that depends on where the run ends, such as the gap of the enclosure."""

    @classmethod
    def of(cls, policy: Policy, baseline: Report | None = None, learning_rate: float | None = None) -> Gate:
        """Reduce a policy to its rules on the enclosure.

        A rule that can't be decided whatever the enclosure (no baseline, no learning rate) does not hold it back.

        Args:
            policy: The rules.
            baseline: Report for rules about increases.
            learning_rate: Learning rate for ``stability_ratio``; None takes the policy's.
        """
        rate = policy.rate(learning_rate)
        rules = [rule for rule in policy.rule if about_enclosure(rule.metric)]
        conditions = []
        for rule in rules:
            name, base = eigenvalue(rule.metric), None
            if name is None or measured(rule.metric, Interval(lower=0, upper=0), rate) is None:
                continue
            if rule.needs_baseline:
                base = None if baseline is None else _enclosed(baseline, rule.metric, name)
                if base is None:
                    continue
            conditions.append(Condition(rule=rule, baseline=base))
        needs_gap = any(eigenvalue(rule.metric) is None for rule in rules)
        return cls(conditions=conditions, learning_rate=rate, needs_gap=needs_gap)

    def decided(self, enclosure: InterimEnclosure) -> bool:
        """Return whether every rule on the enclosure is decided."""
        return not self.needs_gap and all(self._decides(enclosure, condition) for condition in self.conditions)

    def _decides(self, enclosure: InterimEnclosure, condition: Condition) -> bool:
        rule, base = condition.rule, condition.baseline
        found = enclosure.lambda_min if eigenvalue(rule.metric) == "lambda_min" else enclosure.lambda_max
        number = measured(rule.metric, found, self.learning_rate)
        compared = None if base is None else measured(rule.metric, base, self.learning_rate)
        return number is not None and holds(rule, number, compared) is not None


def terms(policy: Policy | None, baseline: Report | None, options: Options) -> dict[str, Any]:
    """Return what an analysis has to know of the policy that will judge its report, as JSON; empty if nothing.

    Returns:
        ``needs``: parts of the report that the rules are about and that the options leave to the engine. ``gate``: the
        ``Gate``, if the options let it end the enclosure.
    """
    found: dict[str, Any] = {}
    if policy is not None and policy.needs_moments and options.moments == "auto":
        found["needs"] = ["moments"]
    if policy is not None and options.stop == "decided":
        found["gate"] = Gate.of(policy, baseline, options.learning_rate).model_dump(mode="json")
    return found


def _enclosed(report: Report, metric: str, name: Eigenvalue) -> Interval | None:
    """Return where a report says that the eigenvalue of a metric lies; None if it does not."""
    if metric == STABILITY_RATIO:
        found = None if report.lambda_max is None else report.lambda_max.interval
    else:
        found = None if report.enclosure is None else getattr(report.enclosure, name)
    return None if found is None else Interval(lower=found.lower, upper=found.upper)
