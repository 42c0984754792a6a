"""Databases of earlier versions, with rows in them."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from structlog.testing import capture_logs
from support.command import wsb
from support.forms import full
from support.migrations import move
from support.service import StartService

from service.analyses.numbers import columns
from service.database.engine import Database, latest_revision

MODEL, BATCH = "a" * 64, "b" * 64
ANALYSIS = "11111111-1111-1111-1111-111111111111"
FIRST_ROWS = (
    "INSERT INTO blobs (kind, sha256, size, format, created_at) VALUES"
    " ('models', %(model)s, 5, 'onnx', '2026-01-01'), ('batches', %(batch)s, 5, 'npz', '2026-01-02')",
    "INSERT INTO analyses (id, model, batch, options, labels, priority, timeout_s, state, finished_at)"
    """ VALUES (%(analysis)s, %(model)s, %(batch)s, '{}', '{"run": "a"}', 0, 1, 'succeeded', '2026-01-03')""",
    "INSERT INTO reports (analysis, body, sha256) VALUES (%(analysis)s, '{}', 'c')",
)
VALUES = {"model": MODEL, "batch": BATCH, "analysis": ANALYSIS}


@pytest.fixture
def first_version(database_url: str) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """A database as the first version left it."""
    move(database_url, "0001")
    with psycopg.connect(database_url, autocommit=True) as connection:
        for statement in FIRST_ROWS:
            connection.execute(statement, VALUES)
        yield connection


def test_what_the_first_version_stored_belongs_to_the_tenant_of_a_service_without_keys(
    first_version: psycopg.Connection[tuple[object, ...]], start_service: StartService
) -> None:
    api = start_service(worker=False)
    assert first_version.execute("SELECT version_num FROM alembic_version").fetchall() == [(latest_revision(),)]
    assert first_version.execute("SELECT DISTINCT tenant FROM blobs").fetchall() == [("default",)]
    assert first_version.execute("SELECT count(*) FROM blobs WHERE uploaded_at = created_at").fetchall() == [(2,)]
    analysis = api.client.get(f"/v1/analyses/{ANALYSIS}").json()
    assert (analysis["model"], analysis["labels"], analysis["reused_from"]) == (f"sha256:{MODEL}", {"run": "a"}, None)
    assert api.client.get(f"/v1/models/sha256:{MODEL}").json()["size"] == 5
    assert api.client.get(f"/v1/analyses/{ANALYSIS}/report").text == "{}"


def test_lists_have_the_numbers_of_reports_that_were_stored_before(database_url: str) -> None:
    move(database_url, "0008")
    cases = Path(__file__).parents[1] / "rendering" / "cases"
    reports = {name: json.loads((cases / f"{name}.json").read_text())["report"] for name in ("perceptron", "doubtful")}
    bounds = {**reports["perceptron"], "enclosure": None, "engine": {**reports["perceptron"]["engine"], "device": "\0"}}
    with psycopg.connect(database_url, autocommit=True) as connection:
        for number, report in enumerate((*reports.values(), bounds)):
            values = {"id": f"{number}" * 8 + ANALYSIS[8:], "body": json.dumps(report)}
            connection.execute(
                "INSERT INTO analyses (id, tenant, model, batch, options, labels, priority, timeout_s, state)"
                " VALUES (%(id)s, 'default', 'm', 'b', '{}', '{}', 0, 1, 'succeeded')",
                values,
            )
            connection.execute("INSERT INTO reports (analysis, body, sha256) VALUES (%(id)s, %(body)s, 'c')", values)
        move(database_url, str(latest_revision()))
        names = "lambda_max_lower, lambda_max_upper, loss, accuracy, parameters, device, seconds, reliable"
        found = connection.execute(f"SELECT {names} FROM analyses ORDER BY id").fetchall()  # noqa: S608 - ours
    expected = [tuple(columns(json.dumps(report)).values()) for report in (*reports.values(), bounds)]
    assert found == [*expected[:2], (*expected[2][:5], None, *expected[2][6:])]


def test_a_migration_leaves_a_line_that_says_who_made_it(database_url: str) -> None:
    async def migrate() -> None:
        database = Database(database_url)
        await database.migrate()
        await database.close()

    move(database_url, "0001")
    with capture_logs() as lines:
        for _ in range(2):  # the second one changes nothing
            asyncio.run(migrate())
    (line,) = [line for line in lines if line["event"] == "change"]
    assert (line["operation"], line["before"], line["after"]) == ("migrate", "0001", latest_revision())
    assert line["host"] == socket.gethostname()


def test_a_row_that_does_not_say_whose_it_is_is_refused(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection, pytest.raises(psycopg.errors.NotNullViolation):
        connection.execute("INSERT INTO blobs (kind, sha256, size, format) VALUES ('models', 'x', 1, 'onnx')")


@pytest.mark.slow
def test_going_back_makes_one_row_of_those_that_tenants_share(
    first_version: psycopg.Connection[tuple[object, ...]], database_url: str
) -> None:
    before = first_version.execute("SELECT * FROM blobs ORDER BY kind").fetchall()
    columns = "SELECT column_name FROM information_schema.columns WHERE table_name = 'analyses' ORDER BY 1"
    known = first_version.execute(columns).fetchall()
    move(database_url, "0002")
    for statement in (
        "INSERT INTO blobs (tenant, kind, sha256, size, format) VALUES ('other', 'models', %(model)s, 5, 'onnx')",
        "INSERT INTO idempotency_keys VALUES ('default', 'key', 'print', %(analysis)s)",
    ):
        first_version.execute(statement, VALUES)
    move(database_url, "0001")
    assert first_version.execute("SELECT * FROM blobs ORDER BY kind").fetchall() == before
    assert first_version.execute(columns).fetchall() == known
    assert first_version.execute("SELECT count(*) FROM reports").fetchall() == [(1,)]


def test_every_migration_can_be_undone_and_done_again(database_url: str) -> None:
    parts = (
        "SELECT table_name, column_name, data_type, is_nullable, column_default FROM information_schema.columns"
        " WHERE table_schema = 'public' ORDER BY 1, 2",
        "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE connamespace = 'public'::regnamespace ORDER BY 1, 2",
        "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1",
    )
    with psycopg.connect(database_url, autocommit=True) as connection:
        before = [connection.execute(part).fetchall() for part in parts]
        move(database_url, "0001")
        assert [connection.execute(part).fetchall() for part in parts] != before
        move(database_url, str(latest_revision()))
        assert [connection.execute(part).fetchall() for part in parts] == before


@pytest.mark.parametrize(
    "subcommand", [full(("serve", "--port", "0", "--workers", "0")), ("worker", "--device", "cpu")]
)
def test_a_database_of_a_newer_version_is_refused(
    subcommand: tuple[str, ...], database_url: str, tmp_path: Path
) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    result = wsb(*subcommand, WSB_DATABASE_URL=database_url, WSB_DATA_DIR=str(tmp_path))
    assert result.returncode == 3, result.stderr
    [line] = [line for line in result.stderr.splitlines() if "[database_newer]" in line]
    assert line.startswith("The database belongs to a newer version of the service: its tables are at revision 9999")
    assert "Traceback" not in result.stderr
