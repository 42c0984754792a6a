"""What large batches cost in time and memory; minutes long."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

MEASURE = """
import json, resource, sys
import numpy as np, torch
import wsb_engine as wsb
from torch import nn

samples = int(sys.argv[1])
torch.manual_seed(0)
model = wsb.from_module(nn.Sequential(nn.Linear(784, 128), nn.Tanh(), nn.Linear(128, 10)))
rng = np.random.default_rng(0)
batch = wsb.Batch(rng.random((samples, 784), dtype=np.float32), rng.integers(0, 10, samples))
wsb.analyze(model, wsb.Batch(batch.x["x"][:64], batch.y[:64]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
report = wsb.analyze(model, batch)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"seconds": report.timings["moments"], "bytes": (after - before) * 1024, "dtype": report.engine.dtype,
                  "failed": [check.name for check in report.checks if not check.passed]}))
"""


def measure(samples: int) -> dict[str, object]:
    command = [sys.executable, "-c", MEASURE, str(samples)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    measured: dict[str, object] = json.loads(result.stdout)
    print(measured)
    return measured


@pytest.mark.slow
def test_a_thousand_samples_of_784_features_take_less_than_a_second() -> None:
    measured = measure(1000)
    assert measured["dtype"] == "float64"
    assert measured["seconds"] < 1.0
    assert not measured["failed"]


@pytest.mark.slow
def test_twenty_thousand_samples_stay_within_two_gibibytes() -> None:
    measured = measure(20_000)
    assert measured["bytes"] < 2 << 30
    assert not measured["failed"]
