"""The first two lines about a report, and that no rendering has other words for them."""

from __future__ import annotations

import html
import math
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from service.cli.summary import summarize
from service.policies.schemas import BaselineComparison, Verdict
from service.rendering import checks, render_html, render_junit, render_markdown
from service.rendering.html import symbols
from service.rendering.markdown import plain
from service.rendering.yardstick import yardstick_of
from wsb_engine.analysis.checks import FAILURES
from wsb_engine.presentation.headline import Reference, Yardstick, headline
from wsb_engine.presentation.numbers import FEWEST_CERTAIN, MAX_DIGITS, certain, ends
from wsb_engine.report import CertifiedInterval, Interval, Report

LARGEST = 1.7976931348623157e308
finite = st.floats(allow_nan=False, allow_infinity=False)
SHARE = st.floats(0, 1)


@dataclass(frozen=True)
class Pair:
    lower: float
    upper: float


@st.composite
def pairs(draw: st.DrawFn) -> Pair:
    """Any interval, narrow ones as often as wide ones."""
    lower = draw(finite)
    near = st.integers(0, 16).map(lambda digits: lower + abs(lower) * 10.0**-digits)
    upper = draw(st.one_of(near, finite, st.just(lower), st.just(math.nextafter(lower, math.inf))))
    assume(math.isfinite(upper))
    return Pair(*sorted((lower, upper)))


@given(pairs(), st.integers(0, 100))
@example(Pair(-LARGEST, LARGEST), 50)
@example(Pair(LARGEST, LARGEST), 50)
@example(Pair(5e-324, 5e-324), 50)
@example(Pair(0.9999999, 1.0000001), 50)
@example(Pair(0.0, 0.0), 50)
@example(Pair(-1e-9, 1e-9), 50)
def test_one_number_stands_for_no_more_than_is_certain(pair: Pair, place: int) -> None:
    low, high = Decimal(pair.lower), Decimal(pair.upper)
    found = certain(pair)
    if found is None:
        assert low < high
        return
    value, radius = Decimal(found.value), Decimal(found.radius or 0)
    assert low == high == value if not found.radius else value - radius <= low <= high <= value + radius
    if found.radius:
        digits = len(value.as_tuple().digits)
        assert FEWEST_CERTAIN <= digits <= MAX_DIGITS + 1
        # Whatever the truth is, these are its digits.
        truth = low + (high - low) * place / 100
        assert truth.quantize(value) == value
        assert radius <= Decimal((0, (1,), int(value.as_tuple().exponent)))


@given(pairs())
@example(Pair(LARGEST, LARGEST))
@example(Pair(-LARGEST, -1.0))
def test_two_ends_are_never_narrower_than_the_interval(pair: Pair) -> None:
    for fewest in (3, 6):
        lower, upper = (Decimal(text.replace(",", "")) for text in ends(pair, fewest=fewest))
        assert lower <= Decimal(pair.lower) <= Decimal(pair.upper) <= upper


def enclosed(general: Any, lower: float, upper: float, chance: float | None = None, measured: bool = False) -> Report:
    """A report with this enclosure of λ_max."""
    kind = "probabilistic" if chance else "deterministic"
    found = CertifiedInterval(lower=lower, upper=upper, relative_gap=None, kind=kind, failure_probability=chance)
    rounding = {"how": "measured" if measured else "proven", "slack": 0.0}
    enclosure = general.report.enclosure.model_copy(update={"lambda_max": found})
    enclosure = enclosure.model_validate({**enclosure.model_dump(), "rounding": rounding})
    return general.report.model_copy(update={"enclosure": enclosure})


@pytest.mark.parametrize(
    ("lower", "upper", "more", "text"),
    [
        (1.2041279999998, 1.2041280000001, {}, "λ_max = 1.204128000000 (certified, ± 2e-13)"),
        (0.3101, 0.3698, {}, "0.31 ≤ λ_max ≤ 0.37 (certified)"),
        (-2.0, 0.25, {}, "-2 ≤ λ_max ≤ 0.25 (certified)"),
        (0.5, 0.5, {}, "λ_max = 0.5 (certified)"),
        (-0.25, -0.125, {}, "-0.25 ≤ λ_max ≤ -0.125 (certified)"),
        (1.25, 1.5, {"chance": 1e-6}, "1.25 ≤ λ_max ≤ 1.5 (certified except with probability 1e-6)"),
        (1.25, 1.5, {"measured": True}, "1.25 ≤ λ_max ≤ 1.5 (certified up to measured rounding)"),
    ],
)
def test_the_headline_says_how_certain_it_is(
    general: Any, lower: float, upper: float, more: dict[str, Any], text: str
) -> None:
    assert headline(enclosed(general, lower, upper, **more)).value == text


def test_without_an_enclosure_the_bounds_or_the_spectrum_are_the_headline(perceptron: Any) -> None:
    bounds = perceptron.report.model_copy(update={"enclosure": None})
    assert headline(bounds).value == "0.0897 ≤ λ_max ≤ 1.99 (certified by the Wolkowicz-Styan bounds)"
    spectrum = bounds.model_copy(update={"bounds": None, "bounds_list": None})
    shown = "λ_max ≈ 0.837802 (largest eigenvalue of the dense spectrum, not certified)"
    assert headline(spectrum).value == shown
    nothing = spectrum.model_copy(update={"spectrum": None})
    assert headline(nothing).value == "λ_max is not known: the report holds no bound on it"


def test_numbers_in_doubt_are_not_called_certified(general: Any) -> None:
    wrong = [check.model_copy(update={"passed": False}) for check in general.report.checks[:1]]
    found = headline(general.report.model_copy(update={"checks": wrong}), Yardstick(learning_rate=0.1))
    assert "certified" not in found.value
    assert found.sentence == "The numbers of this report can't be relied on."


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (0.5, "On the quadratic model gradient descent with learning rate 0.5 is stable: λ_max is at most 75 % of 2/η"),
        (2.0, "gradient descent with learning rate 2 is unstable: λ_max is at least 200 % of 2/η = 1"),
        (0.8, "gradient descent with learning rate 0.8 is stable is not certain: λ_max may be on either side of 2/η ="),
        (1.0, "is not certain: λ_max may be on either side of 2/η = 2."),
    ],
)
def test_a_learning_rate_is_what_counts(general: Any, rate: float, text: str) -> None:
    report, reference = enclosed(general, 2.0, 3.0), Reference("the baseline", Interval(lower=1.0, upper=1.0))
    assert text in headline(report, Yardstick(rate, reference)).sentence


@pytest.mark.parametrize(
    ("lower", "upper", "text"),
    [
        (1.0, 1.5, "Sharper than the baseline: λ_max is higher by at least 33.3 %."),
        (4.0, 5.0, "Flatter than the baseline: λ_max is lower by at least 25 %."),
        (-1.0, 0.0, "Sharper than the baseline: λ_max is higher by at least 2."),
        (2.5, 3.5, "No certain difference from the baseline: the intervals of λ_max overlap."),
        (3.0, 4.0, "No certain difference from the baseline: the intervals of λ_max overlap."),
    ],
)
def test_without_a_learning_rate_another_report_counts(general: Any, lower: float, upper: float, text: str) -> None:
    other = Reference("the baseline", Interval(lower=lower, upper=upper))
    assert headline(enclosed(general, 2.0, 3.0), Yardstick(None, other)).sentence == text


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(low=st.floats(1e-3, 1e3), width=SHARE, other=st.floats(1e-3, 1e3), breadth=SHARE, here=SHARE, there=SHARE)
def test_no_change_is_claimed_that_is_not_certain(
    general: Any, low: float, width: float, other: float, breadth: float, here: float, there: float
) -> None:
    report = enclosed(general, low, low * (1 + width))
    reference = Reference("x", Interval(lower=other, upper=other * (1 + breadth)))
    sentence = headline(report, Yardstick(None, reference)).sentence
    truth, base = low * (1 + here * width), other * (1 + there * breadth)
    if " by at least " in sentence:
        claimed = float(sentence.partition(" by at least ")[2].split()[0]) / 100
        change = truth / base - 1 if sentence.startswith("Sharper") else 1 - truth / base
        assert change >= claimed * (1 - 1e-12)


def test_the_failure_probabilities_of_both_reports_add_up(general: Any) -> None:
    other = enclosed(general, 1.0, 1.5, chance=1e-6).lambda_max
    assert other is not None
    yardstick = Yardstick(None, Reference("the baseline", other.interval))
    assert "by at least 33.3 %, except with probability 2e-6." in (
        headline(enclosed(general, 2.0, 3.0, chance=1e-6), yardstick).sentence
    )


def test_a_baseline_counts_only_if_it_is_comparable(general: Any) -> None:
    report, earlier = enclosed(general, 2.0, 3.0), Reference("analysis 1", Interval(lower=1.0, upper=1.0))
    for compatible, name in ((True, "the baseline"), (False, "analysis 1")):
        compared = BaselineComparison(compatible=compatible, differences=[], allowed=[])
        verdict = Verdict(outcome="pass", message="", rules=[], baseline=compared)
        found = yardstick_of(None, report, verdict, earlier)
        assert found.reference is not None
        assert found.reference.name == name


def test_otherwise_the_sentence_says_where_the_curvature_is(perceptron: Any) -> None:
    assert headline(perceptron.report).sentence == (
        "Of the curvature (‖H‖_F²), 17.6 % is in layer w0 alone and 12.6 % comes from row 5 of the batch; "
        "the Wolkowicz-Styan bound is 2.37 times λ_max."
    )


@pytest.mark.parametrize("rate", [None, 0.1])
def test_every_rendering_has_the_same_words(case: Any, rate: float | None) -> None:
    yardstick = Yardstick(rate)
    found = headline(case.report, yardstick)
    page = render_html(case.report, case.verdict, yardstick)
    assert f'</p>\n<p class="lead">{symbols(found.sentence)}</p>' in page
    [hero] = re.findall(r'<p class="hero">(.*?)</p>', page)
    assert html.unescape(re.sub("<[^>]+>", "", hero)).replace("\u00a0", " ") == found.value.replace("_max", "max")
    assert f"**{plain(found.value)}**\n\n{plain(found.sentence)}\n" in render_markdown(
        case.report, case.verdict, yardstick
    )
    written = html.unescape(render_junit(case.report, case.verdict, yardstick))
    assert f"{found.value}\n{found.sentence}" in written
    assert f"{found.value}\n{found.sentence}\n" in summarize(case.report, yardstick)


def test_every_check_that_is_made_has_words() -> None:
    assert set(FAILURES) <= set(checks.WORDS)
