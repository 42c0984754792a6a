"""What large batches cost in time and memory; minutes long."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

MEASURE = """
import json, resource, sys
import numpy as np, torch
import wsb_engine as wsb
from torch import nn

samples, widths = int(sys.argv[1]), [int(word) for word in sys.argv[2].split("-")]
options = wsb.Options(**json.loads(sys.argv[3]))
torch.manual_seed(0)
layers = [part for a, b in zip(widths, widths[1:]) for part in (nn.Linear(a, b), nn.Tanh())]
model = wsb.from_module(nn.Sequential(*layers[:-1]))
rng = np.random.default_rng(0)
batch = wsb.Batch(rng.random((samples, widths[0]), dtype=np.float32), rng.integers(0, 10, samples))
small = wsb.from_module(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)))
wsb.analyze(small, wsb.Batch(np.zeros((2, 4)), np.array([0, 1])))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
report = wsb.analyze(model, batch, options)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({
    "seconds": report.timings.get("moments"),
    "total": report.timings["total"],
    "parameters": report.model.parameters.count,
    "products": report.enclosure.hessian_vector_products,
    "bytes": (after - before) * 1024,
    "dtype": report.engine.dtype,
    "failed": [check.name for check in report.checks if not check.passed],
}))
"""


def measure(samples: int, widths: str = "784-128-10", **options: object) -> dict[str, object]:
    command = [sys.executable, "-c", MEASURE, str(samples), widths, json.dumps(options)]
    # As in the service's children: threads that spin while they wait lose to anything else that runs.
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
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
    measured = measure(20_000, memory_limit=1 << 30)
    assert measured["bytes"] < 2 << 30
    assert not measured["failed"]


@pytest.mark.slow
def test_five_million_parameters_stay_within_the_memory_that_they_are_given() -> None:
    measured = measure(300, "1000-2000-1490-10", moments="none", memory_limit=3 << 30)
    assert measured["parameters"] >= 4_990_000
    assert measured["bytes"] < 3 << 30
    assert not measured["failed"]


MILLION = """
import resource, sys, torch, wsb
import wsb_engine.sources.batch_file as batch_file
from wsb_engine.analysis import parts
from wsb_engine.analysis.monitor import Monitor
from wsb_engine.analysis.problem import pose

batch_file.MAPPED_FROM = 1 << 20
torch.set_num_threads(1)
options = wsb.Options(memory_limit=32 << 20)
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 50))
classifier, few = wsb.from_module(model), wsb.Batch(torch.randn(9, 4), [0, 1, 2] * 3)

def analysed(batch):
    problem = pose(classifier, batch, options, Monitor(options, None, 0.0))
    product = problem.hessian_product(1)
    return parts.loss(problem).value, float(product.vector(torch.ones(product.parameters)).norm())

analysed(few)
used = int(open("/proc/self/statm").read().split()[5]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_DATA, (used + (96 << 20), used + (96 << 20)))
print(*analysed(wsb.load_batch(sys.argv[1])))
"""


@pytest.mark.slow
def test_a_million_rows_of_fifty_classes_need_no_table_of_labels_or_logits(tmp_path: Path) -> None:
    rows, generator = 1_000_000, np.random.default_rng(0)
    x = generator.standard_normal((rows, 4), dtype=np.float32)
    np.savez(tmp_path / "batch.npz", x=x, y=generator.integers(50, size=rows))
    command = [sys.executable, "-c", MILLION, str(tmp_path / "batch.npz")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loss, product = map(float, done.stdout.split())
    assert 3 < loss < 6
    assert 0 < product < 1e3
