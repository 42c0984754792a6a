"""A service that tests share is the same for each of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from support.service import Files, submit, until
from support.standing import Standing, fresh_database


@pytest.fixture
def standing(postgres: str, tmp_path: Path) -> Iterator[Standing]:
    found = Standing(postgres, tmp_path)
    yield found
    found.close()


def test_it_is_lent_again_without_what_was_done_to_it(standing: Standing, files: Files) -> None:
    first = standing.lend()
    first.client.headers["Accept"] = "text/html"
    running, waiting = submit(first, files, "sleep:60"), submit(first, files)
    until(lambda: first.sql("SELECT state FROM analyses WHERE id = %s", running) == [("running",)])
    assert len(first.stored()) == 2
    standing.take_back()
    again = standing.lend()
    assert again is first
    assert again.client.get("/v1/analyses").json()["items"] == []
    assert again.client.get("/v1/models").json()["items"] == []
    assert again.stored() == []
    assert again.sql("SELECT count(*) FROM procrastinate_jobs") == [(0,)]
    assert again.ended(submit(again, files))["state"] == "succeeded"
    assert waiting != running


def rows(url: str) -> dict[str, int]:
    """How many each table has."""
    with psycopg.connect(url) as connection:
        tables = [name for (name,) in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]
        counts = [connection.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(t))) for t in tables]
        return {table: count.fetchall()[0][0] for table, count in zip(tables, counts, strict=True)}


def test_its_tables_are_then_those_of_a_fresh_database(standing: Standing, postgres: str, files: Files) -> None:
    api = standing.lend(worker=False)
    submit(api, files)
    standing.take_back()
    with fresh_database(postgres) as url:
        assert rows(str(api.settings.database_url)) == rows(url)


@pytest.mark.slow
def test_one_that_a_test_has_changed_is_not_lent_again(standing: Standing) -> None:
    first = standing.lend(worker=False)
    first.sql("UPDATE alembic_version SET version_num = '0001'")
    standing.take_back()
    second = standing.lend(worker=False)
    assert second is not first
    second.loop.call_soon_threadsafe(second.stopping.set)
    until(second.stopping.is_set)
    standing.take_back()
    assert standing.lend(worker=False) is not second


def test_other_settings_are_another_service(standing: Standing) -> None:
    first, second = standing.lend(worker=False), standing.lend(worker=False, max_queue=1)
    assert (first.settings.max_queue, second.settings.max_queue) == (1000, 1)
    assert standing.lend(worker=False) is first
