"""The distribution's λ_max from end to end, by the command and over HTTP."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from support.command import wsb_here as wsb
from support.service import StartService, onnx_mlp

from wsb_engine.report import Report


def batch(rows: int) -> bytes:
    rng, buffer = np.random.default_rng(rows), io.BytesIO()
    np.savez(buffer, x=rng.normal(size=(rows, 4)), y=rng.integers(0, 3, rows))
    return buffer.getvalue()


def test_the_command_tells_it_and_judges_by_it(tmp_path: Path) -> None:
    model, rows = tmp_path / "model.onnx", tmp_path / "batch.npz"
    model.write_bytes(onnx_mlp())
    rows.write_bytes(batch(240))
    policy = tmp_path / "policy.toml"
    policy.write_text('[[rule]]\nmetric = "population.lambda_max.upper"\nop = "<="\nlimit = 1000.0\n')
    flags = ("--population", "0.9", "--json", str(tmp_path / "report.json"))
    done = wsb("check", str(model), str(rows), "--policy", str(policy), *flags)
    assert done.returncode == 0, done.stderr
    assert "at 90 % confidence (asymptotic)" in done.stdout
    found = Report.model_validate_json((tmp_path / "report.json").read_bytes()).population
    assert found is not None
    assert (found.confidence, found.rows, found.kind) == (0.9, 240, "asymptotic")


def test_a_confidence_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(onnx_mlp())
    (tmp_path / "batch.npz").write_bytes(batch(240))
    done = wsb("analyze", "model.onnx", "batch.npz", "--population", "95", cwd=tmp_path)
    assert done.returncode == 2
    assert "--population" in done.stderr


@pytest.mark.slow
def test_a_server_answers_with_it_or_says_why_not(start_service: StartService) -> None:
    service = start_service(engine=True)
    for rows, warned in ((240, []), (120, ["population_too_few_rows"])):
        options = json.dumps({"options": {"population": 0.95}}).encode()
        files = {"model": onnx_mlp(), "batch": batch(rows), "request": options}
        response = service.client.post("/v1/analyses", files=files, headers={"Prefer": "wait=60"})
        assert response.status_code == 201, response.text
        report = Report.model_validate_json(response.content)
        assert (report.population is None) == bool(warned)
        codes = [each.code for each in report.warnings if each.code.startswith("population")]
        assert codes == warned
        assert report.enclosure is not None
    unusable = {**files, "request": json.dumps({"options": {"population": 1.5}}).encode()}
    refused = service.client.post("/v1/analyses", files=unusable)
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["pointer"].endswith("/options/population")
