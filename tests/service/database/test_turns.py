"""Whose analysis a worker takes next."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from sqlalchemy import select
from support.service import until

from service.analyses.table import AnalysisRow
from service.database import queue, turns
from service.database.engine import Database


def row(tenant: str, **values: Any) -> AnalysisRow:
    given = {"model": "a", "batch": "b", "options": {}, "labels": {}, "priority": 0, "timeout_s": 1.0}
    return AnalysisRow(tenant=tenant, state="queued", **{**given, **values})


class Queue:
    """The queue of a database, as the API fills it and workers empty it."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._workers = 0

    def put(self, *tenants: str, device: str = "auto", priority: int = 0) -> None:
        """Queue an analysis for each of these tenants, in this order."""

        async def act() -> None:
            database, app = Database(self._url), queue.open_queue(self._url)
            async with database.transaction() as session:
                for tenant in tenants:
                    new = row(tenant, priority=priority)
                    session.add(new)
                    await session.flush()
                    new.job_id = await queue.defer(session, app, new.id, device=device, priority=priority)
            await database.close()

        asyncio.run(act())

    def take(
        self, number: int, *, device: str = "cpu", weights: Mapping[str, float] | None = None, workers: int = 1
    ) -> list[str]:
        """Take so many jobs, each of the workers in turn or all at once; return whose they were."""

        async def act() -> list[str]:
            app = queue.open_queue(self._url)
            async with app.open_async():
                worker = await app.job_manager.register_worker()
                found: list[Any] = []
                for _ in range(number // workers):
                    found += await asyncio.gather(
                        *(
                            turns.claim(
                                app.connector, queue.queues_of(device), worker, device=device, weights=weights or {}
                            )
                            for _ in range(workers)
                        )
                    )
            return await self._tenants([job.task_kwargs["analysis"] for job in found if job is not None])

        return asyncio.run(act())

    async def _tenants(self, analyses: list[str]) -> list[str]:
        database = Database(self._url)
        async with database.transaction() as session:
            known = {str(a): t for a, t in await session.execute(select(AnalysisRow.id, AnalysisRow.tenant))}
        await database.close()
        return [known[analysis] for analysis in analyses]


@pytest.fixture
def jobs(database_url: str) -> Queue:
    return Queue(database_url)


@pytest.mark.slow
def test_a_tenant_that_comes_after_hundreds_of_another_is_next(jobs: Queue) -> None:
    jobs.put(*"a" * 300)
    assert jobs.take(3) == ["a"] * 3
    jobs.put("b", "b")
    assert jobs.take(5) == ["b", "a", "b", "a", "a"]


def test_priority_orders_only_the_tenants_own_analyses(jobs: Queue, database_url: str) -> None:
    jobs.put("a", "a")
    jobs.put("a", "a", priority=100)
    jobs.put("b", "b", priority=-100)
    assert jobs.take(4) == ["a", "b", "a", "b"]
    with psycopg.connect(database_url) as connection:
        query = "SELECT priority FROM procrastinate_jobs WHERE status = 'doing' ORDER BY id"
        assert connection.execute(query).fetchall() == [(100,), (100,), (-100,), (-100,)]


@pytest.mark.slow
def test_tenants_have_turns_in_proportion_to_their_weights(jobs: Queue) -> None:
    jobs.put(*"abc" * 40)
    found = jobs.take(40, weights={"a": 2, "b": 1, "c": 0.5})
    shares = Counter(found)
    assert shares["a"] == pytest.approx(40 * 4 / 7, abs=1)
    assert shares["b"] == pytest.approx(40 * 2 / 7, abs=1)
    assert shares["c"] == pytest.approx(40 * 1 / 7, abs=1)


def test_who_was_away_has_not_saved_up_turns(jobs: Queue) -> None:
    jobs.put("b", *"a" * 40)
    assert Counter(jobs.take(20)) == {"a": 19, "b": 1}
    jobs.put(*"b" * 20)
    assert Counter(jobs.take(10)) == {"a": 5, "b": 5}


def test_who_had_everything_while_alone_does_not_have_to_make_up_for_it(jobs: Queue) -> None:
    jobs.put(*"a" * 30)
    jobs.take(20)
    jobs.put(*"b" * 20)
    assert Counter(jobs.take(10)) == {"a": 5, "b": 5}


def test_each_kind_of_device_has_its_own_turns(jobs: Queue) -> None:
    jobs.put(*"a" * 10, device="cpu")
    jobs.put(*"aabb", device="cuda")
    assert jobs.take(10, device="cpu") == ["a"] * 10
    assert sorted(jobs.take(2, device="cuda:0")) == ["a", "b"]
    assert sorted(jobs.take(2, device="cuda:1")) == ["a", "b"]


def test_workers_that_take_at_the_same_moment_take_different_jobs_and_keep_to_the_shares(jobs: Queue) -> None:
    jobs.put(*"a" * 24, *"b" * 24)
    found = jobs.take(24, workers=4)
    assert len(found) == 24
    assert Counter(found)["a"] == pytest.approx(12, abs=3)
    assert Counter(found + jobs.take(24, workers=4)) == {"a": 24, "b": 24}


def test_whom_workers_take_at_the_same_moment_has_no_more_turns_than_others(jobs: Queue, database_url: str) -> None:
    jobs.put(*"a" * 10, *"b" * 10)
    assert jobs.take(2) == ["a", "b"]
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with (
        ThreadPoolExecutor(1) as others,
        psycopg.connect(database_url, autocommit=True) as watching,
        psycopg.connect(database_url) as holding,
    ):
        holding.execute("SELECT 1 FROM turns WHERE tenant = 'a' FOR UPDATE")
        taken = others.submit(jobs.take, 3, workers=3)
        # All have chosen before any of them has been counted.
        until(lambda: watching.execute(waiting).fetchone() == (3,))
        holding.rollback()
        assert taken.result() == ["a"] * 3
    assert jobs.take(3) == ["b"] * 3
    assert Counter(jobs.take(6)) == {"a": 3, "b": 3}


def test_a_job_that_is_to_be_tried_again_later_has_no_turn_yet(jobs: Queue, database_url: str) -> None:
    jobs.put("a", "b")
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("UPDATE procrastinate_jobs SET scheduled_at = now() + interval '1 hour' WHERE id % 2 = 1")
        assert jobs.take(2) == ["b"]


def test_an_empty_queue_gives_nothing(jobs: Queue) -> None:
    assert jobs.take(1) == []
