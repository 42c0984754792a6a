from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.service import onnx_mlp

HEAVY = ("torch", "onnx", "onnxruntime", "numpy")
SLOW = ("asyncio", "fastapi", "opentelemetry", "pydantic_settings", "rich", "structlog")


def test_no_process_of_the_service_loads_the_engine() -> None:
    modules = ("service.server.app", "service.server.serve", "service.worker.worker", "service.cli.commands")
    assert loaded(f"import {', '.join(modules)}", HEAVY) == "[]"


def test_the_help_loads_nothing_slow() -> None:
    program = "from service.cli.commands import app\napp(['--help'], standalone_mode=False)"
    assert loaded(program, HEAVY + SLOW) == "[]"


def test_no_command_loads_the_web_framework() -> None:
    names = ("flags", "evaluate", "outputs", "summary")
    program = f"import service.rendering\nfrom service.cli import {', '.join(names)}"
    assert loaded(program, ("fastapi", "sqlalchemy", *HEAVY)) == "[]"


@pytest.mark.slow
def test_a_model_of_one_file_is_sent_to_a_server_without_the_engine(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(onnx_mlp())
    call = f"app(['analyze', '{tmp_path}/model', '{tmp_path}/model', '--url', 'http://127.0.0.1:9'])"
    program = f"""
from contextlib import suppress
from service.cli.commands import app
with suppress(SystemExit):
    {call}
"""
    assert loaded(program, ("torch", "onnxruntime")) == "[]"


def loaded(program: str, names: tuple[str, ...]) -> str:
    """Which of the modules a new process has loaded after a program."""
    program = f"import sys\n{program}\nprint([name for name in {names} if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = [sys.executable, "-c", program]
    result = subprocess.run(run, env=environment, capture_output=True, text=True, check=True)
    return result.stdout.splitlines()[-1]
