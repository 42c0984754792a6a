"""The database goes away under a running service, and comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from psycopg import sql
from support.outages import close_database
from support.service import Files, Service, StartService, submit, until

from service.database.engine import patiently


@contextmanager
def outage(service: Service, postgres: str) -> Iterator[None]:
    name = str(service.settings.database_url).partition("?")[0].rsplit("/", 1)[1]
    close_database(service, postgres)
    try:
        yield
    finally:
        with psycopg.connect(postgres, autocommit=True) as connection:
            connection.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(sql.Identifier(name)))


def running(service: Service, analysis: str) -> bool:
    state: str = service.client.get(f"/v1/analyses/{analysis}").json()["state"]
    return state == "running"


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/analyses"), ("POST", "/v1/analyses"), ("POST", "/v1/models")]
)
def test_requests_are_told_to_come_back(api: Service, postgres: str, files: Files, method: str, path: str) -> None:
    body = {"content": files["model"]} if path == "/v1/models" else {"files": files if method == "POST" else None}
    with outage(api, postgres):
        response = api.client.request(method, path, **body)  # type: ignore[arg-type]
        assert (response.status_code, response.json()["code"]) == (503, "database_unavailable")
        assert response.headers["retry-after"] == "1"
        assert response.headers["content-type"] == "application/problem+json"
    assert api.client.request(method, path, **body).is_success  # type: ignore[arg-type]
    assert api.leftovers() == []


def test_a_running_analysis_goes_on_and_its_report_is_stored_afterwards(
    service: Service, postgres: str, files: Files
) -> None:
    analysis = submit(service, files, "sleep:3")
    until(lambda: running(service, analysis))
    with outage(service, postgres):
        until(lambda: service.leftovers() == [])  # its folder goes when the child has ended
    ended = service.ended(analysis)
    assert (ended["state"], ended["attempts"]) == ("succeeded", 1)


def test_a_worker_that_waited_for_work_is_there_afterwards(service: Service, postgres: str, files: Files) -> None:
    with outage(service, postgres):
        assert service.client.get("/readyz").status_code == 503
    assert service.ended(submit(service, files))["state"] == "succeeded"


@pytest.mark.slow
def test_workers_do_not_take_each_other_for_lost_afterwards(
    start_service: StartService, postgres: str, files: Files
) -> None:
    quick = {"heartbeat_seconds": 0.2, "stalled_seconds": 2.0}
    first, _ = start_service(**quick), start_service(**quick)
    analyses = [submit(first, files, "sleep:8") for _ in range(2)]
    until(lambda: all(running(first, analysis) for analysis in analyses))
    with outage(first, postgres):
        time.sleep(3.5)  # what is tested: longer than the silence after which a worker counts as lost
    assert [first.ended(analysis)["attempts"] for analysis in analyses] == [1, 1]


def test_who_waits_for_an_ended_analysis_is_told_after_an_outage(service: Service, postgres: str, files: Files) -> None:
    analysis = submit(service, files, "sleep:3")
    until(lambda: running(service, analysis))
    with outage(service, postgres):
        pass
    service.ended(analysis)
    following = service.client.post("/v1/analyses", files=files, headers={"Prefer": "wait=60"})
    assert following.status_code == 201


def test_patience_ends() -> None:
    tries = 0

    async def away() -> None:
        nonlocal tries
        tries += 1
        raise psycopg.OperationalError("gone")

    with pytest.raises(psycopg.OperationalError, match="gone"):
        asyncio.run(patiently(away, seconds=0.5))
    assert tries > 1


def test_only_a_database_that_is_away_is_waited_for() -> None:
    tries = 0

    async def wrong() -> None:
        nonlocal tries
        tries += 1
        raise psycopg.errors.UndefinedTable("no such table")

    with pytest.raises(psycopg.errors.UndefinedTable):
        asyncio.run(patiently(wrong, seconds=60))
    assert tries == 1
