"""Live modules that the user names: found in the current folder, and refused with a sentence."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from torch import nn

from service.cli.live import UnusableModuleError, live_module

SOURCE = """
import torch
model = torch.nn.Linear(4, 3)
number = 3
def make():
    return torch.nn.Linear(2, 2)
def broken():
    raise ValueError("no weights")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "live_example.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "live_example", raising=False)
    return tmp_path


@pytest.mark.usefixtures("folder")
def test_a_module_and_a_function_that_returns_one_are_found() -> None:
    path = list(sys.path)
    model, made = live_module("live_example:model"), live_module("live_example:make")
    assert isinstance(model, nn.Linear)
    assert isinstance(made, nn.Linear)
    assert sys.path == path


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("live_example", "module:attribute"),
        ("live_example:number", "of type int"),
        ("live_example:nothing", "AttributeError"),
        ("live_example:broken", "no weights"),
        ("no_such_module:model", "can't be imported"),
    ],
)
def test_anything_else_is_refused(place: str, said: str) -> None:
    with pytest.raises(UnusableModuleError, match=said):
        live_module(place)
