"""A service that tests share is the same for each of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.service import Files, submit, until
from support.standing import Standing


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
