"""`wsb estimate`, with the real engine in the real sandbox."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.command import wsb_here as wsb
from support.service import npz_batch, onnx_mlp

from wsb_engine.costs import Estimate


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    (tmp_path / "model.onnx").write_bytes(onnx_mlp())
    (tmp_path / "batch.npz").write_bytes(npz_batch())
    return str(tmp_path / "model.onnx"), str(tmp_path / "batch.npz")


def test_it_prints_a_table_of_the_phases_and_writes_json_next_to_it(files: tuple[str, str], tmp_path: Path) -> None:
    run = wsb("estimate", *files, "--moments", "probes", "--json", str(tmp_path / "estimate.json"))
    assert run.returncode == 0, run.stderr
    assert [line.split()[0] for line in run.stdout.splitlines()[:7]] == [
        *("phase", "setup", "loss", "rounding", "moments", "enclosure", "total")
    ]
    assert Estimate.model_validate_json((tmp_path / "estimate.json").read_text()).operations > 0


def test_it_prints_json_that_the_engine_reads(files: tuple[str, str]) -> None:
    run = wsb("estimate", *files, "--json", "-")
    assert run.returncode == 0, run.stderr
    found = Estimate.model_validate_json(run.stdout)
    assert found.operations > 0
    assert found.bytes > 0


def test_a_path_that_cannot_be_written_is_refused_before_anything_runs(files: tuple[str, str], tmp_path: Path) -> None:
    run = wsb("estimate", *files, "--json", str(tmp_path / "missing" / "estimate.json"))
    assert (run.returncode, run.stdout) == (2, "")
    assert "can't be written" in run.stderr


def test_it_refuses_what_an_analysis_refuses(files: tuple[str, str]) -> None:
    run = wsb("estimate", files[0], files[0])
    assert run.returncode == 2
    assert run.stdout == ""
    assert "[" in run.stderr
