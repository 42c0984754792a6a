"""How `wsb backup` and `wsb restore` end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from support.service import Service
from typer.testing import CliRunner

from service import logs
from service.cli.commands import app


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(logs, "configure", lambda **_: None)
    monkeypatch.chdir(tmp_path)


def run(*arguments: str, **variables: Any) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [*arguments], env={name: str(value) for name, value in variables.items()})
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.slow
def test_a_backup_that_is_whole_ends_with_0_and_one_with_gaps_with_3(api: Service, model_bytes: bytes) -> None:
    where = {"WSB_DATABASE_URL": api.settings.database_url, "WSB_DATA_DIR": api.settings.data_dir}
    api.client.post("/v1/models", content=model_bytes)
    with capture_logs() as lines:
        code, told, _ = run("backup", "first", **where)
    assert (code, told) == (0, "first: 0 analyses, 0 reports, 1 files of models and batches\n")
    [line] = [line for line in lines if line["event"] == "change"]
    assert (line["operation"], line["file"]) == ("backup", str(Path("first").resolve()))
    assert {"user", "host"} <= line.keys()
    [stored] = api.stored()
    stored.unlink()
    code, _, told = run("backup", "second", **where)
    assert code == 3
    assert str(stored.relative_to(api.settings.blob_dir)) in told
    code, _, told = run("backup", "first", **where)
    assert (code, told) == (2, "first exists; give the backup another name, or delete it first.\n")
    code, _, told = run("restore", "first", **where)
    assert (code, "Stop all of them" in told) == (2, True)


def test_without_a_database_there_is_nothing_to_back_up(tmp_path: Path) -> None:
    code, _, told = run("backup", "file", WSB_DATA_DIR=tmp_path / "none")
    assert (code, "set WSB_DATA_DIR" in told) == (2, True)
    code, _, told = run("backup", "file", WSB_DATABASE_URL="postgresql://nobody@127.0.0.1:1/nothing")
    assert (code, told.startswith("The database can't be used:")) == (3, True)
    assert not Path("file").exists()


def test_what_is_no_backup_is_not_restored(tmp_path: Path) -> None:
    Path("file").write_bytes(b"no zip")
    code, _, told = run("restore", "file", WSB_DATA_DIR=tmp_path / "none")
    assert (code, told) == (2, "file is not a complete backup of this format; use a file that wsb backup wrote.\n")
    assert not (tmp_path / "none").exists()


def test_a_place_that_cannot_be_written_is_told(api: Service) -> None:
    where = {"WSB_DATABASE_URL": api.settings.database_url, "WSB_DATA_DIR": api.settings.data_dir}
    code, _, told = run("backup", "nothing/file", **where)
    assert (code, "can't be read or written: No such file or directory" in told) == (3, True)
