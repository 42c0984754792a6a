"""Backups of an installation, and other installations made from them."""

from __future__ import annotations

import asyncio
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from support.external import external_mlp
from support.forms import full
from support.migrations import move
from support.service import Files, Service, StartService, submit, until

from service.blobs import leftovers
from service.database.engine import Database
from service.operations import backup
from service.operations.archive import ArchiveReader, Manifest, UnusableArchiveError
from service.operations.backup import NotBackedUpError, back_up
from service.operations.restore import NotRestoredError, restore
from service.settings import Settings
from service.storage.factory import open_blobs

REPORTS = "SELECT analysis, body, sha256 FROM reports ORDER BY analysis"
STORED = (
    "SELECT tenant, kind, sha256, size, format, created_at, uploaded_at, model_files::text FROM blobs ORDER BY 1, 2, 3",
    "SELECT id, sequence, tenant, labels, options::text, fingerprint FROM analyses ORDER BY id",
    REPORTS,
    "SELECT * FROM totals ORDER BY 1, 2, 3",
)


@pytest.fixture
def elsewhere(postgres: str, tmp_path: Path) -> Any:
    """Settings of an installation that does not exist yet."""
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("CREATE DATABASE elsewhere")
    url = postgres.replace("/postgres?", "/elsewhere?")
    yield Settings(_env_file=None, database_url=url, data_dir=tmp_path / "elsewhere", poll_seconds=0.5)
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("DROP DATABASE elsewhere WITH (FORCE)")


def saved(service: Service, path: Path) -> Manifest:
    return asyncio.run(back_up(service.settings, str(service.settings.database_url), path))


def load(settings: Settings, path: Path, *, replace: bool = False) -> None:
    with ArchiveReader(path) as archive:
        asyncio.run(restore(settings, str(settings.database_url), archive, replace=replace))


def select(settings: Settings, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(str(settings.database_url), autocommit=True) as connection:
        return connection.execute(query).fetchall()


def blobs(settings: Settings) -> dict[str, bytes]:
    """Content of the stored files by their paths."""
    return {
        str(path.relative_to(settings.blob_dir)): path.read_bytes()
        for kind in ("models", "batches")
        for path in (settings.blob_dir / kind).rglob("*")
        if path.is_file()
    }


def sweep(settings: Settings) -> None:
    async def act() -> None:
        database = Database(str(settings.database_url))
        with open_blobs(settings) as store:
            await leftovers.sweep(database, store)
        await database.close()

    asyncio.run(act())


@pytest.mark.slow
def test_another_installation_has_every_report_and_file_and_finishes_what_had_not_ended(
    service: Service, files: Files, elsewhere: Settings, start_service: StartService, tmp_path: Path
) -> None:
    model, data = external_mlp("weights.bin")
    parts = [("model", model), *(("model_data", (name, content)) for name, content in data.items())]
    assert service.client.post("/v1/models", files=parts).status_code == 201
    ended = [submit(service, files, output) for output in ("", "fail")]
    for analysis in ended:
        service.ended(analysis)
    running = submit(service, files, "sleep:600")
    until(lambda: service.client.get(f"/v1/analyses/{running}").json()["state"] == "running")
    manifest = saved(service, tmp_path / "backup")
    assert (manifest.rows("analyses"), manifest.rows("reports"), manifest.damaged) == (3, 1, [])
    load(elsewhere, tmp_path / "backup")
    for query in STORED:
        assert select(elsewhere, query) == service.sql(query)
    assert blobs(elsewhere) == blobs(service.settings)
    states = "SELECT state, attempts FROM analyses ORDER BY sequence"
    assert select(elsewhere, states) == [("succeeded", 1), ("failed", 1), ("queued", 0)]
    assert select(elsewhere, "SELECT args ->> 'analysis' FROM procrastinate_jobs") == [(running,)]
    # What is created from now on is numbered after what was restored.
    api = start_service(worker=False, database_url=elsewhere.database_url, data_dir=elsewhere.data_dir)
    listed = api.client.get("/v1/analyses").json()["items"]
    new = api.client.post("/v1/analyses", files=files).json()
    assert [item["id"] for item in api.client.get("/v1/analyses").json()["items"]] == [
        new["id"],
        *(item["id"] for item in listed),
    ]


@pytest.mark.slow
def test_a_file_that_is_deleted_during_a_backup_stays_until_its_end(
    api: Service, model_bytes: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = api.client.post("/v1/models", content=model_bytes).headers["location"]
    copy_files = backup._copy_files

    async def after_a_deletion(*given: Any) -> list[str]:
        response = await asyncio.to_thread(api.client.delete, path)
        assert (response.status_code, len(api.stored())) == (204, 1)
        assert (await asyncio.to_thread(api.client.head, path)).status_code == 404
        return await copy_files(*given)

    monkeypatch.setattr(backup, "_copy_files", after_a_deletion)
    assert saved(api, tmp_path / "backup").damaged == []
    with ArchiveReader(tmp_path / "backup") as archive:
        assert [content.read() for _, content in archive.files()] == [model_bytes]
    sweep(api.settings)
    assert api.stored() == []
    assert api.sql("SELECT count(*) FROM leftovers") == [(0,)]


def test_a_file_that_was_sent_again_is_not_removed_as_a_leftover(api: Service, model_bytes: bytes) -> None:
    path = api.client.post("/v1/models", content=model_bytes).headers["location"]
    api.sql("INSERT INTO leftovers (kind, sha256) SELECT kind, sha256 FROM blobs")
    sweep(api.settings)
    assert api.client.head(path).status_code == 200
    assert [file.read_bytes() for file in api.stored()] == [model_bytes]
    assert api.sql("SELECT count(*) FROM leftovers") == [(0,)]


def test_a_running_service_removes_what_was_left(start_service: StartService, model_bytes: bytes) -> None:
    api = start_service(worker=False, retention_interval_seconds=0.05)
    api.client.post("/v1/models", content=model_bytes)
    api.sql("WITH gone AS (DELETE FROM blobs RETURNING kind, sha256) INSERT INTO leftovers SELECT * FROM gone")
    until(lambda: api.stored() == [])


def test_files_that_are_missing_or_damaged_are_told_and_the_rest_is_backed_up(
    api: Service, files: Files, elsewhere: Settings, tmp_path: Path
) -> None:
    api.client.post("/v1/models", content=files["model"])
    api.client.post("/v1/batches", content=files["batch"])
    [damaged] = [file for file in api.stored() if file.read_bytes() == files["batch"]]
    damaged.write_bytes(b"changed")
    manifest = saved(api, tmp_path / "backup")
    assert manifest.damaged == [str(damaged.relative_to(api.settings.blob_dir))]
    load(elsewhere, tmp_path / "backup")
    assert list(blobs(elsewhere).values()) == [files["model"]]


@pytest.mark.slow
def test_an_installation_with_content_is_overwritten_only_if_that_is_asked_for(
    api: Service, files: Files, elsewhere: Settings, model_bytes: bytes, tmp_path: Path
) -> None:
    api.client.post("/v1/batches", content=files["batch"])
    saved(api, tmp_path / "first")
    load(elsewhere, tmp_path / "first")
    api.client.post("/v1/analyses", files=files)
    saved(api, tmp_path / "second")
    with pytest.raises(NotRestoredError, match="not empty"):
        load(elsewhere, tmp_path / "second")
    assert len(blobs(elsewhere)) == 1
    load(elsewhere, tmp_path / "second", replace=True)
    assert len(blobs(elsewhere)) == 2
    load(elsewhere, tmp_path / "first", replace=True)
    assert list(blobs(elsewhere).values()) == [files["batch"]]
    assert select(elsewhere, "SELECT count(*) FROM analyses") == [(0,)]
    assert select(elsewhere, "SELECT count(*) FROM procrastinate_jobs") == [(0,)]


def test_a_database_that_is_in_use_is_not_restored(api: Service, tmp_path: Path) -> None:
    saved(api, tmp_path / "backup")
    with pytest.raises(NotRestoredError, match="Stop all of them"):
        load(api.settings, tmp_path / "backup", replace=True)


def test_a_backup_of_earlier_tables_is_migrated(
    api: Service, files: Files, elsewhere: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.client.post("/v1/models", content=files["model"])
    move(str(api.settings.database_url), "0006")
    monkeypatch.setattr(backup, "latest_revision", lambda: "0006")
    assert saved(api, tmp_path / "backup").revision == "0006"
    load(elsewhere, tmp_path / "backup")
    assert blobs(elsewhere) == blobs(api.settings)
    assert select(elsewhere, "SELECT count(*) FROM turns") == [(0,)]


@pytest.mark.parametrize("revision", ["9999", "0003"])
def test_tables_of_another_version_are_not_backed_up(api: Service, revision: str, tmp_path: Path) -> None:
    api.sql("UPDATE alembic_version SET version_num = %s", revision)
    with pytest.raises(NotBackedUpError, match="newer" if revision == "9999" else "older"):
        saved(api, tmp_path / "backup")
    assert list(tmp_path.glob("backup*")) == []


def test_a_second_backup_waits_and_is_then_refused(
    api: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup, "_LOCK_TIMEOUT", "10ms")
    with psycopg.connect(str(api.settings.database_url), autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", [backup.lock_key(leftovers.BACKUP_LOCK)])
        with pytest.raises(NotBackedUpError, match="in progress"):
            saved(api, tmp_path / "backup")


def changed(path: Path, change: Callable[[str, bytes], bytes | None]) -> None:
    """Writes an archive again with each entry changed, or without it."""
    with zipfile.ZipFile(path) as old:
        entries = {name: change(name, old.read(name)) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, content in entries.items():
            if content is not None:
                new.writestr(name, content)


def newer(name: str, content: bytes) -> bytes:
    return json.dumps({**json.loads(content), "revision": "9999"}).encode() if name == "manifest.json" else content


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (newer, "newer version"),
        full(lambda name, content: None if name == "manifest.json" else content, "not a complete backup"),
        (lambda name, content: content + b"x" if name.startswith("blobs/") else content, "has changed"),
        full(lambda name, content: b"" if name == "tables/blobs.copy" else content, "rows of blobs are missing"),
    ],
)
def test_a_damaged_or_newer_backup_changes_nothing(
    api: Service, elsewhere: Settings, model_bytes: bytes, tmp_path: Path, change: Any, told: str
) -> None:
    api.client.post("/v1/models", content=model_bytes)
    saved(api, tmp_path / "backup")
    changed(tmp_path / "backup", change)
    with pytest.raises(UnusableArchiveError, match=told):
        load(elsewhere, tmp_path / "backup")
    assert select(elsewhere, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(0,)]


def test_half_a_backup_is_none(tmp_path: Path, api: Service) -> None:
    saved(api, tmp_path / "backup")
    content = (tmp_path / "backup").read_bytes()
    (tmp_path / "backup").write_bytes(content[: len(content) // 2])
    with pytest.raises(UnusableArchiveError, match="not a complete backup"):
        ArchiveReader(tmp_path / "backup")


def test_only_its_owner_can_read_a_backup(tmp_path: Path, api: Service) -> None:
    saved(api, tmp_path / "backup")
    assert (tmp_path / "backup").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir() if "backup" in path.name] == ["backup"]
