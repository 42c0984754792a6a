"""Time and memory of the exact moments of a 784-128-10 tanh network: median of repeated runs, one process a size.

python benchmarks/closed_form.py [samples …]
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys

RUNS = {1000: 7, 20_000: 1}
ENVIRONMENT = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
"""As in the service's children."""
MEASURE = """
import json, resource, sys
import numpy as np, torch
import wsb_engine as wsb
from torch import nn

samples, runs, dtype = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.manual_seed(0)
model = wsb.from_module(nn.Sequential(nn.Linear(784, 128), nn.Tanh(), nn.Linear(128, 10)))
rng = np.random.default_rng(0)
batch = wsb.Batch(rng.random((samples, 784), dtype=np.float32), rng.integers(0, 10, samples))
options = wsb.Options(dtype=dtype)
wsb.analyze(model, wsb.Batch(batch.x["x"][:64], batch.y[:64]), options)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
seconds = [wsb.analyze(model, batch, options).timings["moments"] for _ in range(runs)]
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"seconds": seconds, "mebibytes": (after - before) / 1024}))
"""


def main() -> None:
    for samples in [int(word) for word in sys.argv[1:]] or list(RUNS):
        for dtype in ("float64", "float32"):
            command = [sys.executable, "-c", MEASURE, str(samples), str(RUNS.get(samples, 3)), dtype]
            result = subprocess.run(command, capture_output=True, text=True, check=True, env=ENVIRONMENT)
            measured = json.loads(result.stdout)
            median = statistics.median(measured["seconds"])
            print(
                f"784-128-10, N = {samples:6}, {dtype}: moments {median:8.3f} s (median of {len(measured['seconds'])}, "
                f"{min(measured['seconds']):.3f} to {max(measured['seconds']):.3f}), "
                f"{measured['mebibytes']:.0f} MiB beyond the batch",
                flush=True,
            )


if __name__ == "__main__":
    main()
