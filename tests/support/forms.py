"""Tests run in a short form on every change; ``-m slow`` adds what the full form tries besides."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import Any

import pytest


def full(*values: Any) -> Any:
    """Return a set of parameters that only the full form tries."""
    return pytest.param(*values, marks=pytest.mark.slow)


def crossed(*axes: Iterable[Any]) -> list[Any]:
    """Return all combinations; the short form tries as many as the longest axis has values, each value once or more."""
    indexed = [list(enumerate(axis)) for axis in axes]
    longest = max(map(len, indexed))
    short = {tuple(row % len(axis) for axis in indexed) for row in range(longest)}
    found = []
    for combination in product(*indexed):
        values = tuple(value for _, value in combination)
        found.append(values if tuple(index for index, _ in combination) in short else full(*values))
    return found
