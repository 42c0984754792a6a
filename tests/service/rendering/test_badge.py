"""Badges say no digit that is not certified."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.rendering.badge import Badge, certified, render_badge
from wsb_engine.report import Interval

NUMBERS = st.floats(-1e6, 1e6, allow_subnormal=False)


@pytest.mark.parametrize(
    ("lower", "upper", "text"),
    [
        (1.204128, 1.2041281, "1.20413"),
        (1.2041, 1.2043, "1.204"),
        (0.96, 1.04, "1"),
        (0.5, 1.5, "[0.5, 1.5]"),
        (-0.25, 0.5, "[-0.25, 0.5]"),
        (0.0, 0.0, "0"),
    ],
)
def test_only_certified_digits_are_written(lower: float, upper: float, text: str) -> None:
    assert certified(Interval(lower=lower, upper=upper)) == text


@given(NUMBERS, NUMBERS, st.floats(0, 1))
def test_what_is_written_is_the_number_rounded_wherever_it_is(one: float, other: float, share: float) -> None:
    lower, upper = sorted((one, other))
    text = certified(Interval(lower=lower, upper=upper))
    if text.startswith("["):
        return
    inside = min(max(lower + share * (upper - lower), lower), upper)
    digits = len(text.lstrip("-0.").replace(".", "").partition("e")[0]) or 1
    # As close as rounding to the last digit that is written.
    last = 10.0 ** (math.floor(math.log10(abs(float(text)))) - digits + 1) if float(text) else 0.0
    assert abs(float(text) - inside) <= 0.5 * last * (1 + 1e-9)


def test_a_badge_is_an_image_with_a_text_for_everyone() -> None:
    image = ElementTree.fromstring(render_badge(Badge("<&>", "#123")))  # noqa: S314 - our own
    assert image.attrib["aria-label"] == "λ_max: <&>"
    assert [child.text for child in image][-2:] == ["λ_max", "<&>"]
