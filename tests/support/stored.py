"""Reports that the tests of renderings store, and matplotlib for those that draw them."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pytest

from wsb_engine.report import Report

CASES = Path(__file__).parents[1] / "service" / "rendering" / "cases"


def stored_report(name: str) -> Report:
    """One of tests/service/rendering/cases."""
    return Report.model_validate(json.loads((CASES / f"{name}.json").read_text(encoding="utf-8"))["report"])


def require_matplotlib() -> None:
    """Skip the module where matplotlib is not installed; fail in CI."""
    if importlib.util.find_spec("matplotlib") is None:
        missing = "matplotlib is not installed: pip install -r requirements-dev.lock"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing, allow_module_level=True)
