"""A small network, its data and its batch, for tests that train it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import wsb_engine as wsb

GUIDE = Path(__file__).parents[2] / "docs" / "training.md"

X = torch.randn(24, 4, generator=torch.Generator().manual_seed(5))
Y = torch.arange(24) % 3
STEPS = 8
"""Optimizer steps of two epochs of ``loader``."""


def require(*modules: str) -> None:
    """Skip the rest of a test file if a module is not installed, unless in CI, where it must be."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing and not os.environ.get("CI"):
        pytest.skip(
            f"{missing[0]} is not installed: pip install --no-deps -r requirements-models.lock", allow_module_level=True
        )


def batch() -> wsb.Batch:
    return wsb.Batch(X[:15], Y[:15])


def network(seed: int = 3) -> nn.Sequential:
    """Every kind of state: parameters, buffers that training changes, and layers that draw random numbers."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.2), nn.Linear(6, 3))


def loader() -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(X, Y), batch_size=6, shuffle=True)


def same(first: Iterable[Tensor], second: Iterable[Tensor]) -> bool:
    """Whether tensors are the same, bit for bit."""
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def example(heading: str) -> str:
    """The Python program under a heading of the guide."""
    section = GUIDE.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    [program] = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert isinstance(program, str)
    return program
