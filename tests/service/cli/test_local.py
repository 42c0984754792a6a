"""Where the curvature is, from end to end: by the command with its renderings and gates, and over HTTP."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.command import wsb_here as wsb
from support.service import StartService, npz_batch, onnx_mlp

from wsb_engine.report import Report

FLAGS = (
    "--layers",
    "certified",
    "--groups",
    "b*",
    "--classes",
    "certified",
    "--gauss-newton",
    "--alignment",
    "--top",
    "2",
)
OPTIONS = {
    "layers": "certified",
    "groups": ["b*"],
    "classes": "certified",
    "gauss_newton": True,
    "alignment": True,
    "top": 2,
}
POLICY = """
[[rule]]
metric = "layers.0.lambda_max.upper"
op = "<="
limit = 1e6

[[rule]]
metric = "gauss_newton.remainder.upper"
op = "<="
limit = 1e6
"""


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    (tmp_path / "model.onnx").write_bytes(onnx_mlp())
    (tmp_path / "batch.npz").write_bytes(npz_batch())
    return str(tmp_path / "model.onnx"), str(tmp_path / "batch.npz")


def check(report: Report) -> None:
    """All parts are there, and each block is no sharper than the whole."""
    assert report.enclosure is not None
    assert report.layers
    assert report.groups
    assert report.classes
    assert report.gauss_newton is not None
    assert report.alignment is not None
    for each in (*report.layers, *report.groups):
        assert each.lambda_max is not None
        assert each.lambda_max.lower <= report.enclosure.lambda_max.upper
    # By Weyl's inequality.
    assert report.gauss_newton.lambda_max is not None
    assert report.gauss_newton.remainder is not None
    reach = report.gauss_newton.lambda_max.upper + report.gauss_newton.remainder.upper
    assert report.enclosure.lambda_max.lower <= reach
    assert len(report.alignment.eigenvectors) == 2
    assert {"davis_kahan_1970", "schraudolph_2002"} <= {each.key for each in report.citations or []}


def test_the_command_answers_in_every_form(files: tuple[str, str], tmp_path: Path) -> None:
    paths = {name: tmp_path / f"report.{name}" for name in ("json", "html", "markdown")}
    (tmp_path / "policy.toml").write_text(POLICY)
    outputs = [word for name, path in paths.items() for word in (f"--{name}", str(path))]
    found = wsb("check", *files, *FLAGS, "--policy", str(tmp_path / "policy.toml"), *outputs)
    assert found.returncode == 0, found.stderr
    check(Report.model_validate_json(paths["json"].read_text()))
    for words in ("λ_max in [", "Gauss-Newton, λ_max(G)", "Along the gradient"):
        assert words in found.stdout
    html, markdown = paths["html"].read_text(), paths["markdown"].read_text()
    for title in ("Groups of parameters", "Classes", "Eigenvectors and the gradient"):
        assert f">{title}</h2>" in html
        assert f"<summary>{title}</summary>" in markdown
    assert "λ_max, certified" in markdown
    assert "--layers certified --groups &#39;b*&#39;" in html


def test_a_baseline_of_another_exponent_is_one_of_another_loss(files: tuple[str, str], tmp_path: Path) -> None:
    baseline = str(tmp_path / "baseline.json")
    assert wsb("analyze", *files, "--loss", "focal", "--json", baseline).returncode == 0
    (tmp_path / "policy.toml").write_text('[[rule]]\nmetric = "enclosure.lambda_max"\nmax_relative_increase = 0.1\n')
    gate = ("--loss", "focal", "--policy", str(tmp_path / "policy.toml"), "--baseline", baseline)
    assert wsb("check", *files, *gate).returncode == 0
    other = wsb("check", *files, *gate, "--focal-gamma", "3")
    assert other.returncode == 2
    assert "loss.focal_gamma" in other.stdout + other.stderr


def test_an_estimate_counts_each_question(files: tuple[str, str]) -> None:
    found = wsb("estimate", *files, *FLAGS)
    assert found.returncode == 0, found.stderr
    for phase in ("layers", "groups", "classes", "gauss_newton", "alignment"):
        assert phase in found.stdout


@pytest.mark.slow
def test_the_service_answers_and_refuses_as_the_command_does(start_service: StartService) -> None:
    posted = {"asked": OPTIONS, "focal": {"loss": "focal", "focal_gamma": 1.5}, "refused": {"groups": ["nothing.*"]}}
    service = start_service(engine=True)
    found = {}
    for name, options in posted.items():
        request = json.dumps({"options": options}).encode()
        files = {"model": onnx_mlp(), "batch": npz_batch(), "request": request}
        sent = service.client.post("/v1/analyses", files=files)
        found[name] = service.ended(sent.json()["id"])
    reports = {
        name: Report.model_validate(service.client.get(f"/v1/analyses/{found[name]['id']}/report").json())
        for name in ("asked", "focal")
    }
    check(reports["asked"])
    assert (reports["focal"].loss.kind, reports["focal"].loss.focal_gamma) == ("focal", 1.5)
    assert found["refused"]["error"]["code"] == "parameter_pattern_unmatched"
