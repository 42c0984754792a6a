"""GET /v1/analyses/{id}/events, as a client sees it over a socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx
import pytest
from support.client import connect
from support.forms import full
from support.service import DEADLINE, Files, Service, StartService, submit, until

from service.database.engine import Database
from service.database.notifications import Notifications, announce


@dataclass
class Event:
    name: str
    id: int | None
    data: Any


class Stream:
    """An open stream of events, read as the standard says."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.retry: int | None = None
        self._lines = response.iter_lines()

    def __iter__(self) -> Iterator[Event]:
        fields: dict[str, str] = {}
        for line in self._lines:
            name, _, value = line.partition(": ")
            if line == "" and "data" in fields:
                identifier = int(fields["id"]) if "id" in fields else None
                yield Event(fields.get("event", "message"), identifier, json.loads(fields["data"]))
            if line == "":
                self.retry = int(fields["retry"]) if "retry" in fields else self.retry
                fields = {}
            else:
                fields[name] = value

    def next(self) -> Event:
        return next(iter(self))

    def comment(self) -> str:
        return next(line for line in self._lines if line.startswith(":"))


@contextmanager
def stream(service: Service, analysis: str, last: int | str | None = None) -> Iterator[Stream]:
    headers = {} if last is None else {"Last-Event-ID": str(last)}
    with service.client.stream("GET", f"/v1/analyses/{analysis}/events", headers=headers) as response:
        assert response.status_code == 200, response.read()
        yield Stream(response)


def change(service: Service, analysis: str, *, notify: bool = True, **columns: Any) -> None:
    """One change of the row, as a worker would make it."""
    values = ", ".join(f"{name} = %s" for name in columns)
    service.sql(
        f"UPDATE analyses SET revision = revision + 1, {values} WHERE id = %s",  # noqa: S608
        *columns.values(),
        analysis,
    )
    if notify:
        service.sql("SELECT pg_notify('wsb_analyses', %s)", f"{analysis} changed")


def progress(fraction: float) -> str:
    return json.dumps({"phase": "moments", "fraction": fraction, "hessian_vector_products": 2, "enclosure": None})


def test_a_stream_tells_each_state_and_the_progress_in_order_and_then_ends(
    start_service: StartService, files: Files
) -> None:
    service = start_service(progress_seconds=0.05)
    analysis = submit(service, files, "sleep:1")
    with stream(service, analysis) as events:
        seen = list(events)
    assert seen[-2].data == service.client.get(f"/v1/analyses/{analysis}").json()
    assert (seen[-1].name, seen[-1].data) == ("end", {"state": "succeeded"})
    assert {"name": "progress", "data": json.loads(progress(0.5)) | {"hessian_vector_products": 3}} in [
        {"name": event.name, "data": event.data} for event in seen
    ]
    states = [event.data["state"] for event in seen if event.name == "state"]
    assert states == sorted(set(states), key=["queued", "running", "succeeded"].index)
    identifiers = [event.id for event in seen[:-1]]
    assert identifiers == sorted(set(identifiers))
    assert seen[-1].id == seen[-2].id


def test_the_stream_of_an_ended_analysis_is_its_state_and_the_end(service: Service, files: Files) -> None:
    analysis = submit(service, files, "fail")
    service.ended(analysis)
    with stream(service, analysis) as events:
        state, end = events
    assert (state.name, state.data["error"]["code"]) == ("state", "unsupported_operator")
    assert (end.name, end.data) == ("end", {"state": "failed"})


def test_the_answer_can_be_neither_cached_nor_held_back(api: Service, files: Files) -> None:
    with stream(api, submit(api, files)) as events:
        assert events.next().name == "state"
        headers = events.response.headers
        assert headers["content-type"].startswith("text/event-stream")
        assert (headers["cache-control"], headers["x-accel-buffering"]) == ("no-store", "no")
        assert events.retry is not None


def test_a_client_that_comes_back_is_not_told_again_what_it_has_seen(api: Service, files: Files) -> None:
    analysis = submit(api, files)
    with stream(api, analysis) as events:
        last = events.next().id
    with stream(api, analysis, last) as events:
        api.client.post(f"/v1/analyses/{analysis}/cancel")
        assert [(event.name, event.data["state"]) for event in events] == [("state", "cancelled"), ("end", "cancelled")]


def test_a_client_that_has_seen_the_final_state_is_told_only_the_end(api: Service, files: Files) -> None:
    analysis = submit(api, files)
    api.client.post(f"/v1/analyses/{analysis}/cancel")
    with stream(api, analysis) as events:
        last = events.next().id
    with stream(api, analysis, last) as events:
        assert [event.name for event in events] == ["end"]


@pytest.mark.parametrize("last", [0, "", "nonsense", "٣", "9" * 40])
def test_a_client_that_comes_back_with_less_or_nonsense_is_told_the_latest(
    api: Service, files: Files, last: int | str
) -> None:
    with api.client.stream(
        "GET", f"/v1/analyses/{submit(api, files)}/events", headers=[(b"Last-Event-ID", str(last).encode())]
    ) as response:
        assert Stream(response).next().data["state"] == "queued"


def test_progress_is_told_without_the_rest_and_a_new_attempt_as_a_state(api: Service, files: Files) -> None:
    analysis = submit(api, files)
    with stream(api, analysis) as events:
        assert events.next().name == "state"
        change(api, analysis, state="running", attempts=1)
        assert events.next().data["state"] == "running"
        change(api, analysis, progress=progress(0.25))
        event = events.next()
        assert (event.name, event.data) == ("progress", json.loads(progress(0.25)))
        change(api, analysis, attempts=2, progress=None)
        event = events.next()
        assert (event.name, event.data["attempts"]) == ("state", 2)


def test_changes_that_nobody_has_read_yet_are_one_event(api: Service, files: Files) -> None:
    analysis = submit(api, files)
    with stream(api, analysis) as events:
        first = events.next()
        api.sql(
            "DO $$ BEGIN FOR i IN 1..200 LOOP UPDATE analyses SET revision = revision + 1;"
            " PERFORM pg_notify('wsb_analyses', (SELECT id FROM analyses) || ' changed'); END LOOP; END $$"
        )
        assert events.next().id == (first.id or 0) + 200
        change(api, analysis, priority=1)
        assert events.next().id == (first.id or 0) + 201


def test_a_quiet_stream_has_a_heartbeat(start_service: StartService, files: Files) -> None:
    api = start_service(worker=False, event_heartbeat_seconds=0.1)
    analysis = submit(api, files)
    with stream(api, analysis) as events:
        events.next()
        assert [events.comment() for _ in range(3)] == [": still here"] * 3


def test_a_change_whose_notification_got_lost_is_told_with_the_next_heartbeat(
    start_service: StartService, files: Files
) -> None:
    api = start_service(worker=False, event_heartbeat_seconds=0.2)
    analysis = submit(api, files)
    with stream(api, analysis) as events:
        events.next()
        change(api, analysis, notify=False, state="running")
        assert events.next().data["state"] == "running"


def test_a_server_that_stops_closes_its_streams_without_an_end(api: Service, files: Files) -> None:
    with stream(api, submit(api, files)) as events:
        assert events.next().name == "state"
        api.loop.call_soon_threadsafe(api.stopping.set)
        assert list(events) == []


def test_an_analysis_that_is_deleted_closes_its_streams(api: Service, files: Files) -> None:
    analysis = submit(api, files)
    with stream(api, analysis) as events:
        events.next()
        api.sql("DELETE FROM analyses WHERE id = %s", analysis)
        api.sql("SELECT pg_notify('wsb_analyses', %s)", f"{analysis} changed")
        assert list(events) == []


@pytest.mark.slow
@pytest.mark.parametrize("clients", [40, full(200)])
def test_many_clients_are_all_told_the_end(api: Service, files: Files, clients: int) -> None:
    analysis = submit(api, files)

    async def follow(client: httpx.AsyncClient, ready: asyncio.Semaphore) -> str:
        text = ""
        async with client.stream("GET", f"/v1/analyses/{analysis}/events") as response:
            async for line in response.aiter_lines():
                text += line + "\n"
                if '"queued"' in line:
                    ready.release()
        return text

    async def follow_all() -> list[str]:
        ready = asyncio.Semaphore(0)
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=api.url, limits=limits, timeout=60) as client:
            tasks = [asyncio.create_task(follow(client, ready)) for _ in range(clients)]
            for _ in range(clients):
                await ready.acquire()
            assert (await client.post(f"/v1/analyses/{analysis}/cancel")).status_code == 202
            return await asyncio.gather(*tasks)

    texts = asyncio.run(follow_all())
    assert len(texts) == clients
    assert all("event: end\ndata: " in text and text.count("event: state") == 2 for text in texts)


def test_more_streams_than_allowed_are_refused_until_one_is_left(start_service: StartService, files: Files) -> None:
    api = start_service(worker=False, max_event_streams=1)
    analysis = submit(api, files)
    path = f"/v1/analyses/{analysis}/events"
    with connect(api.url) as other:
        with stream(api, analysis) as first:
            assert first.next().name == "state"
            refused = other.get(path)
            assert (refused.status_code, refused.json()["code"]) == (503, "too_many_streams")
            assert refused.headers["retry-after"] == "5"

        def accepted() -> bool:
            with other.stream("GET", path) as response:
                return response.status_code == 200

        until(accepted)


def test_a_stream_of_nothing_is_not_found(api: Service) -> None:
    for analysis in (str(uuid4()), "nonsense"):
        response = api.client.get(f"/v1/analyses/{analysis}/events")
        assert (response.status_code, response.json()["code"]) == (404, "analysis_not_found")


def test_only_who_asks_for_every_change_is_woken_before_the_end(database_url: str) -> None:
    analysis = uuid4()

    async def main() -> None:
        notifications, database = Notifications(database_url), Database(database_url)
        async with notifications.listening():
            with (
                notifications.subscribe(analysis) as ended,
                notifications.subscribe(analysis, every_change=True) as changed,
            ):
                for final, woken in ((False, False), (True, True)):
                    async with database.transaction() as session:
                        await announce(session, analysis, ended=final)
                    await asyncio.wait_for(changed.wait(), DEADLINE)
                    changed.clear()
                    assert ended.is_set() == woken
        await database.close()

    asyncio.run(main())
