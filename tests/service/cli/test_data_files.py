"""The command with models that keep their weights in further files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from support.command import wsb_here as wsb
from support.external import DATA, combined, external_mlp
from support.forms import full
from support.service import Service, npz_batch, onnx_mlp

from service.cli.evaluate import NotEvaluatedError, within
from service.client.files import may_have_data_files

NAMES = (DATA, "part/second.bin")
MODEL, FILES = external_mlp(*NAMES)


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    (tmp_path / "m.onnx").write_bytes(MODEL)
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "b.npz").write_bytes(npz_batch())
    return str(tmp_path / "m.onnx"), str(tmp_path / "b.npz")


def test_data_files_beside_the_model_are_read_in_the_sandbox(files: tuple[str, str]) -> None:
    result = wsb("analyze", *files, "--json", "-")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["model"]["sha256"] == combined(MODEL, FILES).removeprefix("sha256:")
    assert report["enclosure"] is not None
    assert report["engine"]["sandbox"]


@pytest.mark.parametrize("name", [NAMES[1], full(NAMES[0])])
def test_a_missing_data_file_is_named(files: tuple[str, str], tmp_path: Path, name: str) -> None:
    (tmp_path / name).unlink()
    result = wsb("analyze", *files)
    assert result.returncode == 2
    assert f"{name} [external_data_missing]" in result.stderr
    assert "external_data=False" in result.stderr


def test_a_link_is_not_followed(files: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / DATA).rename(tmp_path / "elsewhere")
    (tmp_path / DATA).symlink_to(tmp_path / "elsewhere")
    result = wsb("analyze", *files)
    assert result.returncode == 2
    assert "[external_data_refused]" in result.stderr


@pytest.mark.parametrize("flags", [(), ("--url", "http://127.0.0.1:9")])
def test_a_pipe_is_refused_rather_than_waited_for(
    files: tuple[str, str], tmp_path: Path, flags: tuple[str, ...]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    result = wsb("analyze", str(tmp_path / "pipe"), files[1], *flags)
    assert result.returncode == 2
    assert "is not a regular file. [not_a_file]" in result.stderr


def test_the_advice_for_a_folder_names_what_to_give(files: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    batch = wsb("analyze", files[0], str(tmp_path / "photos"))
    model = wsb("analyze", str(tmp_path), files[1])
    assert (batch.returncode, model.returncode) == (2, 2)
    assert f"wsb batch batch.npz --images {tmp_path / 'photos'}." in batch.stderr
    assert f"Give the path of a model in it: {Path(files[0]).name}." in model.stderr


def test_only_files_within_the_folder_are_granted(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "out").symlink_to(tmp_path)
    (folder / "link").symlink_to(folder / "plain")
    named = ["plain", "sub/deep", "../outside", "/etc/passwd", "out/outside", "link", "sub/../../outside", "out"]
    assert within(folder, json.dumps(named)) == [folder / "plain", folder / "sub" / "deep"]


@pytest.mark.parametrize("listed", ["", "{}", "[1]", "[[]]", "null"])
def test_a_list_that_is_none_is_refused(tmp_path: Path, listed: str) -> None:
    with pytest.raises(NotEvaluatedError):
        within(tmp_path, listed)


def test_a_model_of_one_file_is_read_once(tmp_path: Path) -> None:
    found = []
    for content in (MODEL, b"", onnx_mlp(), b"PK\x03\x04location"):
        (tmp_path / "m").write_bytes(content)
        found.append(may_have_data_files(tmp_path / "m"))
    assert found == [True, False, False, False]
    assert not may_have_data_files(tmp_path / "nothing")


def test_data_files_are_sent_to_a_server_and_only_once(service: Service, files: tuple[str, str]) -> None:
    for _ in range(2):
        result = wsb("analyze", *files, "--url", service.url)
        assert result.returncode == 0, result.stderr
        assert service.client.get(f"/v1/models/{combined(MODEL, FILES)}").json()["files"][1]["name"] == DATA
        assert service.sql("SELECT count(*) FROM blobs WHERE uploaded_at > created_at") == [(0,)]
    assert service.sql("SELECT count(*) FROM analyses") == [(2,)]


def test_a_missing_data_file_is_named_before_anything_is_sent(
    api: Service, files: tuple[str, str], tmp_path: Path
) -> None:
    (tmp_path / DATA).unlink()
    result = wsb("analyze", *files, "--url", api.url)
    assert (result.returncode, "[external_data_missing]" in result.stderr) == (2, True)
    assert api.sql("SELECT count(*) FROM blobs") == [(0,)]
