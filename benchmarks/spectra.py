"""Compare the certified λ_max with an uncertified Lanczos run, and the dense spectrum with torch.func.hessian.

./scripts/peers && PYTHONPATH=.peers .venv/bin/python benchmarks/spectra.py
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import warnings
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from harness import Row, alternate, duration, ratio, show
from torch import nn

import wsb_engine as wsb

DIMENSIONS = {3000: ((30, 60, 18), 150), 6000: ((60, 80, 14), 60)}
"""Widths and samples of the networks for dense spectra, by their approximate number of parameters."""
DENSE = """
import json, resource, sys, time
import numpy as np, torch
from torch import nn
import wsb_engine as wsb

who, (sizes, samples) = sys.argv[1], json.loads(sys.argv[2])
torch.manual_seed(0)
module = nn.Sequential(nn.Linear(sizes[0], sizes[1]), nn.Tanh(), nn.Linear(sizes[1], sizes[2])).double()
random = np.random.default_rng(0)
x, y = random.random((samples, sizes[0])), random.integers(0, sizes[2], samples)
X, Y = torch.from_numpy(x), torch.from_numpy(y)
parameters = {name: tensor.detach() for name, tensor in module.named_parameters()}
nn.functional.cross_entropy(module(X), Y).backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
started = time.perf_counter()
if who == "ours":
    options = wsb.Options(moments="none", enclosure=False, spectrum="dense", dtype="float64", device="cpu")
    values = wsb.analyze(wsb.from_module(module), wsb.Batch(x, y), options).spectrum.eigenvalues
    top = values[0]
else:
    def loss(p):
        return nn.functional.cross_entropy(torch.func.functional_call(module, p, (X,)), Y)
    blocks = torch.func.hessian(loss)(parameters)
    H = torch.cat([
        torch.cat([blocks[a][b].reshape(parameters[a].numel(), -1) for b in parameters], dim=1) for a in parameters
    ])
    top = float(torch.linalg.eigvalsh(H)[-1])
seconds = time.perf_counter() - started
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"seconds": seconds, "mebibytes": (after - before) / 1024, "top": top}))
"""


def digits() -> tuple[nn.Module, np.ndarray, np.ndarray]:
    """Return a small network trained on scikit-learn's digits, and the data."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x, y = (data.data / 16).astype(np.float32), data.target.astype(np.int64)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 64), nn.Tanh(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    X, Y = torch.from_numpy(x), torch.from_numpy(y)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(X), Y).backward()
        optimizer.step()
    return module.double(), x.astype(np.float64), y


def largest() -> Iterator[Row]:
    """Compare λ_max enclosed to 1e-6 with a Ritz pair of the same residual, which certifies nothing."""
    from hessian_eigenthings import EigenResult, HessianOperator, lanczos, supervised_loss

    module, x, y = digits()
    loader = [(torch.from_numpy(x), torch.from_numpy(y))]
    options = wsb.Options(moments="none", ends="largest", relative_gap=1e-6, dtype="float64", device="cpu")
    classifier, batch = wsb.from_module(module), wsb.Batch(x, y)

    def ours() -> wsb.Report:
        return wsb.analyze(classifier, batch, options)

    def theirs(steps: int) -> EigenResult:
        operator = HessianOperator(module, loader, supervised_loss(nn.functional.cross_entropy))
        return lanczos(operator, k=1, max_iter=steps, tol=1e-6, which="LA", seed=0)

    # It takes a fixed number of steps, two by default: here as many as the residual needs. Finding that is not timed.
    enough = next(steps for steps in range(4, len(x), 2) if bool(theirs(steps).converged.all()))
    interval = ours().enclosure.lambda_max
    value = float(theirs(enough).eigenvalues[0])
    assert abs(value - interval.lower) <= 1e-4 * value, f"{value} is not in [{interval.lower}, {interval.upper}]"
    seconds = alternate({"ours": ours, "theirs": partial(theirs, enough)}, repeats=7)
    faster = ratio(seconds, "ours", "theirs")
    yield Row(
        "λ_max of a 64-128-64-10 network, N = 1797, to 1e-6",
        f"certified in {duration(seconds['ours'])} (gap {interval.relative_gap:.0e}), "
        f"hessian-eigenthings, uncertified, {enough} steps: {duration(seconds['theirs'])}: {faster:.2f} ×",
        "no slower",
        faster >= 1,
    )


def dense(*, repeats: int = 5) -> Iterator[Row]:
    """Compare dense spectra, each run in a separate process because memory is compared as well."""
    for about, (sizes, samples) in DIMENSIONS.items():
        runs: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
        for _ in range(repeats):
            for who, results in runs.items():
                command = [sys.executable, "-c", DENSE, who, json.dumps([sizes, samples])]
                done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
                results.append(json.loads(done.stdout))
        a, b = runs["ours"], runs["theirs"]
        assert abs(a[0]["top"] - b[0]["top"]) <= 1e-9 * b[0]["top"]
        ours, theirs = (statistics.median(run["seconds"] for run in runs[who]) for who in runs)
        mine, other = (statistics.median(run["mebibytes"] for run in runs[who]) for who in runs)
        yield Row(
            f"dense spectrum, P ≈ {about}, N = {samples}, float64",
            f"{ours:.1f} s and {mine:.0f} MiB; torch.func.hessian + eigvalsh {theirs:.1f} s and {other:.0f} MiB",
            "faster, in less memory",
            ours < theirs and mine < other,
        )


def rows() -> Iterator[Row]:
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    yield from largest()
    yield from dense()


if __name__ == "__main__":
    sys.exit(not show(rows()))
