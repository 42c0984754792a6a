"""The examples do what they say."""

from __future__ import annotations

import pytest
from support.examples import load


@pytest.mark.slow
def test_the_penalty_halves_the_sharpness_at_equal_accuracy() -> None:
    example = load("flat_minima")
    (plain, accuracy), (flat, flat_accuracy) = example.sharpness(0.0), example.sharpness(example.STRENGTH)
    assert flat <= plain / 2
    assert flat_accuracy >= accuracy - 0.01
