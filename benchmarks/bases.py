"""Compare a certificate from three vectors with one from a full basis.

    python benchmarks/bases.py

Both must hold the largest eigenvalue of the dense spectrum; what differs is the number of products.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import gates
import numpy as np
from harness import Row, show
from rounding import networks

import wsb

SAMPLES = 30
"""Samples of each batch: a dense spectrum takes as many products as there are parameters."""
SLACK = 1e-12
"""Allowed distance of the dense λ_max from an interval, relative to it: the eigensolver rounds it too."""
OPTIONS = wsb.Options(moments="none", dtype="float64")
Basis = Literal["full", "three_vectors"]


@dataclass(frozen=True)
class Certificate:
    """Where λ_max is, and what that took."""

    lower: float
    upper: float
    gap: float | None
    steps: int
    products: int
    """Products of all phases: steps, a second pass, confirmations and those that measure rounding."""

    def holds(self, value: float) -> bool:
        allowed = SLACK * abs(value)
        return self.lower - allowed <= value <= self.upper + allowed

    def __str__(self) -> str:
        gap = "no gap" if self.gap is None else f"gap {self.gap:.1e}"
        return f"{gap}, {self.steps} steps, {self.products} products"


def nets() -> Iterator[tuple[str, wsb.Classifier, wsb.Batch]]:
    """Yield three trained and two untrained networks, small enough for a dense spectrum."""
    for name, classifier, batch in gates.nets():
        yield name, classifier, wsb.Batch(batch.x["x"][:SAMPLES], batch.y[:SAMPLES])
    rng = np.random.default_rng(2)
    batch = wsb.Batch(rng.uniform(size=(SAMPLES, 64)), rng.integers(0, 10, SAMPLES))
    yield "two convolutions, untrained", wsb.from_module(dict(networks())["two convolutions"].double()), batch


def certified(classifier: wsb.Classifier, batch: wsb.Batch, basis: Basis) -> Certificate:
    """Enclose λ_max at the default gap."""
    report = wsb.analyze(classifier, batch, OPTIONS.model_copy(update={"basis": basis}))
    assert report.enclosure is not None
    assert report.enclosure.basis == basis
    end = report.enclosure.lambda_max
    return Certificate(
        end.lower,
        end.upper,
        end.relative_gap,
        report.enclosure.hessian_vector_products,
        sum((report.products or {}).values()),
    )


def rows() -> Iterator[Row]:
    dense = OPTIONS.model_copy(update={"enclosure": False, "spectrum": "dense"})
    for name, classifier, batch in nets():
        report = wsb.analyze(classifier, batch, dense)
        largest = report.largest_eigenvalue
        assert largest is not None
        found = {basis: certified(classifier, batch, basis) for basis in get_args(Basis)}
        yield Row(
            f"{name}, P = {report.model.parameters.count:,}: λ_max {largest:.6g}",
            "; ".join(f"{basis}: {certificate}" for basis, certificate in found.items()),
            "both hold the dense λ_max",
            all(certificate.holds(largest) for certificate in found.values()),
        )


if __name__ == "__main__":
    sys.exit(not show(rows()))
