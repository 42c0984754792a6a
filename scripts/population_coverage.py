"""Measure how often the interval for the distribution's λ_max covers it (docs/mathematics.md, section 14).

    ./scripts/coverage [--data fashion-mnist|digits] [--rows 256 1024] [--draws 200] [--epochs 12]

All rows of a data set are the population, whose λ_max is computed. Batches are drawn from it with replacement, and each
is analysed with the option population. Ends with 1 if fewer intervals cover λ_max than the confidence less three
standard errors. Fashion-MNIST is that of Debian (apt install dataset-fashion-mnist): 60 000 rows, and 10 000 others on
which the network is trained. The digits are scikit-learn's, 1 797, on which it is trained itself: what must not depend
on the draws are its parameters.
"""

from __future__ import annotations

import argparse
import gzip
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import wsb_engine
from wsb_engine import Batch, Options, Report

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
HIDDEN = 24
STANDARD_ERRORS = 3.0
"""Standard errors of the draws by which the coverage may fall short of the confidence."""
FAST = {"moments": "none", "ends": "largest", "relative_gap": 1e-4, "dtype": "float64", "device": "cpu"}
"""Options of both the population and the draws."""

Rows = tuple[NDArray[np.float64], NDArray[np.int64]]


@dataclass(frozen=True)
class Coverage:
    """What became of the draws of one number of rows; lengths relative to the population's λ_max."""

    rows: int
    draws: int
    refused: int
    """Draws that the analysis gave no interval for."""
    below: int
    """Draws whose interval lies below λ_max: the upper end fails."""
    above: int
    """Draws whose interval lies above λ_max: the lower end fails."""
    ends: tuple[float, float]
    """Means of the lower and the upper end."""
    batch: tuple[float, float, float]
    """Mean and standard deviation of the batch's λ_max, and the mean width of its enclosure."""
    estimate: tuple[float, float]
    """Mean and standard deviation of the point estimate."""
    rows_for_ten_percent: tuple[float, float]
    """Quartiles."""

    @property
    def covered(self) -> float:
        return 1 - (self.below + self.above) / (self.draws - self.refused)

    def least(self, confidence: float) -> float:
        """Return the least coverage that these draws allow."""
        return confidence - STANDARD_ERRORS * math.sqrt(confidence * (1 - confidence) / (self.draws - self.refused))

    def __str__(self) -> str:
        n, width = self.draws - self.refused, self.ends[1] - self.ends[0]
        return (
            f"n = {self.rows}: {self.covered:.3f} of {n} intervals cover λ_max (the lower end fails in "
            f"{self.above / n:.3f}, the upper in {self.below / n:.3f}; {self.refused} refused)\n"
            f"  interval/λ_max: [{self.ends[0]:.3f}, {self.ends[1]:.3f}] on average, width {width:.3f}; the batch's "
            f"λ_max: mean {self.batch[0]:.3f}, standard deviation {self.batch[1]:.3f}, enclosed within "
            f"{self.batch[2]:.1g}\n"
            f"  point estimate: mean {self.estimate[0]:.3f}, standard deviation {self.estimate[1]:.3f}; rows for "
            f"10 %: {self.rows_for_ten_percent[0]:.0f} to {self.rows_for_ten_percent[1]:.0f} (quartiles)"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scripts/coverage", description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=("fashion-mnist", "digits"), default="fashion-mnist")
    parser.add_argument("--folder", type=Path, default=FASHION_MNIST, help="folder of Fashion-MNIST")
    parser.add_argument("--rows", type=int, nargs="+", default=[256, 1024], help="rows of a batch")
    parser.add_argument("--draws", type=int, default=200, help="batches of each number of rows")
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--epochs", type=int, default=12, help="epochs of training; 0 for an untrained network")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows, others = digits() if given.data == "digits" else fashion_mnist(given.folder)
    module = trained(others, given.epochs, given.seed)
    truth = lambda_max(module, rows)
    print(
        f"{given.data}, {len(rows[1])} rows, {rows[0].shape[1]}-{HIDDEN}-10 tanh, {given.epochs} epochs: "
        f"λ_max = {truth:.4f}",
        flush=True,
    )
    is_enough = True
    for count in given.rows:
        started = time.monotonic()
        found = coverage(module, rows, truth, count, given.draws, given.confidence, given.seed)
        print(f"{found}\n  {time.monotonic() - started:.0f} s", flush=True)
        is_enough &= found.covered >= found.least(given.confidence)
    return int(not is_enough)


def coverage(
    module: torch.nn.Module, rows: Rows, truth: float, count: int, draws: int, confidence: float, seed: int = 0
) -> Coverage:
    """Analyse many batches of ``count`` rows, drawn independently, and compare each interval with the truth."""
    reports = list(_reports(module, rows, count, draws, confidence, seed))
    found = [report.population for report in reports if report.population is not None]
    kept = [report for report in reports if report.population is not None]
    ends = np.array([(each.lambda_max.lower, each.lambda_max.upper) for each in found]) / truth
    tops = [report.enclosure.lambda_max for report in kept if report.enclosure is not None]
    batch = np.array([each.lower for each in tops]) / truth
    widths = np.array([each.upper - each.lower for each in tops]) / truth
    estimates = np.array([each.estimate for each in found]) / truth
    return Coverage(
        rows=count,
        draws=draws,
        refused=draws - len(found),
        below=int((ends[:, 1] < 1).sum()),
        above=int((ends[:, 0] > 1).sum()),
        ends=(float(ends[:, 0].mean()), float(ends[:, 1].mean())),
        batch=(float(batch.mean()), float(batch.std()), float(widths.mean())),
        estimate=(float(estimates.mean()), float(estimates.std())),
        rows_for_ten_percent=_quartiles([each.rows_for_ten_percent for each in found]),
    )


def _reports(
    module: torch.nn.Module, rows: Rows, count: int, draws: int, confidence: float, seed: int
) -> Iterator[Report]:
    classifier, (x, y) = wsb_engine.from_module(module), rows
    generator = np.random.default_rng([seed, count])
    for draw in range(draws):
        drawn = generator.integers(len(y), size=count)
        options = Options(population=confidence, seed=draw, **FAST)
        yield wsb_engine.analyze(classifier, Batch(x[drawn], y[drawn]), options)


def _quartiles(numbers: Sequence[float]) -> tuple[float, float]:
    low, high = np.quantile(numbers, (0.25, 0.75))
    return float(low), float(high)


def lambda_max(module: torch.nn.Module, rows: Rows) -> float:
    """Compute λ_max of all rows of the population."""
    enclosure = wsb_engine.analyze(wsb_engine.from_module(module), Batch(*rows), Options(**FAST)).enclosure
    if enclosure is None:
        raise ValueError("the population's λ_max is not enclosed")
    return enclosure.lambda_max.lower


def trained(rows: Rows, epochs: int, seed: int) -> torch.nn.Module:
    """Train a network of one hidden layer by Adam, in batches of 128."""
    torch.manual_seed(seed)
    x, y = torch.from_numpy(rows[0]), torch.from_numpy(rows[1])
    module = torch.nn.Sequential(torch.nn.Linear(x.shape[1], HIDDEN), torch.nn.Tanh(), torch.nn.Linear(HIDDEN, 10))
    module = module.double()
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    for _ in range(epochs):
        for some in torch.randperm(len(y)).split(128):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(module(x[some]), y[some]).backward()
            optimizer.step()
    return module.eval()


def fashion_mnist(folder: Path) -> tuple[Rows, Rows]:
    """Return the 60 000 rows and the 10 000 others, pooled to 7 × 7 pixels of mean 0 and standard deviation 1."""
    parts = {}
    for part in ("train", "t10k"):
        images = _idx(folder / f"{part}-images-idx3-ubyte.gz", 16).reshape(-1, 7, 4, 7, 4)
        parts[part] = (
            images.mean(axis=(2, 4)).reshape(len(images), 49),
            _idx(folder / f"{part}-labels-idx1-ubyte.gz", 8).astype(np.int64),
        )
    return _standardised(parts["train"]), _standardised(parts["t10k"])


def digits() -> tuple[Rows, Rows]:
    """Return scikit-learn's digits twice: training may see the population, as long as it sees no draw from it."""
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    rows = _standardised((found.data / 16, found.target.astype(np.int64)))
    return rows, rows


def _standardised(rows: Rows) -> Rows:
    x, y = rows
    return (x - x.mean()) / x.std(), y


def _idx(path: Path, header: int) -> NDArray[np.uint8]:
    with gzip.open(path) as file:
        return np.frombuffer(file.read(), np.uint8, offset=header)


if __name__ == "__main__":
    raise SystemExit(main())
