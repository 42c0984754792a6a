"""Tests run in a short form on every change; ``-m slow`` adds what the full form tries besides."""

from __future__ import annotations

from typing import Any

import pytest


def full(*values: Any) -> Any:
    """Return a set of parameters that only the full form tries."""
    return pytest.param(*values, marks=pytest.mark.slow)
