"""What `wsb doctor` finds."""

from __future__ import annotations

import asyncio
import json
import resource
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr
from support.command import wsb, wsb_here
from support.forms import full
from support.receiver import SECRET
from support.service import Files, Service

from service.keys import hash_key, new_key
from service.operations import doctor, host
from service.operations.findings import Finding
from service.sandbox import SandboxError
from service.settings import Settings
from service.webhooks.sealing import sealed

NO_WORKER = ("workers", "warning")


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a CPU and all protections, which take seconds to find out."""

    async def protections(*_: object, **__: object) -> list[str]:
        return ["landlock", "seccomp", "rlimit_data"]

    monkeypatch.setattr(host, "offered_devices", lambda: ["cpu"])
    monkeypatch.setattr(host, "has_gpu", lambda: False)
    monkeypatch.setattr(host, "active_protections", protections)


def settings(tmp_path: Path, **values: Any) -> Settings:
    return Settings(_env_file=None, **{"data_dir": tmp_path, "job_memory_bytes": 1 << 28, **values})


def examined(of: Settings, *, files: bool = False) -> list[Finding]:
    """Everything that is not as it should be."""
    return [finding for finding in asyncio.run(doctor.examine(of, files=files)) if finding.level != "ok"]


def found(of: Settings, *, files: bool = False) -> set[tuple[str, str]]:
    wrong = examined(of, files=files)
    assert all(finding.advice for finding in wrong)
    return {(finding.check, finding.level) for finding in wrong}


def test_nothing_is_wrong_with_a_running_service(service: Service, files: Files) -> None:
    service.client.post("/v1/models", content=files["model"])
    assert examined(service.settings, files=True) == []


def test_without_a_worker_nothing_runs(api: Service) -> None:
    assert found(api.settings) == {NO_WORKER}


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("UPDATE alembic_version SET version_num = '0003'", "older version"),
        ("UPDATE alembic_version SET version_num = '9999'", "newer version"),
        ("DROP TABLE alembic_version", "no tables"),
    ],
)
def test_tables_of_another_version_are_a_problem(api: Service, statement: str, told: str) -> None:
    api.sql(statement)
    [finding] = examined(api.settings)
    assert (finding.check, finding.level) == ("database", "problem")
    assert told in finding.detail


def test_a_database_that_does_not_answer_is_a_problem(tmp_path: Path) -> None:
    away = settings(tmp_path, database_url="postgresql://nobody@127.0.0.1:1/nothing")
    assert found(away) == {("database", "problem")}


def test_an_installation_that_was_never_started_is_a_problem(tmp_path: Path) -> None:
    assert found(settings(tmp_path)) == {("database", "problem")}
    assert not (tmp_path / "postgres").exists()


def test_files_that_are_missing_or_have_changed_are_problems(api: Service, files: Files) -> None:
    for kind, name in (("models", "model"), ("batches", "batch")):
        api.client.post(f"/v1/{kind}", content=files[name])
    for path in api.stored():
        path.unlink() if "models" in path.parts else path.write_bytes(b"changed")
    assert found(api.settings) == {NO_WORKER}
    wrong = [finding for finding in examined(api.settings, files=True) if finding.check != "workers"]
    assert [finding.detail.split()[-1] for finding in wrong] in (["missing.", "changed."], ["changed.", "missing."])


def test_analyses_that_the_queue_has_lost_and_that_wait_long_are_told(api: Service, files: Files) -> None:
    api.client.post("/v1/analyses", files=files)
    api.sql("UPDATE analyses SET created_at = now() - interval '1 hour'")
    api.sql("DELETE FROM procrastinate_events")
    api.sql("DELETE FROM procrastinate_jobs")
    told = " ".join(finding.detail for finding in examined(api.settings))
    assert "wait, the oldest for 36" in told
    assert "missing from the queue" in told


def test_workers_of_another_version_are_told(service: Service) -> None:
    service.sql("UPDATE workers SET engine_version = '0.0.1'")
    [finding] = examined(service.settings)
    assert "version 0.0.1" in finding.detail


def test_a_storage_that_cannot_be_written_is_a_problem(api: Service, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    wrong = api.settings.model_copy(update={"blob_url": str(tmp_path / "file" / "blobs")})
    assert found(wrong) == {NO_WORKER, ("storage", "problem")}
    filled = api.settings.model_copy(update={"min_free_bytes": 1 << 60})
    assert found(filled) == {NO_WORKER, ("storage", "problem"), ("disk", "problem")}


def test_keys_that_end_and_weights_without_a_key_are_told(database_url: str) -> None:
    today = datetime.now(UTC).date()
    days = {"gone": today - timedelta(1), "soon": today + timedelta(3), "later": today + timedelta(300)}
    entries = ",".join(f"{name}:{hash_key(new_key())}::{day}" for name, day in days.items())
    of = Settings(_env_file=None, database_url=database_url, api_keys=entries, tenant_weights="no:2")
    told = [finding.detail for finding in host.keys(of) if finding.level != "ok"]
    assert [text.rpartition(" of ")[2].split()[:2] for text in told[:2]] == [["gone", "expired"], ["soon", "expires"]]
    assert told[2] == "WSB_TENANT_WEIGHTS names no, which has no key."


def test_webhooks_whose_secret_no_key_opens_are_told(api: Service) -> None:
    key, other = "k" * 32, "o" * 32
    [[webhook]] = api.sql(
        "INSERT INTO webhooks (id, tenant, url, events, secret, failures) VALUES (gen_random_uuid(), 'default',"
        " 'https://example.com', '[]', '', 0) RETURNING id"
    )
    api.sql("UPDATE webhooks SET secret = %s", sealed(SECRET, (SecretStr(key),), webhook))
    both = api.settings.model_copy(update={"webhooks_key": (SecretStr(other), SecretStr(key))})
    assert found(both) == {NO_WORKER}
    one = api.settings.model_copy(update={"webhooks_key": (SecretStr(other),)})
    [finding] = [finding for finding in examined(one) if finding.check != "workers"]
    assert (finding.check, finding.level) == ("keys", "warning")
    assert str(webhook) in finding.detail


def test_limits_of_the_machine_that_are_too_low_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    assert [finding.level for finding in host.limits(settings(tmp_path))] == ["warning"]
    assert [finding.level for finding in host.memory(settings(tmp_path, job_memory_bytes=1 << 60))] == ["problem"]


def test_a_gpu_that_torch_cannot_use_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "has_gpu", lambda: True)
    _, [finding] = asyncio.run(host.devices())
    assert finding.level == "warning"


@pytest.mark.parametrize(
    ("active", "level"),
    [
        (["seccomp", "rlimit_data"], "warning"),
        (SandboxError("no", code="sandbox_insufficient", advice="Do."), "problem"),
    ],
)
def test_a_sandbox_with_gaps_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, active: list[str] | SandboxError, level: str
) -> None:
    async def protections(*_: object, **__: object) -> list[str]:
        if isinstance(active, SandboxError):
            raise active
        return active

    monkeypatch.setattr(host, "active_protections", protections)
    [finding] = asyncio.run(host.sandbox(settings(tmp_path), "cpu"))
    assert (finding.level, bool(finding.advice)) == (level, True)


@pytest.mark.parametrize("run", [wsb_here, full(wsb)])  # a process, unlike this one, looks at the real machine
def test_the_command_prints_findings_as_text_and_as_json_and_its_exit_code_says_how_bad_they_are(
    api: Service, tmp_path: Path, run: Any
) -> None:
    variables = {"WSB_DATABASE_URL": str(api.settings.database_url), "WSB_DATA_DIR": str(api.settings.data_dir)}
    result = run("doctor", "--json", cwd=tmp_path, **variables)
    assert result.returncode == 1, result.stderr
    findings = [Finding.model_validate(item) for item in json.loads(result.stdout)]
    assert {finding.check for finding in findings if finding.level == "warning"} >= {"workers"}
    with psycopg.connect(str(api.settings.database_url), autocommit=True) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0003'")
    result = run("doctor", cwd=tmp_path, **variables)
    assert result.returncode == 3
    assert "problem  database  Its tables are of an older version (revision 0003)." in result.stdout
    assert "→ Start a process of this version" in result.stdout
