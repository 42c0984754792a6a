"""Policies: rules over a report, comparison with a baseline, and the verdict."""

from service.policies.evaluation import evaluate
from service.policies.gate import Gate, terms
from service.policies.policy import Policy, PolicyError, Rule, load_policy
from service.policies.schemas import RuleResult, Verdict

__all__ = ["Gate", "Policy", "PolicyError", "Rule", "RuleResult", "Verdict", "evaluate", "load_policy", "terms"]
