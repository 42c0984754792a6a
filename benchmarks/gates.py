"""Count the products that a gate takes when it stops as soon as it is decided, beside those to a relative gap of 1e-6.

    python benchmarks/gates.py

The verdicts must be those that the largest eigenvalue of the dense spectrum gives.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import torch
from harness import Row, show
from rounding import networks, trained
from torch import nn

import wsb_engine as wsb
from service.policies import Gate, Policy, evaluate

FACTORS = (0.5, 0.9, 1.1, 2.0)
"""Limits on λ_max, relative to it."""
SAVED = {0.5: 0.7, 0.9: 0.6, 1.1: 0.15, 2.0: 0.3}
"""Least share of the products that each saves."""
SAMPLES = 120


def nets() -> Iterator[tuple[str, wsb.Classifier, wsb.Batch]]:
    for name, module in networks():
        yield f"{name}, trained", *trained(module)
    torch.manual_seed(1)
    untrained = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)).double()
    rng = np.random.default_rng(1)
    yield (
        "64-32-10 tanh, untrained",
        wsb.from_module(untrained),
        wsb.Batch(rng.uniform(size=(SAMPLES, 64)), rng.integers(0, 10, SAMPLES)),
    )


def rows() -> Iterator[Row]:
    for name, classifier, batch in nets():
        options = wsb.Options(moments="none", dtype="float64")
        dense = options.model_copy(update={"enclosure": False, "spectrum": "dense"})
        largest = wsb.analyze(classifier, batch, dense).largest_eigenvalue
        whole = wsb.analyze(classifier, batch, options).enclosure
        assert largest is not None
        assert whole is not None
        decided = options.model_copy(update={"stop": "decided"})
        for factor in FACTORS:
            rule = {"metric": "enclosure.lambda_max", "op": "<=", "limit": factor * largest}
            policy = Policy.model_validate({"rule": [rule]})
            report = wsb.analyze(classifier, batch, decided, decided=Gate.of(policy).decided)
            assert report.enclosure is not None
            products, verdict = report.enclosure.hessian_vector_products, evaluate(policy, report).outcome
            saved = 1 - products / whole.hessian_vector_products
            right = verdict == ("pass" if factor >= 1 else "fail")
            text = f"{verdict}, {products} products instead of {whole.hessian_vector_products}, {saved:.0%} saved"
            limit = f"right, {SAVED[factor]:.0%} saved"
            yield Row(f"λ_max <= {factor:g} λ_max: {name}", text, limit, right and saved >= SAVED[factor])


if __name__ == "__main__":
    sys.exit(not show(rows()))
