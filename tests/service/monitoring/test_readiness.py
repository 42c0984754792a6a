"""Liveness and readiness: each thing that can be wrong is told apart from the others, and none holds up the probe."""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from support.outages import WAITING, close_database
from support.service import Service, StartService, until

from service.database.engine import Database
from service.monitoring.readiness import CHECKS, NO_DATABASE, OK, Readiness
from service.server.app import open_context
from service.settings import Settings

PATIENCE = 20.0
"""Seconds for a probe, so that a busy machine's slow answers are not taken for missing ones."""


@pytest.fixture
def service(borrow_service: StartService) -> Service:
    return borrow_service(probe_seconds=PATIENCE)


@pytest.fixture
def api(borrow_service: StartService) -> Service:
    return borrow_service(worker=False, probe_seconds=PATIENCE)


def ask(service: Service) -> tuple[int, dict[str, Any]]:
    response = service.client.get("/readyz")
    return response.status_code, response.json()


def wrong(service: Service) -> set[str]:
    """Parts that are not as they have to be; a service without a worker is otherwise whole."""
    return {part for part, found in ask(service)[1]["checks"].items() if found != OK} - {"worker"}


def test_a_service_with_everything_in_place_is_ready(service: Service) -> None:
    assert ask(service) == (200, {"status": "ready", "checks": dict.fromkeys(CHECKS, OK), "failed_devices": []})


def test_a_service_without_a_worker_lacks_only_that(api: Service) -> None:
    status, problem = ask(api)
    assert (status, problem["details"], wrong(api)) == (503, {"missing": "worker"}, set())
    assert problem["detail"] == problem["checks"]["worker"] == "No worker is alive."


def test_probes_are_told_when_to_ask_again(api: Service) -> None:
    assert api.client.get("/readyz").headers["Retry-After"] == "1"


def test_a_database_that_lets_nobody_in_is_told_and_the_storage_is_not_blamed(api: Service, postgres: str) -> None:
    close_database(api, postgres)
    needed = dict.fromkeys(("database", "queue", "worker"), NO_DATABASE)
    until(lambda: ask(api)[1]["checks"].items() >= needed.items())
    problem = ask(api)[1]
    assert problem["details"] == {"missing": "database"}
    assert (problem["checks"]["server"], problem["checks"]["storage"]) == (OK, OK)
    assert api.client.get("/healthz").json() == {"status": "ok"}


def test_tables_of_an_earlier_version_are_told(api: Service) -> None:
    api.sql("UPDATE alembic_version SET version_num = '0001'")
    assert wrong(api) == {"migrations"}


def test_a_queue_without_its_tables_is_told(api: Service) -> None:
    api.sql("ALTER TABLE procrastinate_jobs RENAME TO gone")
    assert wrong(api) == {"queue"}
    assert ask(api)[1]["details"] == {"missing": "queue"}


def remove(service: Service) -> None:
    shutil.rmtree(service.settings.blob_dir)


def replace_by_a_file(service: Service) -> None:
    remove(service)
    service.settings.blob_dir.write_bytes(b"")


@pytest.mark.parametrize("spoil", [remove, replace_by_a_file])
def test_a_storage_that_cant_be_written_is_told(api: Service, spoil: Callable[[Service], None]) -> None:
    spoil(api)
    assert wrong(api) == {"storage"}
    assert ask(api)[1]["details"] == {"missing": "storage"}


def test_a_disk_that_is_almost_full_is_told(start_service: StartService) -> None:
    api = start_service(worker=False, min_free_bytes=1 << 62)
    assert wrong(api) == {"storage"}


def test_looking_at_the_storage_leaves_nothing_there(api: Service) -> None:
    for _ in range(3):
        ask(api)
    assert (api.leftovers(), api.stored()) == ([], [])


def test_a_server_that_stops_is_not_ready(api: Service) -> None:
    api.loop.call_soon_threadsafe(api.stopping.set)
    until(lambda: ask(api)[1]["details"]["missing"] == "server")
    assert wrong(api) == {"server"}


@pytest.mark.slow
def test_a_table_that_is_locked_holds_up_neither_the_probe_nor_the_other_checks(start_service: StartService) -> None:
    api = start_service(worker=False, probe_seconds=1.5)
    with psycopg.connect(str(api.settings.database_url)) as blocker:
        blocker.execute("LOCK TABLE workers IN ACCESS EXCLUSIVE MODE")
        for _ in range(3):
            assert ask(api)[1]["checks"]["worker"] == "No answer within 1.5 seconds."
        assert wrong(api) == set()
        # One query waits for the lock, however many probes have come.
        assert api.sql(WAITING) == [(1,)]
    until(lambda: ask(api)[1]["checks"]["worker"] == "No worker is alive.")


def test_a_database_that_accepts_connections_and_says_nothing_is_given_up(database_url: str, tmp_path: Path) -> None:
    settings = Settings(_env_file=None, database_url=database_url, data_dir=tmp_path, probe_seconds=1.5)

    async def act(port: int) -> dict[str, str]:
        async with open_context(settings, asyncio.Event()) as context:
            database = Database(f"postgresql://postgres@127.0.0.1:{port}/postgres")
            return await Readiness(replace(context, database=database)).checks()

    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        checks = asyncio.run(act(listener.getsockname()[1]))
    silent = {part for part, found in checks.items() if found == "No answer within 1.5 seconds."}
    assert silent == {"database", "migrations", "queue", "worker"}
