"""Tests run in a short form on every change; ``-m slow`` adds what the full form tries besides."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import Any

import pytest


def full(*values: Any) -> Any:
    """Return a set of parameters that only the full form tries."""
    return pytest.param(*values, marks=pytest.mark.slow)


def crossed(*axes: Iterable[Any], keep: int | None = None) -> list[Any]:
    """Return all combinations; the short form tries as many as the longest axis has values, each value once or more.

    With ``keep`` it tries that many of those, evenly spread.
    """
    indexed = [list(enumerate(axis)) for axis in axes]
    longest = max(map(len, indexed))
    rows = range(longest) if keep is None else _spread(longest, keep)
    short = {tuple(row % len(axis) for axis in indexed) for row in rows}
    found = []
    for combination in product(*indexed):
        values = tuple(value for _, value in combination)
        found.append(values if tuple(index for index, _ in combination) in short else full(*values))
    return found


def thinned(values: Iterable[Any], keep: int) -> list[Any]:
    """Return all values; the short form tries ``keep`` of them, evenly spread."""
    listed = list(values)
    kept = set(_spread(len(listed), keep))
    return [value if index in kept else full(value) for index, value in enumerate(listed)]


def _spread(count: int, keep: int) -> list[int]:
    return [(2 * place + 1) * count // (2 * keep) for place in range(keep)]
