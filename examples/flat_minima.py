"""Train a network with and without the Wolkowicz-Styan penalty, and compare the minima.

python examples/flat_minima.py
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn

import wsb_engine as wsb

STRENGTH = 0.1
STEPS = 400
BATCH = 128


def train(strength: float) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Train a 64-24-10 tanh network on 800 digits; return it with 800 other digits."""
    torch.manual_seed(0)
    digits = load_digits()
    x, y = torch.from_numpy(digits.data / 16), torch.from_numpy(digits.target)
    order = torch.randperm(len(y))
    train_rows, test_rows = order[:800], order[800:1600]
    module = nn.Sequential(nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 10)).double()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    for _ in range(STEPS):
        rows = train_rows[torch.randint(len(train_rows), (BATCH,))]
        loss = nn.functional.cross_entropy(module(x[rows]), y[rows])
        if strength:
            loss = loss + strength * wsb.wolkowicz_styan_penalty(module, x[rows], y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return module, x[test_rows], y[test_rows]


def sharpness(strength: float) -> tuple[float, float]:
    """Return λ_max and accuracy on samples that were not used for training."""
    module, x, y = train(strength)
    report = wsb.analyze(wsb.from_module(module), wsb.Batch(x, y))
    if report.enclosure is None:
        raise RuntimeError("the report has no enclosure")
    return report.enclosure.lambda_max.upper, report.loss.accuracy


def main() -> None:
    for strength in (0.0, STRENGTH):
        largest, accuracy = sharpness(strength)
        print(f"penalty {strength:<5} λ_max = {largest:.4f}   accuracy = {accuracy:.4f}", flush=True)


if __name__ == "__main__":
    main()
