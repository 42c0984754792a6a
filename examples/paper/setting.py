"""What all parts share: the data, the network and its training, and how λ_max is certified."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import wsb_engine as wsb

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist keeps its files."""
TRAINING_ROWS = 6000
"""Rows of Fashion-MNIST's training set that are read; all 10 000 of its test set are."""
CLASSES = 10
HIDDEN = 24
OPTIONS = wsb.Options(device="cpu", dtype="float64", ends="largest")
"""λ_max in full: moments in closed form, and an enclosure."""
FAST = OPTIONS.model_copy(update={"moments": "none", "relative_gap": 1e-2})
"""An enclosure of λ_max alone, to two digits."""

Rows = tuple[Tensor, Tensor]
"""x, (n, d) float64, and y, (n,) integers."""


@dataclass(frozen=True)
class Setting:
    """What a run is made with."""

    data: str
    train: Rows
    held_out: Rows
    """Rows that no training sees."""
    seed: int = 0
    short: bool = False
    """Fewer cases and steps, which show that the script runs and not more."""

    def take(self, long: Any, short: Any) -> Any:
        """Return what belongs to the length of this run."""
        return short if self.short else long


def fashion_mnist(folder: Path = FASHION_MNIST) -> tuple[str, Rows, Rows]:
    """Read Fashion-MNIST, pooled to 7 × 7 pixels, with the training rows' mean 0 and standard deviation 1."""
    train, held_out = (_pooled(folder, part, count) for part, count in (("train", TRAINING_ROWS), ("t10k", 10_000)))
    return "Fashion-MNIST, pooled to 7 × 7", *_standardised(train, held_out)


def digits(seed: int = 0) -> tuple[str, Rows, Rows]:
    """Return scikit-learn's digits of 8 × 8 pixels, 800 for training and 997 held out."""
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    x, y = torch.from_numpy(found.data), torch.from_numpy(found.target)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    train, held_out = ((x[rows], y[rows]) for rows in (order[:800], order[800:]))
    return "digits of scikit-learn, 8 × 8", *_standardised(train, held_out)


def perceptron(inputs: int, hidden: int, classes: int, seed: int) -> nn.Sequential:
    """Return the smooth network of three layers, with torch's initial weights in float64."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, classes)).double()


def fit(module: nn.Module, rows: Rows, steps: int, learning_rate: float = 0.01) -> nn.Module:
    """Train on all rows at once, by Adam."""
    optimizer = torch.optim.Adam(module.parameters(), lr=learning_rate)
    for _ in range(steps):
        descend(module, rows, optimizer)
    return module


def descend(
    module: nn.Module, rows: Rows, optimizer: torch.optim.Optimizer, penalty: Callable[[], Tensor] | None = None
) -> float:
    """Take one step down the cross-entropy of the rows, and a penalty; return the cross-entropy before it."""
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(module(rows[0]), rows[1])
    (loss if penalty is None else loss + penalty()).backward()
    optimizer.step()
    return loss.item()


def analyse(module: nn.Module, rows: Rows, options: wsb.Options = OPTIONS, state: Any = None) -> wsb.Report:
    """Analyse a network on some rows; a report in which a check failed ends the run.

    Raises:
        RuntimeError: if a check failed, or λ_max is not enclosed.
    """
    report = wsb.analyze(wsb.from_module(module), wsb.Batch(*rows), options, optimizer_state=state)
    if report.enclosure is None or report.failed_checks:
        raise RuntimeError(f"λ_max is not enclosed, or a check failed: {report.failed_checks}")
    return report


def middle(report: wsb.Report) -> float:
    """Return the centre of the interval that encloses λ_max."""
    found = _enclosed(report)
    return (found.lower + found.upper) / 2


def accuracy(module: nn.Module, rows: Rows) -> float:
    """Return the share of rows that are classified as they are labelled."""
    with torch.no_grad():
        return float((module(rows[0]).argmax(1) == rows[1]).double().mean())


def cross_entropy(module: nn.Module, rows: Rows) -> float:
    """Return the loss of the rows."""
    with torch.no_grad():
        return nn.functional.cross_entropy(module(rows[0]), rows[1]).item()


def ranks_agree(one: list[float], other: list[float]) -> float:
    """Return Spearman's rank correlation; 0 if either is constant."""
    from scipy.stats import spearmanr

    if len(set(one)) == 1 or len(set(other)) == 1:
        return 0.0
    return float(spearmanr(one, other).statistic)


def _enclosed(report: wsb.Report) -> Any:
    if report.enclosure is None:
        raise RuntimeError("λ_max is not enclosed")
    return report.enclosure.lambda_max


def _pooled(folder: Path, part: str, count: int) -> Rows:
    """Read the first images of a file, each pixel the mean of 4 × 4, and their labels."""
    images = _bytes(folder / f"{part}-images-idx3-ubyte.gz", header=16, count=count * 784)
    labels = _bytes(folder / f"{part}-labels-idx1-ubyte.gz", header=8, count=count)
    pixels = images.reshape(count, 7, 4, 7, 4).mean(axis=(2, 4)).reshape(count, 49)
    return torch.from_numpy(pixels), torch.from_numpy(labels.astype(np.int64))


def _bytes(path: Path, header: int, count: int) -> Any:
    with gzip.open(path) as file:
        return np.frombuffer(file.read(header + count), np.uint8, offset=header)


def _standardised(train: Rows, held_out: Rows) -> tuple[Rows, Rows]:
    mean, deviation = train[0].mean(), train[0].std()
    return ((train[0] - mean) / deviation, train[1]), ((held_out[0] - mean) / deviation, held_out[1])
