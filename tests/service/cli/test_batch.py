"""`wsb batch` as a new user runs it: from each source to a report, and what it says when something is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.command import wsb_here as wsb
from support.service import onnx_mlp
from typer.testing import CliRunner

import wsb_engine
from service.cli.commands import app


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(60, 4)), np.arange(60) % 3
    lines = [",".join(map(repr, row)) + f",{'abc'[label]}" for row, label in zip(x.tolist(), y.tolist(), strict=True)]
    (tmp_path / "flowers.csv").write_text("\n".join(["p,q,r,s,kind", *lines]) + "\n")
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    np.savez(tmp_path / "named.npz", X_test=x, y_test=y)
    for name in "abc":
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(3):
            pixels = random.integers(0, 256, (5, 7, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{index}.png")
    (tmp_path / "model.onnx").write_bytes(onnx_mlp())
    return tmp_path


def run(folder: Path, *arguments: str) -> Any:
    """The command in this process, in a folder; paths in it are relative."""
    names = {path.name for path in folder.iterdir()} | {"out.npz", "out.safetensors", "out.txt"}
    return CliRunner().invoke(app, ["batch", *(str(folder / each) if each in names else each for each in arguments)])


SOURCES = {
    "csv": ("--csv", "flowers.csv", "--label", "kind"),
    "npy": ("--npy", "x.npy", "y.npy"),
    "npz": ("--npz", "named.npz", "--x", "X_test", "--y", "y_test"),
    "images": ("--images", "photos", "--size", "4"),
}


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
@pytest.mark.parametrize("source", SOURCES)
def test_every_source_gives_a_batch(folder: Path, source: str, suffix: str) -> None:
    result = run(folder, f"out.{suffix}", *SOURCES[source], "--rows", "9", "--input-name", "features")
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    batch = wsb_engine.load_batch(folder / f"out.{suffix}")
    assert np.bincount(batch.y).tolist() == [3, 3, 3]
    assert [str(tensor.dtype) for tensor in batch.x.values()] == ["torch.float32"]
    assert list(batch.x) == ["features"]
    assert "9 rows" in result.stderr
    last = result.stderr.splitlines()[-1].split()
    assert last == ["class", "2", *(["c,"] if source in ("csv", "images") else []), "3", "rows"]


def test_tables_and_arrays_of_the_same_numbers_give_the_same_batch(folder: Path) -> None:
    contents = []
    for source in ("csv", "npy", "npz"):
        assert run(folder, "out.npz", *SOURCES[source], "--rows", "20", "--seed", "3", "--force").exit_code == 0
        contents.append((folder / "out.npz").read_bytes())
    assert contents[0] == contents[1] == contents[2]


def test_the_batch_of_a_csv_file_is_analysed(folder: Path) -> None:
    made = wsb("batch", str(folder / "b.npz"), "--csv", str(folder / "flowers.csv"), "--label", "kind", "--rows", "30")
    assert made.returncode == 0, made.stderr
    report = folder / "report.json"
    result = wsb("analyze", str(folder / "model.onnx"), str(folder / "b.npz"), "--json", str(report))
    assert result.returncode == 0, result.stderr
    assert json.loads(report.read_text())["batch"]["samples"] == 30


def test_classes_in_another_order_are_named(folder: Path) -> None:
    result = run(folder, "out.npz", *SOURCES["csv"], "--classes", 'c,"x,y",b,a')
    assert result.exit_code == 0, result.output
    assert wsb_engine.load_batch(folder / "out.npz").y.tolist()[:3] == [3, 2, 0]
    assert [line.split(maxsplit=2)[2] for line in result.stderr.splitlines() if line.startswith("class ")] == [
        "c, 20 rows",
        "x,y, 0 rows",
        "b, 20 rows",
        "a, 20 rows",
    ]


def test_labels_can_stay_text(folder: Path) -> None:
    assert run(folder, "out.npz", *SOURCES["csv"], "--keep-labels").exit_code == 0
    assert wsb_engine.load_batch(folder / "out.npz").y.tolist()[:3] == ["a", "b", "c"]


def test_pictures_are_normalised(folder: Path) -> None:
    flags = ("--mean", "0.5,0.4,0.3", "--std", "0.25", "--layout", "nhwc", "--resize", "squash", "--size", "5x7")
    assert run(folder, "out.npz", "--images", "photos", *flags).exit_code == 0
    first = np.asarray(Image.open(folder / "photos" / "a" / "0.png"))
    expected = (first / np.float32(255) - np.float32([0.5, 0.4, 0.3])) * 4
    np.testing.assert_array_equal(wsb_engine.load_batch(folder / "out.npz").x["x"][0].numpy(), expected)


def test_a_file_is_replaced_only_by_force(folder: Path) -> None:
    (folder / "out.npz").write_bytes(b"before")
    result = run(folder, "out.npz", *SOURCES["csv"])
    assert (result.exit_code, "--force" in result.stderr) == (2, True)
    assert (folder / "out.npz").read_bytes() == b"before"
    assert run(folder, "out.npz", *SOURCES["csv"], "--force").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("out.npz",), "Name one source"),
        (("out.npz", *SOURCES["csv"], "--images", "photos"), "Name one source"),
        (("out.npz", "--csv", "flowers.csv"), "--label COLUMN"),
        (("out.npz", *SOURCES["csv"], "--size", "8"), "--size goes with --images or --dataset, not with --csv"),
        (("out.npz", *SOURCES["npy"], "--x", "x"), "--x goes with --npz or --dataset"),
        (("out.npz", *SOURCES["npy"], "--keep-labels", "--classes", "0,1,2"), "exclude each other"),
        (("out.npz", "--images", "photos", "--size", "big"), "--size big can't be understood"),
        (("out.npz", "--images", "photos", "--mean", "0.5,"), "--mean 0.5, can't be understood"),
        (("out.npz", "--images", "photos", "--mean", "1,2"), "[image_settings_invalid]"),
        (("out.npz", "--csv", "flowers.csv", "--label", "species"), "[column_unknown]"),
        (("out.npz", "--csv", "none.csv", "--label", "kind"), "[source_not_found]"),
        (("out.npz", *SOURCES["csv"], "--rows", "61"), "[too_few_rows]"),
        (("out.npz", *SOURCES["csv"], "--input-name", "y"), "[input_names_mismatch]"),
        (("out.npz", *SOURCES["csv"], "--input-name", "a", "--input-name", "b"), "[input_names_mismatch]"),
        (("out.npz", *SOURCES["npy"], "--scaling", "unit"), "[inputs_not_bytes]"),
        (("out.npz", *SOURCES["npy"], "--dtype", "int64"), "[inputs_not_whole]"),
        (("out.safetensors", *SOURCES["csv"], "--keep-labels"), "[labels_text_unsupported]"),
        (("out.txt", *SOURCES["csv"]), "[batch_suffix_unknown]"),
        (("/nonexistent/out.npz", *SOURCES["csv"]), "can't be written"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_written(folder: Path, arguments: tuple[str, ...], told: str) -> None:
    before = sorted(folder.iterdir())
    result = run(folder, *arguments)
    assert result.exit_code == 2, result.output
    assert told in result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(folder.iterdir()) == before
