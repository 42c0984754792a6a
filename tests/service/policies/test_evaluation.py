"""Verdicts, rule by rule."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.policies import enclosed, parameters, report

from service.policies import Policy, RuleResult, Verdict, evaluate
from wsb_engine import report as r


def policy(*rules: dict[str, Any], **more: Any) -> Policy:
    return Policy.model_validate({"rule": list(rules), **more})


def limit(metric: str, op: str, value: float, **more: Any) -> dict[str, Any]:
    return {"metric": metric, "op": op, "limit": value, **more}


def judged(rule: dict[str, Any], *arguments: Any, **more: Any) -> RuleResult:
    return evaluate(policy(rule, **more), *arguments).rules[0]


def of_loss(**update: Any) -> r.Loss:
    """The loss of the report, set otherwise."""
    return report().loss.model_copy(update=update)


LOSS = limit("loss.value", "<=", 1)
INCREASE = {"metric": "enclosure.lambda_max", "max_increase": 1}


@pytest.mark.parametrize(
    ("metric", "op", "value", "outcome"),
    [
        ("loss.value", "<=", 0.5, "pass"),
        ("loss.value", "<", 0.5, "fail"),
        ("loss.accuracy", ">=", 0.75, "pass"),
        ("loss.accuracy", ">", 0.75, "fail"),
        ("batch.samples", "==", 8, "pass"),
        ("model.smooth", "==", 1, "pass"),
        ("layers.0.wolkowicz_styan_upper", "<=", 21.9, "fail"),
        ("blocks.0.0", "<=", 22, "pass"),
        ("checks.0.passed", "==", 1, "pass"),
        # The bound is a number of its own.
        ("bounds.wolkowicz_styan.lambda_max.upper", "<=", 45, "pass"),
        ("bounds.wolkowicz_styan.lambda_max.upper", "<=", 44, "fail"),
        # Both ends of its bounds together say where the eigenvalue is.
        ("bounds.wolkowicz_styan.lambda_max", "<=", 44, "error"),
        ("bounds.wolkowicz_styan.lambda_max", "<=", 45, "pass"),
    ],
)
def test_a_number_compares_with_a_limit(metric: str, op: str, value: float, outcome: str) -> None:
    assert judged(limit(metric, op, value), report()).outcome == outcome


@pytest.mark.parametrize("end", ["", ".lower", ".upper"])
@pytest.mark.parametrize(
    ("op", "value", "outcome"),
    [
        ("<=", 41, "pass"),
        ("<=", 40.5, "error"),
        ("<=", 40, "error"),
        ("<=", 39, "fail"),
        ("<", 41, "error"),
        ("<", 40, "fail"),
        (">=", 40, "pass"),
        (">=", 40.5, "error"),
        (">=", 41.5, "fail"),
        ("==", 40.5, "error"),
        ("==", 42, "fail"),
    ],
)
def test_a_rule_on_an_enclosure_or_an_end_of_it_is_about_the_eigenvalue(
    end: str, op: str, value: float, outcome: str
) -> None:
    found = judged(limit(f"enclosure.lambda_max{end}", op, value), report((40, 41)))
    assert (found.outcome, found.code) == (outcome, "undecided" if outcome == "error" else None)


@pytest.mark.parametrize(("value", "outcome"), [(-3, "pass"), (-2.5, "error"), (-1.9, "fail")])
def test_the_smallest_eigenvalue_is_decided_the_same_way(value: float, outcome: str) -> None:
    assert judged(limit("enclosure.lambda_min.lower", ">=", value), report()).outcome == outcome


def test_a_straddled_limit_is_told_with_both_ends_and_advice() -> None:
    found = judged(limit("enclosure.lambda_max.upper", "<=", 40.5), report((40, 41)))
    assert found.message == "enclosure.lambda_max is in [40, 41]: that does not decide whether it is <= 40.5."
    assert "relative_gap" in (found.advice or "")
    assert found.value == 41
    assert found.interval is not None
    assert (found.interval.lower, found.interval.upper) == (40, 41)


def test_ends_that_differ_late_are_told_apart() -> None:
    message = judged(limit("enclosure.lambda_max", "<=", 2), report((1.00000001, 1.00000002))).message
    assert "[1.00000001, 1.00000002]" in message


@settings(deadline=None)
@given(st.floats(-1e300, 1e300), st.floats(-1e300, 1e300), st.floats(-1e300, 1e300), st.floats(0, 1))
def test_no_verdict_on_an_enclosure_contradicts_a_value_in_it(a: float, b: float, bound: float, place: float) -> None:
    lower, upper = min(a, b), max(a, b)
    value = min(max(lower + place * (upper / 2 - lower / 2) * 2, lower), upper)
    outcome = judged(limit("enclosure.lambda_max.upper", "<=", bound), report((lower, upper))).outcome
    if value <= bound:
        assert outcome != "fail"
    else:
        assert outcome != "pass"


def test_the_stability_ratio_is_the_eigenvalue_times_half_the_learning_rate() -> None:
    rule = limit("stability_ratio", "<=", 1)
    found = judged(rule, report((40, 41)), None, 0.04)
    assert found.outcome == "pass"
    assert found.value == pytest.approx(0.82, abs=1e-15)
    assert judged(rule, report((40, 41)), None, 0.1).outcome == "fail"
    assert judged(rule, report((40, 60)), None, 0.04).code == "undecided"


def test_the_learning_rate_of_the_options_goes_before_the_policys() -> None:
    rule = limit("stability_ratio", "<=", 1)
    assert judged(rule, report(), None, None, learning_rate=0.1).outcome == "fail"
    assert judged(rule, report(), None, 0.01, learning_rate=0.1).outcome == "pass"


def test_without_an_enclosure_the_bounds_give_the_stability_ratio() -> None:
    found = judged(limit("stability_ratio", "<=", 1), report(None), None, 0.04)
    assert found.interval is not None
    assert (found.interval.lower, found.interval.upper) == (0.1, 0.9)


def test_a_stability_ratio_without_a_learning_rate_is_missing() -> None:
    found = judged(limit("stability_ratio", "<=", 1), report())
    assert (found.outcome, found.code, found.message) == ("error", "missing", "There is no learning rate.")


def test_a_stability_ratio_beyond_all_floats_is_still_decided() -> None:
    assert judged(limit("stability_ratio", "<=", 1), report((1e300, 1e308)), None, 1e300).outcome == "fail"


@pytest.mark.parametrize(
    ("on_missing", "severity", "outcome"),
    [
        ("error", "fail", "error"),
        ("error", "warn", "error"),
        ("pass", "fail", "pass"),
        ("fail", "fail", "fail"),
        ("fail", "warn", "warn"),
    ],
)
def test_a_missing_number_is_what_the_rule_says(on_missing: str, severity: str, outcome: str) -> None:
    rule = limit("spectrum.eigenvalues.0", "<=", 1, on_missing=on_missing, severity=severity)
    found = judged(rule, report())
    assert (found.outcome, found.code) == (outcome, "missing")


def test_an_index_past_the_end_is_missing() -> None:
    assert judged(limit("layers.1.trace", "<=", 1), report()).code == "missing"


def test_a_number_missing_for_want_of_time_is_told_so() -> None:
    partial = report(spectrum=None, warnings=[r.ReportWarning(code="time_limit", message="late")])
    assert "time limit" in judged(limit("spectrum.eigenvalues.0", "<=", 1), partial).message


@pytest.mark.parametrize("metric", ["enclosure.lambda_max", "enclosure.lambda_min.lower", "stability_ratio"])
def test_a_number_withheld_with_the_enclosure_is_missing_for_that_reason(metric: str) -> None:
    warnings = [
        r.ReportWarning(code="time_limit", message="late"),
        r.ReportWarning(code="enclosure_withheld", message="H is lost in rounding."),
    ]
    empty = report(lambda_max=None, bounds=None, warnings=warnings)
    rules = policy(limit(metric, "<=", 1))
    [found] = evaluate(rules, empty, learning_rate=0.1).rules
    assert (found.outcome, found.code) == ("error", "missing")
    assert found.message == f"The report has no {metric}: the enclosure is withheld (H is lost in rounding)."
    increase = {"metric": metric, "max_increase": 1}
    [found] = evaluate(policy(increase), report(), empty, learning_rate=0.1).rules
    assert found.message == f"The baseline has no {metric}: the enclosure is withheld (H is lost in rounding)."


def test_what_is_missing_for_another_reason_is_not_said_to_be_withheld() -> None:
    empty = report(lambda_max=None, warnings=[r.ReportWarning(code="enclosure_withheld", message="Lost.")])
    assert (
        judged(limit("spectrum.eigenvalues.0", "<=", 1), empty).message == "The report has no spectrum.eigenvalues.0."
    )
    assert judged(limit("enclosure.lambda_max", "<=", 1), report(lambda_max=None)).message == (
        "The report has no enclosure.lambda_max."
    )


def test_a_rule_that_warns_never_stops_for_being_undecided() -> None:
    found = judged(limit("enclosure.lambda_max", "<=", 40.5, severity="warn"), report())
    assert (found.outcome, found.code) == ("warn", "undecided")


@pytest.mark.parametrize(
    ("rules", "outcome"),
    [
        ([LOSS], "pass"),
        ([LOSS, limit("loss.value", "<=", 0, severity="warn")], "warn"),
        ([limit("loss.value", "<=", 0, severity="warn"), limit("enclosure.lambda_max", "<=", 40.5)], "error"),
        ([limit("enclosure.lambda_max", "<=", 40.5), limit("loss.value", "<=", 0)], "fail"),
    ],
)
def test_the_gravest_rule_decides_and_a_certain_failure_is_the_gravest(rules: list[Any], outcome: str) -> None:
    assert evaluate(policy(*rules), report()).outcome == outcome


def test_a_report_with_a_failed_check_is_not_judged_unless_allowed() -> None:
    doubtful = report(checks=[r.Check(name="hvp_symmetry", passed=False, value=1.0, tolerance=0.1)])
    verdict = evaluate(policy(LOSS), doubtful)
    assert (verdict.outcome, verdict.code) == ("error", "failed_check")
    assert "hvp_symmetry" in verdict.message
    assert verdict.rules[0].outcome == "pass"
    assert evaluate(policy(LOSS, allow_failed_checks=True), doubtful).outcome == "pass"


def test_a_failed_check_of_the_baseline_counts_as_well() -> None:
    doubtful = report(checks=[r.Check(name="parity", passed=False, value=1.0, tolerance=0.1)])
    assert evaluate(policy(LOSS), report(), doubtful).code == "failed_check"


@pytest.mark.parametrize(
    ("lambda_max", "most", "outcome"),
    [
        ((42, 43), 3, "pass"),
        ((42, 43), 2.5, "error"),
        ((42, 43), 1, "error"),
        ((42, 43), 0.9, "fail"),
        ((30, 31), 0, "pass"),
    ],
)
def test_an_increase_is_the_difference_of_two_intervals(
    lambda_max: tuple[float, float], most: float, outcome: str
) -> None:
    rule = {"metric": "enclosure.lambda_max.upper", "max_increase": most}
    found = judged(rule, report(lambda_max), report((40, 41)))
    assert (found.outcome, found.baseline) == (outcome, 41)
    assert found.baseline_interval is not None


def test_a_relative_increase_is_told_in_percent() -> None:
    rule = {"metric": "loss.value", "max_relative_increase": 0.1}
    worse = report(loss=r.Loss(kind="cross_entropy", value=0.6, gradient_norm=0.1, accuracy=0.75))
    found = judged(rule, worse, report())
    assert found.message == "loss.value is 0.6, and 0.5 in the baseline: it has risen by more than 10 %."
    assert (found.outcome, found.value, found.baseline, found.interval) == ("fail", 0.6, 0.5, None)


@pytest.mark.parametrize(("on_missing", "outcome"), [("error", "error"), ("pass", "pass"), ("fail", "fail")])
def test_without_a_baseline_a_rule_about_an_increase_is_missing_its_number(on_missing: str, outcome: str) -> None:
    found = judged({"metric": "loss.value", "max_increase": 0, "on_missing": on_missing}, report())
    assert (found.outcome, found.code, found.value) == (outcome, "baseline_missing", 0.5)


def test_a_number_that_only_the_baseline_lacks_is_missing() -> None:
    found = judged({"metric": "enclosure.lambda_max", "max_increase": 0}, report(), report(None))
    assert (found.code, found.message) == ("missing", "The baseline has no enclosure.lambda_max.")


OTHERS: dict[str, tuple[str, str, r.Report]] = {
    "moments": (
        "method",
        "moments.method",
        report(moments=r.Moments(method="basis", exact=True, trace=1, frobenius_squared=1)),
    ),
    "count": (
        "parameters",
        "model.parameters.count",
        report(model=report().model.model_copy(update={"parameters": parameters(w=[2, 4])})),
    ),
    "names": (
        "parameters",
        "model.parameters.tensors",
        report(model=report().model.model_copy(update={"parameters": parameters(v=[2, 3])})),
    ),
    "shapes": (
        "parameters",
        "model.parameters.tensors",
        report(model=report().model.model_copy(update={"parameters": parameters(w=[3, 2])})),
    ),
    "batch": ("batch", "batch.sha256", report(batch=r.BatchSummary(sha256="c" * 64, samples=8, classes=3))),
    "unknown batch": ("batch", "batch.sha256", report(batch=r.BatchSummary(sha256=None, samples=8, classes=3))),
    "samples": ("batch", "batch.samples", report(batch=r.BatchSummary(sha256="b" * 64, samples=9, classes=3))),
    "loss": (
        "loss",
        "loss.kind",
        report(loss=r.Loss(kind="binary_cross_entropy", value=0.5, gradient_norm=0, accuracy=1)),
    ),
    "smoothing": ("loss", "loss.label_smoothing", report(loss=of_loss(label_smoothing=0.1))),
    "ignored label": ("loss", "loss.ignore_index", report(loss=of_loss(ignore_index=-100))),
    "class weights": ("loss", "loss.class_weights", report(loss=of_loss(class_weights=[1.0, 2.0, 3.0]))),
    "positions": (
        "batch",
        "batch.positions",
        report(batch=report().batch.model_copy(update={"positions": 5})),
    ),
    "dtype": ("dtype", "engine.dtype", report(engine=report().engine.model_copy(update={"dtype": "float32"}))),
}


def test_long_lists_of_weights_differ_by_the_first_number_that_does() -> None:
    ours, theirs = [1.0] * 30, [1.0] * 29 + [2.0]
    verdict = evaluate(
        policy(INCREASE), report(loss=of_loss(class_weights=ours)), report(loss=of_loss(class_weights=theirs))
    )
    assert verdict.baseline is not None
    [difference] = verdict.baseline.differences
    assert difference.candidate == "30 numbers, number 29 is 1.0"
    assert difference.baseline == "30 numbers, number 29 is 2.0"


@pytest.mark.parametrize("case", OTHERS)
def test_a_baseline_made_otherwise_is_refused_unless_that_is_allowed(case: str) -> None:
    name, path, baseline = OTHERS[case]
    rule = {"metric": "moments.trace" if name == "method" else "enclosure.lambda_max", "max_increase": 60}
    verdict = evaluate(policy(rule), report(), baseline)
    assert (verdict.outcome, verdict.code, verdict.rules[0].code) == ("error", "baseline_mismatch", "baseline_mismatch")
    assert path in verdict.message
    assert verdict.baseline is not None
    assert not verdict.baseline.compatible
    assert path in [difference.path for difference in verdict.baseline.differences]
    allowed = evaluate(policy(rule, allow_mismatch=[name]), report(), baseline)
    assert allowed.outcome == "pass"
    assert allowed.baseline is not None
    assert (allowed.baseline.compatible, allowed.baseline.allowed) == (True, [name])


def test_another_allowance_does_not_help() -> None:
    _, _, baseline = OTHERS["batch"]
    assert evaluate(policy(LOSS, allow_mismatch=["loss", "dtype"]), report(), baseline).code == "baseline_mismatch"


def test_tensors_that_differ_are_named_but_not_all_of_very_many() -> None:
    many = report(
        model=report().model.model_copy(update={"parameters": parameters(**{f"v{i}": [1] for i in range(9)})})
    )
    verdict = evaluate(policy(LOSS), report(), many)
    assert verdict.baseline is not None
    found = next(each for each in verdict.baseline.differences if each.path == "model.parameters.tensors")
    assert found.candidate == ["w [2, 3]"]
    assert found.baseline == ["v0 [1]", "v1 [1]", "v2 [1]", "v3 [1]", "v4 [1]", "and 4 more"]


def spectrum(method: Any) -> r.SpectrumResult:
    return r.SpectrumResult(method=method, eigenvalues=[1.0], residuals=None, upper_bounds=None, density=None)


def test_the_method_of_the_spectrum_matters_to_rules_about_it_only() -> None:
    ours, theirs = report(spectrum=spectrum("dense")), report(spectrum=spectrum("lanczos"))
    about = {"metric": "spectrum.eigenvalues.0", "max_increase": 0}
    other = {"metric": "enclosure.lambda_max", "max_increase": 1}
    assert evaluate(policy(about), ours, theirs).code == "baseline_mismatch"
    assert evaluate(policy(other), ours, theirs).outcome == "pass"


def test_the_method_of_the_moments_matters_to_rules_about_what_they_provide_only() -> None:
    _, _, baseline = OTHERS["moments"]
    ours = (report(), report(moments=None, bounds=None))
    assert [evaluate(policy(INCREASE), each, baseline).outcome for each in ours] == ["pass", "pass"]
    for metric in ("moments.trace", "bounds.wolkowicz_styan.lambda_max.upper", "layers.0.trace"):
        assert evaluate(policy(INCREASE | {"metric": metric}), report(), baseline).code == "baseline_mismatch"


def stopped(by: Any) -> r.Report:
    found = report()
    assert found.enclosure is not None
    return report(enclosure=found.enclosure.model_copy(update={"stopped_by": by}))


@pytest.mark.parametrize("metric", ["enclosure.lambda_max", "loss.value"])
def test_a_run_that_stopped_when_it_was_decided_is_no_baseline(metric: str) -> None:
    rules = policy(INCREASE | {"metric": metric}, LOSS)
    found = evaluate(rules, report(), stopped("decided"))
    assert (found.outcome, found.code, [rule.code for rule in found.rules]) == (
        *("error", "baseline_decided"),
        ["baseline_decided", None],
    )
    assert "stop at gap" in (found.advice or "")
    assert evaluate(rules, report(), stopped("gap")).outcome == "pass"


def test_what_it_leaves_undecided_for_another_policy_is_told_with_advice() -> None:
    undecided = limit("enclosure.lambda_max", "<=", 40.5)
    assert "stop at gap" in (judged(undecided, stopped("decided")).advice or "")
    assert "relative_gap" in (judged(undecided, stopped("gap")).advice or "")


def test_it_may_be_given_where_nothing_is_compared_with_it() -> None:
    assert evaluate(policy(LOSS), report(), stopped("decided")).outcome == "pass"


def test_a_baseline_against_itself_has_not_increased() -> None:
    rules = [
        {"metric": metric, "max_relative_increase": 0.0}
        for metric in ("loss.value", "moments.trace", "bounds.wolkowicz_styan.lambda_max.upper")
    ]
    verdict = evaluate(policy(*rules), report(), report())
    assert verdict.outcome == "pass"
    assert verdict.message == "3 rules: 3 passed."


def test_a_verdict_survives_its_own_json() -> None:
    verdict = evaluate(policy(LOSS, limit("enclosure.lambda_max", "<=", 40.5)), report(), report())
    assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict


def listed(name: str, upper: float = 45.0) -> r.NamedBound:
    return r.NamedBound(
        name=name,
        assumptions=["It is assumed."],
        kind="deterministic",
        failure_probability=None,
        lambda_max=r.Interval(lower=5.0, upper=upper),
        lambda_min=r.Interval(lower=-40.0, upper=1.0),
    )


@pytest.mark.parametrize(
    ("metric", "limit_", "outcome"),
    [
        ("bounds_list.wolkowicz_styan.lambda_max.upper", 45, "pass"),
        ("bounds_list.wolkowicz_styan.lambda_max.upper", 44, "fail"),
        ("bounds_list.wolkowicz_styan.lambda_max", 44, "error"),
        ("bounds_list.wolkowicz_styan.lambda_min.lower", -40, "pass"),
    ],
)
def test_a_bound_is_looked_up_by_its_name(metric: str, limit_: float, outcome: str) -> None:
    second = report(bounds_list=[listed("frobenius_norm", 99.0), listed("wolkowicz_styan")])
    assert judged(limit(metric, "<=", limit_), second).outcome == outcome
    # A report before schema 1.3 has the same bound elsewhere.
    assert judged(limit(metric, "<=", limit_), report()).outcome == outcome


def test_a_bound_that_a_report_lacks_is_missing_and_those_that_it_has_are_named() -> None:
    found = judged(limit("bounds_list.frobenius_norm.lambda_max.upper", "<=", 1), report())
    assert (found.outcome, found.code) == ("error", "missing")
    assert found.message == (
        "The report has no bounds_list.frobenius_norm.lambda_max.upper; its bounds are wolkowicz_styan."
    )
    found = judged(limit("bounds_list.wolkowicz_styan.lambda_max.upper", "<=", 1), report(bounds=None))
    assert found.message == "The report has no bounds_list.wolkowicz_styan.lambda_max.upper."


def test_a_baseline_of_another_scaling_is_refused_to_rules_on_the_scaled_sharpness() -> None:
    def scaled(kind: str) -> r.Report:
        part = r.Scaled(
            scaling=kind,
            lambda_max=enclosed(1, 1.5),
            hessian_vector_products=9,
            stopped_by="gap",
            rounding=None,
            moments=None,
            wolkowicz_styan=None,
        )
        return report().model_copy(update={"scaled": part})

    rules = policy({"metric": "scaled.lambda_max.upper", "max_increase": 1})
    verdict = evaluate(rules, scaled("tensor"), scaled("filter"))
    assert verdict.code == "baseline_mismatch"
    assert verdict.baseline is not None
    assert [difference.path for difference in verdict.baseline.differences] == ["scaled.scaling"]
    assert evaluate(rules, scaled("tensor"), scaled("tensor")).outcome == "pass"
