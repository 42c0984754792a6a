"""Measure what accounting for rounding costs, and how narrow enclosures are if a gap of 1e-12 is requested.

    python benchmarks/rounding.py

The cost is that of the phase `rounding` and of the products that confirm the enclosure. It is compared with the rest of
an analysis without moments, which would take even longer for networks without a closed form.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator

import numpy as np
import torch
from harness import Row, duration, show
from torch import Tensor, nn

import wsb_engine as wsb

REPEATS = 5
HELD_OUT = 120
WIDTHS = {"proven": 1e-9, "measured": 1e-11}
"""Largest relative width of λ_max, by how its rounding is known."""
SHARE, PRODUCTS = 0.15, 30
"""Limits on the cost: a share of the rest, or a number of products, whichever is more."""


class Encoder(nn.Module):
    """A transformer encoder that reads an image row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Linear(8, 16)
        self.positions = nn.Parameter(0.1 * torch.randn(8, 16))
        layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(self.layers(self.embedding(x.unflatten(1, (8, 8))) + self.positions).mean(1))
        return logits


def networks() -> Iterator[tuple[str, nn.Module]]:
    torch.manual_seed(0)
    yield "64-32-10 tanh", nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    convolutions = nn.Conv2d(1, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.GELU()
    yield "two convolutions", nn.Sequential(nn.Unflatten(1, (1, 8, 8)), *convolutions, nn.Flatten(), nn.Linear(256, 10))
    yield "encoder, two layers", Encoder()


def trained(module: nn.Module) -> tuple[wsb.Classifier, wsb.Batch]:
    """Train on scikit-learn's digits; return the classifier and a held-out batch."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    x, y = (digits.data[order] / 16).astype(np.float32), digits.target[order].astype(np.int64)
    X, Y = torch.from_numpy(x[HELD_OUT:]), torch.from_numpy(y[HELD_OUT:])
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(X), Y).backward()
        optimizer.step()
    return wsb.from_module(module.double().eval()), wsb.Batch(x[:HELD_OUT].astype(np.float64), y[:HELD_OUT])


def rows() -> Iterator[Row]:
    for name, module in networks():
        classifier, batch = trained(module)
        narrow = wsb.analyze(classifier, batch, wsb.Options(dtype="float64", relative_gap=1e-12)).enclosure
        assert narrow is not None
        assert narrow.rounding is not None
        top, how = narrow.lambda_max, narrow.rounding.how
        width, most = (top.upper - top.lower) / abs(top.upper), WIDTHS[how]
        text = f"relative width {width:.1e}, {top.kind}, rounding {how}"
        yield Row(f"λ_max to 1e-12: {name}", text, f"at most {most:g}", width <= most)
        seconds, spent, allowed = [], [], []
        for _ in range(REPEATS):
            started = time.perf_counter()
            report = wsb.analyze(classifier, batch, wsb.Options(dtype="float64", moments="none"))
            seconds.append(time.perf_counter() - started)
            assert report.enclosure is not None
            product = report.timings["enclosure"] / report.enclosure.hessian_vector_products
            spent.append(report.timings["rounding"] + 2 * product)
            allowed.append(max(SHARE * (seconds[-1] - spent[-1]), PRODUCTS * product))
        met = statistics.median(spent) <= statistics.median(allowed)
        limit = f"at most {duration(allowed).split(' (')[0]}"
        yield Row(f"cost of rounding: {name}", f"{duration(spent)} of {duration(seconds)}", limit, met)


if __name__ == "__main__":
    sys.exit(not show(rows()))
