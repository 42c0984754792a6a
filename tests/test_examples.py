"""The examples do what they say."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_penalty_halves_the_sharpness_at_equal_accuracy() -> None:
    example = load("flat_minima")
    (plain, accuracy), (flat, flat_accuracy) = example.sharpness(0.0), example.sharpness(example.STRENGTH)
    assert flat <= plain / 2
    assert flat_accuracy >= accuracy - 0.01
