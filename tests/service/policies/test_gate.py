"""A gate is decided exactly when the verdict on the same enclosure leaves no rule on it undecided."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.policies import report

from service.policies import Gate, Policy, evaluate
from wsb_engine.progress import InterimEnclosure
from wsb_engine.report import Report

METRICS = [
    *("enclosure.lambda_max", "enclosure.lambda_max.upper", "enclosure.lambda_max.lower"),
    *("enclosure.lambda_min", "enclosure.lambda_min.lower", "stability_ratio"),
]
ends = st.one_of(st.integers(-4, 4).map(float), st.floats(-1e3, 1e3))
intervals = st.tuples(ends, ends).map(lambda pair: (min(pair), max(pair)))


@st.composite
def rules(draw: st.DrawFn) -> dict[str, Any]:
    rule: dict[str, Any] = {
        "metric": draw(st.sampled_from(METRICS)),
        "severity": draw(st.sampled_from(["fail", "warn"])),
    }
    match draw(st.sampled_from(["limit", "max_increase", "max_relative_increase"])):
        case "limit":
            return rule | {"op": draw(st.sampled_from(["<", "<=", ">", ">=", "=="])), "limit": draw(ends)}
        case name:
            return rule | {name: draw(ends)}


def policy(*rules: dict[str, Any], **more: Any) -> Policy:
    return Policy.model_validate({"rule": list(rules), **more})


def interim(found: Report) -> InterimEnclosure:
    enclosure = found.enclosure
    assert enclosure is not None
    return InterimEnclosure(lambda_max=enclosure.lambda_max, lambda_min=enclosure.lambda_min, hessian_vector_products=3)


def sent(gate: Gate) -> Gate:
    """The gate as a child reads it."""
    return Gate.model_validate_json(gate.model_dump_json())


@settings(deadline=None)
@given(st.lists(rules(), min_size=1, max_size=4), intervals, intervals, intervals, st.sampled_from([None, 0.5, 3.0]))
def test_it_is_decided_when_the_verdict_on_that_enclosure_is(
    asked: list[dict[str, Any]],
    top: tuple[float, float],
    bottom: tuple[float, float],
    base: tuple[float, float],
    rate: float | None,
) -> None:
    wanted, found, baseline = policy(*asked), report(top, bottom), report(base, base)
    verdict = evaluate(wanted, found, baseline, rate)
    undecided = any(rule.code == "undecided" for rule in verdict.rules)
    assert sent(Gate.of(wanted, baseline, rate)).decided(interim(found)) == (not undecided)


def test_the_policys_learning_rate_counts_unless_the_options_have_one() -> None:
    wanted = policy({"metric": "stability_ratio", "op": "<=", "limit": 1}, learning_rate=0.048)
    found = interim(report((40.0, 42.0)))
    assert not Gate.of(wanted).decided(found)
    assert Gate.of(wanted, learning_rate=0.01).decided(found)


@pytest.mark.parametrize(
    ("baseline", "decided"), [(None, True), (report(None), True), (report((30.0, 50.0)), False), (report(), True)]
)
def test_a_rule_that_no_enclosure_can_decide_does_not_hold_it_back(baseline: Report | None, decided: bool) -> None:
    wanted = policy({"metric": "enclosure.lambda_max", "max_increase": 1, "on_missing": "pass"})
    assert Gate.of(wanted, baseline).decided(interim(report())) == decided


def test_rules_on_other_parts_do_not_hold_it_back() -> None:
    wanted = policy(
        {"metric": "loss.value", "op": "<=", "limit": 1}, {"metric": "moments.trace", "op": "<=", "limit": 1}
    )
    assert Gate.of(wanted).decided(interim(report((-1e9, 1e9))))


@pytest.mark.parametrize(
    "metric",
    ["enclosure.lambda_max.relative_gap", "enclosure.hessian_vector_products", "enclosure.convergence.0.products"],
)
def test_a_rule_on_how_far_the_run_got_needs_the_whole_run(metric: str) -> None:
    assert not Gate.of(policy({"metric": metric, "op": "<=", "limit": 1})).decided(interim(report((40.0, 40.0))))


@settings(deadline=None)
@given(rules(), intervals, intervals, st.floats(0, 1), st.floats(0, 1), intervals)
def test_what_is_decided_stays_so_however_narrow_the_enclosure_becomes(
    asked: dict[str, Any],
    top: tuple[float, float],
    bottom: tuple[float, float],
    a: float,
    b: float,
    base: tuple[float, float],
) -> None:
    def narrowed(interval: tuple[float, float]) -> tuple[float, float]:
        lower, upper = interval
        places = (min(upper, lower + place * (upper - lower)) for place in sorted((a, b)))
        return tuple(places)  # type: ignore[return-value]

    wanted, baseline = policy(asked), report(base, base)
    wide, narrow = report(top, bottom), report(narrowed(top), narrowed(bottom))
    if Gate.of(wanted, baseline, 0.5).decided(interim(wide)):
        verdicts = [evaluate(wanted, each, baseline, 0.5).outcome for each in (wide, narrow)]
        assert verdicts[0] == verdicts[1]


def test_the_enclosures_interval_is_what_counts_for_the_stability_ratio_of_the_baseline() -> None:
    wanted = policy({"metric": "stability_ratio", "max_increase": 0.0}, learning_rate=1.0)
    gate = Gate.of(wanted, report((45.0, 46.0)))
    assert gate.conditions[0].baseline is not None
    assert gate.conditions[0].baseline.upper == 46.0
    assert gate.decided(interim(report((40.0, 41.0))))
