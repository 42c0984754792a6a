"""Test the training code for sharpness: fail if a change makes the minimum sharper than the policy allows.

pytest examples/pytest_sharpness.py
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

import wsb_engine as wsb
from service.policies import Policy, evaluate
from wsb_engine.report import Report

LEARNING_RATE = 0.05
POLICY = Policy.model_validate(
    {
        "rule": [
            {"metric": "stability_ratio", "op": "<", "limit": 1.0},
            {"metric": "enclosure.lambda_max", "op": "<=", "limit": 0.1},
            {"metric": "loss.accuracy", "op": ">=", "limit": 0.95},
        ]
    }
)


def train(x: torch.Tensor, y: torch.Tensor) -> nn.Module:
    """Train a small network; put your project's training here."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    optimizer = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE, momentum=0.9)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()
        optimizer.step()
    return module


@pytest.fixture(scope="module")
def report() -> Report:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(150) % 3
    centres = torch.tensor([[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]], dtype=torch.float64)
    x = centres[y] + 0.4 * torch.randn(150, 2, dtype=torch.float64, generator=generator)
    return wsb.analyze(wsb.from_module(train(x, y)), wsb.Batch(x, y))


def test_the_trained_minimum_satisfies_the_policy(report: Report) -> None:
    verdict = evaluate(POLICY, report, learning_rate=LEARNING_RATE)
    assert verdict.outcome == "pass", [rule.message for rule in verdict.rules if rule.outcome != "pass"]  # noqa: S101
