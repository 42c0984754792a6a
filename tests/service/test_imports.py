from __future__ import annotations

import os
import subprocess
import sys

import pytest

HEAVY = ("torch", "onnx", "onnxruntime", "numpy")


@pytest.mark.parametrize("module", ["service.app", "service.serve", "service.worker", "service.cli"])
def test_a_process_of_the_service_does_not_load_the_engine(module: str) -> None:
    program = f"import sys, {module}\nprint([name for name in {HEAVY} if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = [sys.executable, "-c", program]
    result = subprocess.run(run, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
