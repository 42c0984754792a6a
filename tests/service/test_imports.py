from __future__ import annotations

import os
import subprocess
import sys

import pytest

HEAVY = ("torch", "onnx", "onnxruntime", "numpy")
SLOW = ("asyncio", "fastapi", "opentelemetry", "pydantic_settings", "rich", "structlog")


@pytest.mark.parametrize("module", ["service.app", "service.serve", "service.worker", "service.cli"])
def test_a_process_of_the_service_does_not_load_the_engine(module: str) -> None:
    assert loaded(f"import {module}", HEAVY) == "[]"


def test_the_help_loads_nothing_slow() -> None:
    assert loaded("import service.cli\nservice.cli.app(['--help'], standalone_mode=False)", HEAVY + SLOW) == "[]"


@pytest.mark.parametrize("module", ["service.evaluation", "service.check", "service.rendering", "service.summary"])
def test_a_command_does_not_load_the_web_framework(module: str) -> None:
    assert loaded(f"import service.flags, {module}", ("fastapi", "sqlalchemy", *HEAVY)) == "[]"


def loaded(program: str, names: tuple[str, ...]) -> str:
    """Which of the modules a new process has loaded after a program."""
    program = f"import sys\n{program}\nprint([name for name in {names} if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = [sys.executable, "-c", program]
    result = subprocess.run(run, env=environment, capture_output=True, text=True, check=True)
    return result.stdout.splitlines()[-1]
