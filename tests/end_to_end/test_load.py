"""The load benchmark in its short form: it is the load that is tested, not the speed of this machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "load.py"


@pytest.mark.slow
def test_clients_end_without_an_error_and_without_growth() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(BENCHMARK), "--clients", "6", "--seconds", "10"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    answers = {int(status) for status in re.findall(r"(\d{3}):", run.stdout.split("answers", 1)[1].splitlines()[0])}
    assert answers <= {201, 202, 429}
    start, _, end = map(int, re.findall(r"(\d+)(?=, | MiB at the start)", run.stdout.split("memory", 1)[1]))
    assert end - start < 64
