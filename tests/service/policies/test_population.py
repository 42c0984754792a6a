"""Policies on the distribution's λ_max."""

from __future__ import annotations

from typing import Any

import pytest
from support.policies import population, report

from service.policies import Gate, Policy, evaluate
from service.policies.metrics import known_metrics
from wsb_engine.progress import InterimEnclosure
from wsb_engine.report import Report, ReportWarning


def policy(**rule: Any) -> Policy:
    return Policy.model_validate({"rule": [{"metric": "population.lambda_max.upper", **rule}]})


def asked(*, confidence: float = 0.95, upper: float = 60.0) -> Report:
    return report(population=population(upper=upper, confidence=confidence))


@pytest.mark.parametrize(
    ("metric", "op", "limit", "outcome"),
    [
        ("population.lambda_max.upper", "<=", 60, "pass"),
        ("population.lambda_max.upper", "<=", 59, "fail"),
        ("population.lambda_max.lower", ">", 29, "pass"),
        ("population.lambda_max", "<=", 60, "pass"),
        ("population.lambda_max", "<=", 40, "error"),
        ("population.lambda_max", "<=", 29, "fail"),
        ("population.estimate", "<=", 39, "pass"),
        ("population.rows", ">=", 400, "pass"),
    ],
)
def test_an_end_is_a_number_and_the_whole_is_an_interval(metric: str, op: str, limit: float, outcome: str) -> None:
    rule = evaluate(policy(metric=metric, op=op, limit=limit), asked()).rules[0]
    assert rule.outcome == outcome
    assert (rule.code, "Send more rows" in (rule.advice or "")) == (
        ("undecided", True) if outcome == "error" else (None, False)
    )


def test_its_paths_are_known() -> None:
    assert {"population.lambda_max", "population.lambda_max.upper", "population.factor"} <= set(known_metrics())


def test_an_increase_is_judged_against_a_baseline_of_the_same_confidence() -> None:
    wanted = policy(max_relative_increase=0.1)
    assert evaluate(wanted, asked(upper=65), asked()).outcome == "pass"
    assert evaluate(wanted, asked(upper=67), asked()).outcome == "fail"
    other = evaluate(wanted, asked(), asked(confidence=0.9))
    assert other.code == "baseline_mismatch"
    assert "population.confidence (0.95 here, 0.9 there)" in other.message


def test_the_confidence_matters_only_to_rules_on_it() -> None:
    wanted = Policy.model_validate({"rule": [{"metric": "loss.value", "max_increase": 0}]})
    assert evaluate(wanted, asked(), asked(confidence=0.9)).outcome == "pass"


def test_a_rule_on_it_needs_the_whole_enclosure() -> None:
    enclosure = report((40.0, 40.0)).enclosure
    assert enclosure is not None
    interim = InterimEnclosure(
        lambda_max=enclosure.lambda_max, lambda_min=enclosure.lambda_min, hessian_vector_products=3
    )
    assert not Gate.of(policy(op="<=", limit=1)).decided(interim)


def test_the_advice_for_a_missing_interval_is_to_ask_for_it() -> None:
    assert (evaluate(policy(op="<=", limit=1), report()).rules[0].advice or "").startswith("Set the option population")


def test_a_missing_interval_is_explained_by_its_warning() -> None:
    warning = ReportWarning(code="population_too_few_rows", message="150 rows count: send at least 200")
    rule = evaluate(policy(op="<=", limit=1), report(warnings=[warning])).rules[0]
    assert (rule.outcome, rule.code) == ("error", "missing")
    assert rule.message.endswith("population.lambda_max.upper: 150 rows count: send at least 200.")
