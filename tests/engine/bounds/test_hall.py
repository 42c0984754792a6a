"""Confidence limits of means of skewed numbers, against bisection of the definition of Hall's transformation."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from wsb_engine.bounds.hall import normal_quantile, row_mean, transformed

CONFIDENCES = [0.5, 0.9, 0.95, 0.999]


def drawn(kind: str, rows: int = 300) -> NDArray[np.float64]:
    rng = np.random.default_rng(rows)
    draw: Callable[..., NDArray[np.float64]] = {"normal": rng.normal, "exponential": rng.exponential}.get(
        kind, lambda size: np.exp(1.7 * rng.normal(size=size))
    )
    values = draw(size=rows)
    return -values if kind == "negative tail" else values


def by_definition(x: NDArray[np.float64], z: float) -> float:
    """μ at which Hall's polynomial in T = √n (x̄ − μ)/σ is z, by bisection; no inverse of it is used."""
    n, mean, sigma = len(x), x.mean(), x.std()
    gamma = ((x - mean) ** 3).mean() / sigma**3

    def polynomial(mu: float) -> float:
        T, root = math.sqrt(n) * (mean - mu) / sigma, math.sqrt(n)
        return T + gamma * T**2 / (3 * root) + gamma**2 * T**3 / (27 * n) + gamma / (6 * root)

    low, high = mean - 100 * sigma, mean + 100 * sigma
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if polynomial(middle) > z else (low, middle)
    return (low + high) / 2


@pytest.mark.parametrize("kind", ["normal", "exponential", "log-normal", "negative tail"])
@pytest.mark.parametrize("confidence", CONFIDENCES)
def test_the_limits_are_those_of_the_definition(kind: str, confidence: float) -> None:
    x = drawn(kind)
    found, z = row_mean(x / len(x), np.full(len(x), 1 / len(x))), normal_quantile(confidence)
    size = x.std()
    assert found.lower(confidence) == pytest.approx(by_definition(x, z), abs=1e-10 * size)
    assert found.upper(confidence) == pytest.approx(by_definition(x, -z), abs=1e-10 * size)


def test_a_quantile_is_that_of_the_tables() -> None:
    assert normal_quantile(0.95) == pytest.approx(1.959963984540054, rel=1e-14)


@settings(deadline=None)
@given(st.integers(0, 1000), st.sampled_from(["normal", "exponential", "log-normal"]))
def test_more_confidence_moves_both_limits_outwards(seed: int, kind: str) -> None:
    x = drawn(kind, rows=200 + seed)
    found = row_mean(x / len(x), np.full(len(x), 1 / len(x)))
    lower, upper = ([end(level) for level in CONFIDENCES] for end in (found.lower, found.upper))
    assert lower == sorted(lower, reverse=True)
    assert upper == sorted(upper)


def test_weights_are_those_of_the_numbers_about_their_mean() -> None:
    x, w = drawn("exponential"), drawn("normal") ** 2
    about = w * (x - (w * x).sum() / w.sum()) / w.mean()
    found = row_mean(w * x / w.sum(), w / w.sum())
    assert found.mean == pytest.approx((w * x).sum() / w.sum())
    assert found.deviation == pytest.approx(about.std())
    assert found.skewness == pytest.approx((about**3).mean() / about.std() ** 3)


def test_rows_without_a_share_change_nothing() -> None:
    x = drawn("exponential")
    terms, shares = x / len(x), np.full(len(x), 1 / len(x))
    more = row_mean(np.append(terms, np.zeros(50)), np.append(shares, np.zeros(50)))
    found = row_mean(terms, shares)
    assert more.rows == len(x)
    assert more.lower(0.95) == pytest.approx(found.lower(0.95), rel=1e-14)
    assert more.upper(0.95) == pytest.approx(found.upper(0.95), rel=1e-14)


def test_equal_rows_leave_a_point() -> None:
    found = row_mean(np.full(300, 0.1 / 300), np.full(300, 1 / 300))
    assert (found.deviation, found.skewness) == (0.0, 0.0)
    assert found.lower(0.95) == found.upper(0.95) == found.mean


def test_an_end_is_moved_from_another_centre_by_as_much() -> None:
    found = row_mean(drawn("exponential") / 300, np.full(300, 1 / 300))
    assert found.upper(0.95, centre=7.0) - 7.0 == pytest.approx(found.upper(0.95) - found.mean, rel=1e-12)


@pytest.mark.parametrize("skewness", [1e-3, 1e-9, 1e-200, -1e-9])
def test_little_skewness_is_nearly_none(skewness: float) -> None:
    assert transformed(0.3, skewness, 300) == pytest.approx(0.3, rel=3 * abs(skewness) + 1e-15)


def test_the_transformation_goes_through_its_inflection_without_a_jump() -> None:
    below, above = (transformed((x - 1) / 8.0 + 8.0 / (6 * 400), 8.0, 400) for x in (0.5 - 1e-12, 0.5 + 1e-12))
    assert below == pytest.approx(above, rel=1e-10)
    assert transformed(-0.5, 8.0, 400) < transformed(-0.2, 8.0, 400) < transformed(0.0, 8.0, 400)
