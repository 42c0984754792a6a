"""How often the bound from the start vector fails: no more often than it says, whatever rounds."""

from __future__ import annotations

import math
import os
from itertools import product

import numpy as np
import pytest
import torch
from support.forms import full

from wsb_engine.bounds.lanczos_polynomial import Recurrence, largest_eigenvalue_bound
from wsb_engine.spectrum.lanczos import Lanczos
from wsb_engine.spectrum.run import Run
from wsb_engine.spectrum.three_vectors import ThreeVectors

SEEDS = int(os.environ.get("WSB_TEST_SEEDS", "120"))
ORDER = 120
STEPS = (2, 4, 7, 11)
RISKS = (0.05, 0.2)


def spectrum(name: str) -> np.ndarray:
    rng = np.random.default_rng(7)
    bulk = rng.normal(size=ORDER)
    match name:
        case "outliers":
            return np.concatenate([[9.0, 5.0, 4.9], 0.1 * bulk[3:]])
        case "bulk":
            return np.abs(bulk)
        case "power law":
            return np.arange(1, ORDER + 1) ** -1.5
        case "near multiple of the identity":
            return np.concatenate([[1 + 1e-6], np.ones(ORDER - 1)])
        case "identity with fuzz":
            return 1 + 1e-9 * bulk
        case "cluster":
            return np.concatenate([1 + 1e-10 * np.arange(5), 0.5 * np.abs(bulk[5:]) / np.abs(bulk).max()])
        case "two points":
            return np.concatenate([np.ones(ORDER // 2), np.zeros(ORDER - ORDER // 2)])
        case "rival":
            return np.concatenate([[1.0, 1 - 1e-5], 0.3 * np.abs(bulk[2:]) / np.abs(bulk).max()])
        case "tiny":
            return 1e-165 * np.concatenate([[3.0], np.abs(bulk[1:])])
    raise KeyError(name)


SPECTRA = (
    *("outliers", "bulk", "power law", "near multiple of the identity", "identity with fuzz"),
    *("cluster", "two points", "rival", "tiny"),
)


def misses(kind: type[Run], values: np.ndarray, dtype: torch.dtype, unit: float, seeds: int) -> list[int]:
    """Runs in which λ_max lies above the bound at any of the steps, for each risk."""
    H = torch.from_numpy(values)
    single = H.to(dtype)
    truth, failed = float(values.max()), [0] * len(RISKS)
    if dtype == torch.float32:
        truth = float(single.double().max())
    for seed in range(seeds):

        def multiply(v: torch.Tensor) -> torch.Tensor:
            return (single * v.to(dtype)).double()

        run = kind(multiply, ORDER, torch.device("cpu"), seed, unit, homogeneity=True)
        above = [math.inf] * len(RISKS)
        while run.steps < STEPS[-1] and run.first_breakdown is None:
            run.step()
            if run.steps not in STEPS:
                continue
            epsilons = [e + v for e, v in zip(run.errors, run.product_rounding(), strict=True)]
            recurrence = Recurrence(run.alphas, run.betas, run.gammas, epsilons)
            for i, risk in enumerate(RISKS):
                bound = largest_eigenvalue_bound(recurrence, ORDER, risk) / run.scaling
                above[i] = min(above[i], bound)
        for i, bound in enumerate(above):
            failed[i] += bound < truth
    return failed


RUNS = list(product((Lanczos, ThreeVectors), ("float64", "float32")))
SHORT = list(zip(("bulk", "cluster", "tiny", "near multiple of the identity"), RUNS, strict=True))


@pytest.mark.parametrize(
    ("name", "run", "seeds"),
    [*((*pair, SEEDS // 2) for pair in SHORT), *(full(*pair, SEEDS) for pair in product(SPECTRA, RUNS))],
)
def test_misses_are_no_more_frequent_than_stated(name: str, run: tuple[type[Run], str], seeds: int) -> None:
    kind, dtype = run
    if dtype == "float32" and name == "tiny":
        pytest.skip("below the range of float32")
    torch.set_num_threads(1)
    unit = 2.0**-53 if dtype == "float64" else 2.0**-24
    counts = misses(kind, spectrum(name), getattr(torch, dtype), unit, seeds)
    for risk, count in zip(RISKS, counts, strict=True):
        print(f"{kind.__name__}, {name}, {dtype}: {count / seeds:.4f} at δ = {risk}")
        assert count / seeds <= risk + 3 * math.sqrt(risk * (1 - risk) / seeds)
