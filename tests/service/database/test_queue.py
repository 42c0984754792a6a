from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncSession

from service.analyses import repository
from service.analyses.table import AnalysisRow
from service.database import queue
from service.database.engine import Database, NewerDatabaseError, latest_revision


def analysis(**values: Any) -> AnalysisRow:
    defaults = {
        "tenant": "default",
        "model": "a",
        "batch": "b",
        "options": {},
        "labels": {},
        "priority": 0,
        "timeout_s": 1.0,
    }
    return AnalysisRow(**{**defaults, "state": "queued", **values})


def in_database(url: str, act: Callable[[Database], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        database = Database(url)
        try:
            return await act(database)
        finally:
            await database.close()

    return asyncio.run(run())


async def counts(session: AsyncSession) -> tuple[int, int]:
    query = "SELECT (SELECT count(*) FROM analyses), (SELECT count(*) FROM procrastinate_jobs)"
    rows, jobs = (await session.execute(text(query))).one()
    return rows, jobs


@pytest.mark.parametrize("committed", [True, False])
def test_the_analysis_and_its_job_are_written_together_or_not_at_all(database_url: str, committed: bool) -> None:
    async def act(database: Database) -> tuple[int, int]:
        app = queue.open_queue(database_url)
        try:
            async with database.transaction() as session:
                row = analysis()
                session.add(row)
                await session.flush()
                row.job_id = await queue.defer(session, app, row.id, device="auto", priority=0)
                assert await counts(session) == (1, 1)
                if not committed:
                    raise ConnectionAbortedError
        except ConnectionAbortedError:
            pass
        async with database.transaction() as session:
            return await counts(session)

    assert in_database(database_url, act) == ((1, 1) if committed else (0, 0))


@pytest.mark.parametrize(
    ("asked", "worker", "served"),
    [
        ("auto", "cpu", True),
        ("auto", "cuda:1", True),
        ("cpu", "cpu", True),
        ("cpu", "cuda:0", False),
        ("cuda", "cuda:1", True),
        ("cuda:1", "cuda:1", True),
        ("cuda:0", "cuda:1", False),
        ("auto", "cuda:0+cuda:1", True),
        ("cuda", "cuda:0+cuda:1", True),
        ("cuda:1", "cuda:0+cuda:1", True),
        ("cuda:2", "cuda:0+cuda:1", False),
        ("several", "cuda:0+cuda:1", True),
        ("several", "cuda:1", False),
        ("cuda", "MIG-1", True),
    ],
)
def test_an_analysis_goes_to_a_worker_with_the_device_it_asks_for(asked: str, worker: str, served: bool) -> None:
    assert (queue.queue_name(asked) in queue.queues_of(worker)) is served


def test_the_first_report_stays_and_a_late_attempt_changes_nothing(database_url: str) -> None:
    async def act(database: Database) -> tuple[str, str]:
        async with database.transaction() as session:
            row = analysis(state="running")
            session.add(row)
        async with database.transaction() as session:
            assert await repository.succeed(session, row.id, "first") is not None
        async with database.transaction() as session:
            assert await repository.succeed(session, row.id, "second") is None
            assert await repository.fail(session, row.id, {"code": "late"}) is None
            assert await repository.cancelled(session, row.id) is None
            assert await repository.start(session, row.id) is None
        async with database.transaction() as session:
            ended, report = await repository.find_with_report(session, row.id, "default")
            assert ended is not None
            assert report is not None
            return ended.state, report.body

    assert in_database(database_url, act) == ("succeeded", "first")


def test_an_analysis_and_its_report_are_read_together_since_a_sweep_may_come_between(database_url: str) -> None:
    async def act(database: Database) -> tuple[int, Any]:
        async with database.transaction() as session:
            row = analysis(state="running")
            session.add(row)
            await session.flush()
            await repository.succeed(session, row.id, "report")
        statements: list[str] = []
        event.listen(database.engine.sync_engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
        async with database.transaction() as session:
            found, report = await repository.find_with_report(session, row.id, "default")
            assert found is not None
            assert report is not None
            assert await repository.find_with_report(session, row.id, "another") == (None, None)
        return len(statements), (found.state, report.body)

    assert in_database(database_url, act) == (2, ("succeeded", "report"))


def test_what_is_being_cancelled_does_not_end_as_a_success(database_url: str) -> None:
    async def act(database: Database) -> None:
        async with database.transaction() as session:
            row = analysis(state="cancelling")
            session.add(row)
            await session.flush()
            assert await repository.succeed(session, row.id, "report") is None
            assert await repository.find_with_report(session, row.id, "default") == (row, None)

    in_database(database_url, act)


def test_migrations_that_start_together_take_turns_and_can_be_repeated(postgres: str) -> None:
    async def act(database: Database) -> bool:
        async with database.engine.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            await connection.execute(text("CREATE DATABASE fresh"))
        fresh = Database(postgres.replace("/postgres?", "/fresh?"))
        assert not await fresh.is_current()
        await asyncio.gather(*(fresh.migrate() for _ in range(3)))
        current = await fresh.is_current()
        await fresh.close()
        return current

    assert in_database(postgres, act)


def test_tables_of_a_later_version_are_refused_at_the_start_and_good_enough_for_who_runs(database_url: str) -> None:
    async def act(database: Database) -> tuple[bool, str | None]:
        async with database.transaction() as session:
            await session.execute(text("UPDATE alembic_version SET version_num = 'later'"))
        with pytest.raises(NewerDatabaseError, match=f"at revision later, .* up to {latest_revision()}"):
            await database.migrate()
        async with database.transaction() as session:
            found = await session.scalar(text("SELECT version_num FROM alembic_version"))
        return await database.is_current(), found

    assert in_database(database_url, act) == (True, "later")


def test_tables_of_an_earlier_version_are_not_good_enough(database_url: str) -> None:
    async def act(database: Database) -> bool:
        async with database.transaction() as session:
            await session.execute(text("UPDATE alembic_version SET version_num = '0001'"))
        return await database.is_current()

    assert not in_database(database_url, act)


def test_a_newer_queue_schema_brings_its_migrations(database_url: str) -> None:
    newest = "DELETE FROM queue_migrations WHERE name = (SELECT max(name) FROM queue_migrations) RETURNING name"

    async def act(database: Database) -> None:
        async with database.transaction() as session:
            name = await session.scalar(text(newest))
        with pytest.MonkeyPatch.context() as patch:
            run: list[str] = []

            async def record(_: object, script: str) -> None:
                run.append(script)

            patch.setattr("service.database.engine._run_script", record)
            await database.migrate()
            await database.migrate()
        assert len(run) == 1
        async with database.transaction() as session:
            assert await session.scalar(text("SELECT max(name) FROM queue_migrations")) == name

    in_database(database_url, act)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"device": "cuda:1"}, "cuda:1"),
        ({"device": "auto", "devices": None}, "auto"),
        ({"device": "auto", "devices": ["all"]}, queue.SEVERAL),
    ],
)
def test_options_say_which_device_is_wanted(options: dict[str, Any], wanted: str) -> None:
    assert queue.wanted_device(options) == wanted
