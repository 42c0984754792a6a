"""The short form of the tests, which runs on every change, and the full form: ``./scripts/test -m "slow or not slow"``."""

from __future__ import annotations

from typing import Any

import pytest


def full(*values: Any) -> Any:
    """Return a set of parameters that only the full form tries."""
    return pytest.param(*values, marks=pytest.mark.slow)
