"""A bound is added in three places: its theorem, the registry of the engine, and the words of the renderings."""

from __future__ import annotations

import pytest
from support.golden import Golden

import wsb_engine as wsb
from service.cli.summary import summarize
from service.policies import Policy, evaluate
from service.rendering import render_html, render_markdown
from wsb_engine.bounds import registry
from wsb_engine.bounds.bound import Bound, ExtremeBounds
from wsb_engine.presentation import bounds
from wsb_engine.presentation.bounds import MAX_BOUNDS, BoundWords


def analysed() -> wsb.Report:
    case = Golden("deep_tanh")
    return wsb.analyze(wsb.load_model(case.onnx()), wsb.Batch(case.x, case.y), wsb.Options(enclosure=False))


def test_every_registered_bound_has_words_and_no_other() -> None:
    assert list(bounds.WORDS) == [bound.name for bound in registry.BOUNDS]


def test_a_bound_that_is_added_is_in_reports_policies_and_renderings(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Bound("toy", ("Toys are true.",), lambda known: ExtremeBounds(0.125, 1e3 * known.order, -640.0, 0.0))
    monkeypatch.setattr(registry, "BOUNDS", (*registry.BOUNDS, toy))
    monkeypatch.setitem(bounds.WORDS, "toy", BoundWords("Toy", "from nothing"))
    report = analysed()
    upper = 1e3 * report.model.parameters.count
    listed = report.named_bounds[1]
    assert (listed.name, listed.assumptions[0], listed.lambda_max.upper) == ("toy", "Toys are true.", upper)
    assert wsb.Report.model_validate_json(report.model_dump_json()) == report
    rule = {"metric": "bounds_list.toy.lambda_min.lower", "op": "==", "limit": -640.0}
    assert evaluate(Policy.model_validate({"rule": [rule]}), report).outcome == "pass"
    html, markdown, text = render_html(report), render_markdown(report), summarize(report)
    for shown in (f"Toy bound</dt><dd>λ<sub>max</sub> ≤ {upper:,.0f}", "λ_max by Toy: [", "Toys are true."):
        assert shown.replace(",", "") in html.replace(",", "")
    assert f"| Toy, λ\\_max | [0.125, {upper:g}] |" in markdown
    assert "| Toy, λ\\_min | [-640, 0] | Toys are true. " in markdown
    assert f"λ_max     in [0.125, {upper:g}] (Toy)" in text


def test_a_bound_that_this_version_does_not_know_goes_by_its_name() -> None:
    report = analysed()
    (bound,) = report.named_bounds
    report = report.model_copy(update={"bounds_list": [bound.model_copy(update={"name": "of_tomorrow"})]})
    assert "The interval is that of the of_tomorrow bounds, as the report lists it." in render_html(report)
    assert "(of_tomorrow)" in summarize(report)


def test_chance_is_said_of_a_probabilistic_bound() -> None:
    case = Golden("deep_tanh")
    options = wsb.Options(moments="probes", enclosure=False)
    report = wsb.analyze(wsb.load_model(case.onnx()), wsb.Batch(case.x, case.y), options)
    chance = report.named_bounds[0].failure_probability
    assert chance is not None
    assert f"probabilistic, but for a probability of {chance:.0e}".replace("e-0", "e-") in render_markdown(report)
    assert "The interval is that of the Frobenius norm bounds, from" in render_html(report)


def test_more_bounds_than_a_page_can_hold_are_cut() -> None:
    report = analysed()
    many = report.model_copy(update={"bounds_list": report.named_bounds * 1000})
    assert render_markdown(many).count("Wolkowicz-Styan, λ\\_max") == MAX_BOUNDS
