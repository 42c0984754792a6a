"""Two reports side by side."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from support.pages import Visitor, analysed, field_errors, table_rows
from support.policies import report
from support.service import Service

from service.web.comparison import decision
from wsb_engine.report import Check, Report, ReportWarning

Visit = Callable[..., Visitor]


@pytest.mark.parametrize(
    ("first", "second", "decided"),
    [
        ((1.0, 2.0), (2.5, 3.0), "B is sharper"),
        ((2.5, 3.0), (1.0, 2.0), "A is sharper"),
        ((1.0, 2.0), (2.0, 3.0), "Not decided"),
        ((1.0, 3.0), (1.5, 2.0), "Not decided"),
        ((-3.0, -2.0), (-1.0, -0.5), "B is sharper"),
    ],
)
def test_only_intervals_that_do_not_meet_decide_which_is_sharper(
    first: tuple[float, float], second: tuple[float, float], decided: str
) -> None:
    assert decision(report(first), report(second))[0] == decided


def probable(lower: float, upper: float) -> Report:
    certain = report((lower, upper))
    assert certain.enclosure
    ends = certain.enclosure.lambda_max.model_copy(update={"kind": "probabilistic", "failure_probability": 1e-9})
    return certain.model_copy(update={"enclosure": certain.enclosure.model_copy(update={"lambda_max": ends})})


def test_what_is_probable_only_is_said_to_be() -> None:
    assert "except with probability at most 1e-9" in decision(report((1.0, 2.0)), probable(5.0, 6.0))[1]
    assert "except with probability at most 2e-9" in decision(probable(1.0, 2.0), probable(5.0, 6.0))[1]
    assert "probability" not in decision(report((1.0, 2.0)), report((5.0, 6.0)))[1]


FAILED = [Check(name="parity", passed=False, value=0.5, tolerance=1e-3)]
WITHHELD = [ReportWarning(code="enclosure_withheld", message="H is lost in rounding.")]


@pytest.mark.parametrize("doubtful", ["A", "B", "A and B"])
def test_numbers_that_can_not_be_relied_on_decide_nothing(doubtful: str) -> None:
    checks = {name: {"checks": FAILED} if name in doubtful.split() else {} for name in "AB"}
    found = decision(report((1.0, 2.0), **checks["A"]), report((5.0, 6.0), **checks["B"]))
    assert found == ("Not decided", f"The numbers of {doubtful} can't be relied on.")


@pytest.mark.slow
def test_a_comparison_names_failed_checks_first_and_why_an_enclosure_was_withheld(
    service: Service, visit: Visit
) -> None:
    visitor = visit(service)
    a = analysed(service, visitor, checks=FAILED)
    b = analysed(service, visitor, lambda_max=None, warnings=WITHHELD)
    text = visitor.get("/compare", params={"a": a, "b": b}).text
    assert text.index("The numbers of A can't be relied on.") < text.index("check parity") < text.index('id="decision"')
    assert "B has no enclosure: H is lost in rounding." in text
    assert "is sharper" not in text


def test_without_an_enclosure_the_bounds_decide() -> None:
    # The bounds of these reports are from 5 to 45.
    name, why = decision(report(None), report((50.0, 51.0)))
    assert (name, "Wolkowicz-Styan bounds and enclosure" in why) == ("B is sharper", True)
    assert decision(report(None, bounds=None), report())[0] == "Not decided"


def test_numbers_stand_side_by_side_with_every_difference_that_they_can_have(service: Service, visit: Visit) -> None:
    visitor = visit(service)
    a = analysed(service, visitor, lambda_max=(40.0, 41.0))
    b = analysed(service, visitor, lambda_max=(44.0, 44.5), moments=None)
    response = visitor.get("/compare", params={"a": a, "b": b})
    found = table_rows(response.text)
    assert found["λmax"] == ["[40, 41]", "[44, 44.5]", "[3, 4.5] +9.26 %"]
    assert found["λmin"][2].endswith("sign not certain")
    assert found["Loss"] == ["0.5", "0.5", "0 the same"]
    assert found["Trace, tr H"] == ["60", "—", "—"]
    assert "B is sharper" in response.text
    assert "is at least 44, that of A at most 41 (by enclosure)" in response.text
    assert "Produced with different settings" not in response.text


def test_what_was_made_otherwise_is_named(service: Service, visit: Visit) -> None:
    visitor = visit(service)
    a = analysed(service, visitor)
    other = report()
    b = analysed(service, visitor, batch=other.batch.model_copy(update={"samples": 9}))
    text = visitor.get("/compare", params={"a": a, "b": b}).text
    assert re.search(r"<code>batch.samples</code>: 8 in A, 9 in B", text)


def test_a_policy_judges_the_second_against_the_first(service: Service, visit: Visit) -> None:
    visitor = visit(service)
    a = analysed(service, visitor, lambda_max=(40.0, 41.0))
    b = analysed(service, visitor, lambda_max=(50.0, 51.0))
    rules = '[[rule]]\nmetric = "enclosure.lambda_max"\nmax_relative_increase = 0.1\n'
    verdicts = []
    for first, second in ((a, b), (b, a)):
        text = visitor.get("/compare", params={"a": first, "b": second, "policy": rules}).text
        verdicts.append(re.search(r'class="verdict (\w+)"', text))
    assert [found and found[1] for found in verdicts] == ["fail", "pass"]
    refused = visitor.get("/compare", params={"a": a, "b": b, "policy": "[[rule]"})
    assert (refused.status_code, "It is no TOML" in field_errors(refused.text)["policy"]) == (422, True)


def test_an_analysis_without_a_report_is_told_at_its_field(service: Service, visit: Visit) -> None:
    visitor = visit(service)
    failed = visitor.asked(output="fail")
    service.ended(failed)
    response = visitor.get("/compare", params={"a": failed, "b": "x"})
    assert response.status_code == 422
    assert field_errors(response.text) == {
        "a": "This analysis has no report that can be read.",
        "b": "This is not the identifier of an analysis.",
    }
