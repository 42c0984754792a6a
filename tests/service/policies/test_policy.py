"""Policies are read, and refused with the place of what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from service.policies import Policy, PolicyError, load_policy
from service.policies.metrics import check_metric, known_metrics
from service.policies.policy import MAX_POLICY_BYTES, MAX_RULES, parse_toml

RULE = '[[rule]]\nmetric = "loss.value"\nop = "<="\nlimit = 1.0\n'


def refused(text: str) -> str:
    with pytest.raises(PolicyError) as caught:
        parse_toml(text.encode())
    return str(caught.value)


def test_the_defaults_are_strict() -> None:
    policy = parse_toml(RULE.encode())
    assert (policy.rule[0].severity, policy.rule[0].on_missing) == ("fail", "error")
    assert (policy.allow_mismatch, policy.allow_failed_checks, policy.learning_rate) == ([], False, None)


def test_json_says_the_same_as_toml(tmp_path: Path) -> None:
    toml = 'learning_rate = 0.1\nallow_mismatch = ["batch"]\n' + RULE
    document = {
        "learning_rate": 0.1,
        "allow_mismatch": ["batch"],
        "rule": [{"metric": "loss.value", "op": "<=", "limit": 1}],
    }
    (tmp_path / "p.toml").write_text(toml)
    (tmp_path / "p.json").write_text(json.dumps(document))
    assert load_policy(tmp_path / "p.toml") == load_policy(tmp_path / "p.json")


def test_a_policy_survives_its_own_json() -> None:
    policy = parse_toml(RULE.encode())
    assert Policy.model_validate(policy.model_dump(mode="json")) == policy


@pytest.mark.parametrize(
    "metric",
    [
        "stability_ratio",
        "enclosure.lambda_max",
        "enclosure.lambda_max.upper",
        "enclosure.lambda_min.lower",
        "enclosure.hessian_vector_products",
        "bounds.wolkowicz_styan.lambda_max",
        "bounds.wolkowicz_styan.lambda_max.upper",
        "bounds_list.wolkowicz_styan.lambda_max.upper",
        "bounds_list.frobenius_norm.lambda_min",
        "bounds_list.frobenius_norm.failure_probability",
        "layers.0.wolkowicz_styan_upper",
        "blocks.0.1",
        "spectrum.eigenvalues.0",
        "spectrum.upper_bounds.0",
        "spectrum.density.mean",
        "orthogonality.sample_shares.0.share",
        "timings.total",
        "model.smooth",
        "model.parity.max_abs_error",
    ],
)
def test_a_path_to_a_number_is_a_metric(metric: str) -> None:
    assert parse_toml(RULE.replace("loss.value", metric).encode()).rule[0].metric == metric


@pytest.mark.parametrize(
    ("metric", "told"),
    [
        ("enclosure.lamda_max.upper", "enclosure has no 'lamda_max', but lambda_max, lambda_min"),
        ("sharpness", "the report has no 'sharpness', but schema_version"),
        ("enclosure", "enclosure is no number; it has lambda_max"),
        ("layers", "layers is no number"),
        ("layers.first.trace", "layers is a list: its parts are 0, 1, …"),
        ("layers.-1.trace", "layers is a list"),
        ("layers.٣.trace", "layers is a list"),
        ("layers.9999999999.trace", "layers is a list"),
        (
            "bounds_list.wolkowicz.lambda_max.upper",
            "bounds_list has no 'wolkowicz', but wolkowicz_styan",
        ),
        ("bounds_list.0.lambda_max.upper", "bounds_list has no '0', but wolkowicz_styan"),
        ("bounds_list.wolkowicz_styan", "bounds_list.wolkowicz_styan is no number; it has name"),
        ("bounds_list", "bounds_list is no number"),
        ("loss.value.upper", "loss.value has no parts"),
        ("loss.kind", "loss.kind is no number"),
        ("loss.__class__", "loss has no '__class__'"),
        ("", "the report has no ''"),
    ],
)
def test_a_path_that_no_report_has_is_refused(metric: str, told: str) -> None:
    found = refused(RULE.replace("loss.value", metric))
    assert found.startswith(f"rule 1 (line 1), metric: {told}")


@pytest.mark.parametrize(
    ("metric", "near"),
    [
        ("lambda_max", "enclosure.lambda_max"),
        ("lambda_max.upper", "enclosure.lambda_max.upper"),
        ("enclosure.lamda_max", "enclosure.lambda_max"),
        ("trace", "moments.trace"),
        ("loss.valu", "loss.value"),
        ("stability", "stability_ratio"),
        ("bounds_list.wolkowitz_styan.lambda_max.upper", "bounds_list.wolkowicz_styan.lambda_max.upper"),
        ("spectrum.eigenvalue.0", "spectrum.eigenvalues.0"),
    ],
)
def test_the_nearest_metric_is_suggested(metric: str, near: str) -> None:
    assert refused(RULE.replace("loss.value", metric)).endswith(f"; did you mean '{near}'?")


def test_what_is_suggested_is_a_metric() -> None:
    assert len(known_metrics()) > 50
    for metric in known_metrics():
        check_metric(metric)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "rule: Field required"),
        ("rule = []", "rule: List should have at least 1 item"),
        ("[[rule]\n", "It is no TOML: Expected"),
        ("[[rule]]\nmetric = 1\n" * 2, "rule 2 (line 3), metric"),
        (RULE + "sevrity = 'warn'\n", "rule 1 (line 1): There is no key 'sevrity' here; did you mean 'severity'?"),
        (RULE.replace("[[rule]]", "[[rules]]"), "There is no key 'rules' here; did you mean 'rule'?"),
        (RULE + "severity = 'error'\n", "rule 1 (line 1), severity: Input should be 'fail' or 'warn'"),
        (RULE + "on_missing = 'skip'\n", "rule 1 (line 1), on_missing: Input should be 'error', 'pass' or 'fail'"),
        (RULE.replace("<=", "=<"), "rule 1 (line 1), op: Input should be '<', '<=', '>', '>=' or '=='"),
        (RULE.replace("1.0", "'1.0'"), "rule 1 (line 1), limit: Input should be a valid number"),
        (RULE.replace("1.0", "true"), "rule 1 (line 1), limit: Input should be a valid number"),
        (RULE.replace("1.0", "nan"), "rule 1 (line 1), limit: Input should be a finite number"),
        (RULE.replace("1.0", "inf"), "rule 1 (line 1), limit: Input should be a finite number"),
        (RULE.replace("1.0", "2024-01-01"), "rule 1 (line 1), limit: Input should be a valid number"),
        (RULE.replace("limit = 1.0\n", ""), "it has none"),
        (RULE.replace('op = "<="\n', ""), "op and limit belong together"),
        (RULE + "max_increase = 1\n", "it has limit and max_increase"),
        (RULE.replace("limit", "max_increase"), "op and limit belong together"),
        ("learning_rate = 0\n" + RULE, "learning_rate: Input should be greater than 0"),
        ("allow_mismatch = ['btach']\n" + RULE, "allow_mismatch: 'btach' is none of method, parameters, batch"),
        (RULE * (MAX_RULES + 1), f"rule: List should have at most {MAX_RULES} items"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(text: str, told: str) -> None:
    assert told in refused(text)


def test_everything_that_is_wrong_is_told_at_once() -> None:
    found = refused(RULE.replace("<=", "=<") + "\n# one more\n" + RULE.replace("loss", "los"))
    assert [line.split(",")[0] for line in found.splitlines()] == ["rule 1 (line 1)", "rule 2 (line 7)"]


def test_broken_json_is_told_apart_from_a_wrong_policy(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text("{")
    with pytest.raises(PolicyError, match="Invalid JSON"):
        load_policy(tmp_path / "p.json")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a = " + b"[" * 100_000, b"x = 1" + b"0" * 5000])
def test_hostile_bytes_are_no_policy(content: bytes) -> None:
    with pytest.raises(PolicyError):
        parse_toml(content)


def test_a_limit_too_large_for_a_number_is_refused() -> None:
    assert "limit" in refused(RULE.replace("1.0", "1" + "0" * 400))


def test_an_endless_policy_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_bytes(b"#" * (MAX_POLICY_BYTES + 1))
    with pytest.raises(PolicyError, match="larger than"):
        load_policy(tmp_path / "p.toml")


def test_a_line_of_so_many_dots_that_parsing_it_would_take_long_is_refused() -> None:
    with pytest.raises(PolicyError, match="Line 2 has more than 100 dots"):
        parse_toml(b"# " + b"." * 500 + b"\n" + b"a." * 30_000 + b"a = 1")
