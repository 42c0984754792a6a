"""A rendering is its module and an entry of the registry: media type, suffix and flag follow from it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.service import npz_batch, onnx_mlp
from support.stored import stored_report

# In a separate process: everything that imports the registry must find the one with another entry.
PROGRAM = """
import sys
import types
from pathlib import Path

from service.rendering import registry

toy = types.ModuleType("toy_rendering")
toy.render = lambda report, verdict, yardstick: f"toy of {report.model.parameters.count} parameters"
sys.modules["toy_rendering"] = toy
registry.RENDERINGS += (registry.Rendering("toy", "text/x-toy", "toy", "Write toys.", "toy_rendering:render"),)

from typer.testing import CliRunner

from service.analyses.representations import MEDIA_TYPES
from service.cli import evaluate
from service.cli.commands import app
from service.server.app import create_app
from service.settings import Settings
from service.web.endpoints import _FORMS

specification = create_app(Settings(_env_file=None)).openapi()
content = specification["paths"]["/v1/analyses/{analysis_id}/report"]["get"]["responses"]["200"]["content"]
assert "text/x-toy" in MEDIA_TYPES and "text/x-toy" in content
assert _FORMS["toy"] == "text/x-toy"
runner = CliRunner()
assert "Write toys." in runner.invoke(app, ["analyze", "--help"], env={"COLUMNS": "200"}).output


async def run(*given, **named):
    return Path("report.json").read_text()


evaluate._run_here = run  # how a report is computed is not the point
result = runner.invoke(app, ["analyze", "model.onnx", "batch.npz", "--toy", "-"])
assert result.exit_code == 0, result.output
print(result.stdout)
"""


@pytest.mark.slow  # imports the whole service again
def test_a_new_rendering_has_a_flag_a_media_type_and_a_suffix(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(onnx_mlp())
    (tmp_path / "batch.npz").write_bytes(npz_batch())
    report = stored_report("perceptron")
    (tmp_path / "report.json").write_text(report.model_dump_json(), encoding="utf-8")
    command = [sys.executable, "-c", PROGRAM]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    assert f"toy of {report.model.parameters.count} parameters" in ended.stdout
