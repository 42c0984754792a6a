from __future__ import annotations

import asyncio
import errno
import shutil
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import psycopg
import pytest
from support.service import DEADLINE, Files, Service, StartService, submit, until

from service.database.engine import Database
from service.database.notifications import Notifications
from service.database.queue import open_queue
from service.storage import folder, store
from service.worker.worker import rescue


def state(service: Service, analysis: str) -> str:
    found: str = service.client.get(f"/v1/analyses/{analysis}").json()["state"]
    return found


def lose_worker(service: Service, analysis: str, *, attempts: int = 1, state: str = "running") -> None:
    """Leaves the analysis as a worker does that was killed while it ran it."""
    service.sql("INSERT INTO procrastinate_workers (last_heartbeat) VALUES (now() - interval '1 hour')")
    service.sql(
        "UPDATE procrastinate_jobs SET status = 'doing', worker_id = (SELECT max(id) FROM procrastinate_workers)"
    )
    service.sql("UPDATE analyses SET state = %s, attempts = %s WHERE id = %s", state, attempts, analysis)


def run_rescue(service: Service) -> None:
    async def act() -> None:
        database = Database(str(service.settings.database_url))
        queue = open_queue(str(service.settings.database_url))
        async with queue.open_async():
            await rescue(service.settings, database, queue)
        await database.close()

    asyncio.run(act())


def jobs(service: Service) -> list[tuple[object, ...]]:
    return service.sql("SELECT status::text FROM procrastinate_jobs")


def test_the_job_of_a_lost_worker_goes_back_to_the_queue(api: Service, files: Files) -> None:
    analysis = submit(api, files)
    lose_worker(api, analysis)
    run_rescue(api)
    assert jobs(api) == [("todo",)]


def test_a_worker_takes_over_what_a_lost_one_has_left(start_service: StartService, api: Service, files: Files) -> None:
    analysis = submit(api, files)
    lose_worker(api, analysis)
    start_service()
    ended = api.ended(analysis)
    assert (ended["state"], ended["attempts"]) == ("succeeded", 2)


def test_after_the_last_attempt_the_analysis_fails_as_worker_lost(api: Service, files: Files) -> None:
    analysis = submit(api, files)
    lose_worker(api, analysis, attempts=3)
    run_rescue(api)
    ended = api.ended(analysis)
    assert (ended["state"], ended["error"]["code"]) == ("failed", "worker_lost")
    assert jobs(api) == []


def test_what_a_lost_worker_was_cancelling_is_cancelled(api: Service, files: Files) -> None:
    analysis = submit(api, files)
    lose_worker(api, analysis, state="cancelling")
    run_rescue(api)
    assert (state(api, analysis), jobs(api)) == ("cancelled", [])


def test_an_analysis_that_the_queue_has_forgotten_does_not_wait_for_ever(api: Service, files: Files) -> None:
    analysis = submit(api, files)
    api.sql("DELETE FROM procrastinate_events")
    api.sql("DELETE FROM procrastinate_jobs")
    run_rescue(api)
    assert api.ended(analysis)["error"]["code"] == "worker_lost"


def test_a_live_worker_is_not_taken_for_lost(service: Service, files: Files) -> None:
    analysis = submit(service, files, "sleep:60")
    until(lambda: state(service, analysis) == "running")
    run_rescue(service)
    assert jobs(service) == [("doing",)]


def test_a_job_whose_end_could_not_be_written_is_looked_at_again(service: Service, files: Files) -> None:
    analysis = submit(service, files)
    service.ended(analysis)
    until(lambda: jobs(service) == [])
    service.sql(
        "INSERT INTO procrastinate_jobs (queue_name, task_name, args, status, worker_id)"
        " SELECT 'analyses', 'run_analysis', jsonb_build_object('analysis', %s::text), 'doing', max(id)"
        " FROM procrastinate_workers",
        analysis,
    )
    until(lambda: jobs(service) == [])
    assert service.ended(analysis)["attempts"] == 1


def test_a_worker_that_stops_lets_a_short_analysis_finish(start_service: StartService, files: Files) -> None:
    service = start_service(shutdown_seconds=60)
    analysis = submit(service, files, "sleep:3")
    until(lambda: state(service, analysis) == "running")
    service.loop.call_soon_threadsafe(service.worker_stop.set)
    assert service.ended(analysis)["state"] == "succeeded"


def test_a_worker_that_stops_puts_a_long_analysis_back(start_service: StartService, files: Files) -> None:
    service = start_service(shutdown_seconds=0.2)
    analysis = submit(service, files, "sleep:60")
    until(lambda: state(service, analysis) == "running")
    service.loop.call_soon_threadsafe(service.worker_stop.set)
    until(lambda: jobs(service) == [("todo",)])
    found = service.client.get(f"/v1/analyses/{analysis}").json()
    assert (found["state"], found["attempts"]) == ("queued", 0)
    assert service.leftovers() == []


@pytest.mark.slow
def test_a_model_that_was_lost_from_the_disk_is_told(api: Service, start_service: StartService, files: Files) -> None:
    analysis = submit(api, files)
    for path in api.stored():
        path.unlink()
    start_service()
    assert api.ended(analysis)["error"]["code"] == "blob_missing"


@pytest.mark.slow
def test_a_full_disk_costs_no_attempt(
    start_service: StartService, api: Service, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    analysis = submit(api, files)
    copied, failures = shutil.copyfile, iter(range(api.settings.max_attempts + 1))

    def copy(source: Path, destination: Path) -> None:
        if next(failures, None) is not None:
            raise OSError(errno.ENOSPC, "No space left on device")
        copied(source, destination)

    monkeypatch.setattr(folder.shutil, "copyfile", copy)
    start_service()
    ended = api.ended(analysis)
    assert (ended["state"], ended["attempts"], next(failures, None)) == ("succeeded", 1, None)


@pytest.mark.slow
def test_an_analysis_waits_until_the_disk_has_room_for_its_files(
    start_service: StartService, api: Service, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    analysis = submit(api, files)
    usage, looks = shutil.disk_usage, count()

    def full(path: Path) -> Any:
        return usage(path) if next(looks) >= api.settings.max_attempts else usage(path)._replace(free=10)

    monkeypatch.setattr(store.shutil, "disk_usage", full)
    start_service()
    ended = api.ended(analysis)
    assert (ended["state"], ended["attempts"]) == ("succeeded", 1)


def test_a_worker_is_seen_while_it_lives_and_gone_when_it_stops(service: Service) -> None:
    found = service.client.get("/v1/capabilities").json()
    assert (found["workers"], found["devices"]) == (1, ["cpu"])
    assert "no_new_privs" in found["sandbox"]["protections"]
    service.loop.call_soon_threadsafe(service.worker_stop.set)
    until(lambda: service.client.get("/v1/capabilities").json()["workers"] == 0)
    assert service.client.get("/readyz").json()["details"] == {"missing": "worker"}


def test_the_limits_are_told(start_service: StartService) -> None:
    api = start_service(worker=False, max_model_bytes=123)
    found = api.client.get("/v1/capabilities").json()
    assert found["limits"]["model_bytes"] == 123
    assert found["formats"] == {"models": ["onnx", "pt2"], "batches": ["npz", "safetensors"]}
    assert found["sandbox"]["protections"] == []


def test_without_current_tables_the_service_is_not_ready(api: Service) -> None:
    api.sql("UPDATE alembic_version SET version_num = '0001'")
    response = api.client.get("/readyz")
    assert (response.status_code, response.json()["details"]) == (503, {"missing": "migrations"})
    assert api.client.get("/healthz").json() == {"status": "ok"}


def test_a_lost_notification_connection_is_replaced(database_url: str) -> None:
    analysis = UUID(int=5)

    async def act() -> None:
        notifications = Notifications(database_url, retry_seconds=0.05)
        async with notifications.listening():
            with notifications.subscribe(analysis) as changed:
                await asyncio.to_thread(end_other_connections, database_url)
                # Everybody is woken after the gap, since nobody knows what was missed in it.
                await asyncio.wait_for(changed.wait(), DEADLINE)
                changed.clear()
                await asyncio.to_thread(notify, database_url, analysis)
                await asyncio.wait_for(changed.wait(), DEADLINE)

    asyncio.run(act())


def end_other_connections(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


def notify(url: str, analysis: UUID) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SELECT pg_notify('wsb_analyses', %s)", (f"{analysis} ended",))


@pytest.fixture
def watched(start_service: StartService) -> StartService:
    """Starts a service whose processes are no other's."""
    return partial(start_service, own_zygote=True)


def child(service: Service) -> psutil.Process | None:
    """The process that runs an analysis."""
    children = psutil.Process(service.zygote.pid).children() if service.zygote.pid else []
    return children[0] if children else None


def test_an_analysis_whose_process_is_killed_from_outside_is_tried_again(watched: StartService, files: Files) -> None:
    service = watched()
    analysis = submit(service, files, "sleep:3")
    until(lambda: state(service, analysis) == "running" and child(service)).kill()
    ended = service.ended(analysis)
    assert (ended["state"], ended["attempts"], ended["error"]) == ("succeeded", 2, None)


@pytest.mark.slow
def test_an_analysis_whose_zygote_is_killed_is_tried_again(watched: StartService, files: Files) -> None:
    service = watched()
    analysis = submit(service, files, "sleep:3")
    until(lambda: state(service, analysis) == "running" and child(service)).parent().kill()
    ended = service.ended(analysis)
    assert (ended["state"], ended["attempts"]) == ("succeeded", 2)


@pytest.mark.slow
def test_after_the_last_attempt_it_says_that_the_process_was_killed(watched: StartService, files: Files) -> None:
    service = watched(max_attempts=1)
    analysis = submit(service, files, "sleep:60")
    until(lambda: state(service, analysis) == "running" and child(service)).kill()
    ended = service.ended(analysis)
    assert (ended["state"], ended["error"]["code"]) == ("failed", "worker_child_killed")


def test_an_analysis_that_takes_too_much_memory_fails_at_once(start_service: StartService, files: Files) -> None:
    service = start_service(job_memory_bytes=256 << 20)
    ended = service.ended(submit(service, files, f"allocate:{1 << 30}"))
    assert (ended["state"], ended["error"]["code"], ended["attempts"]) == ("failed", "out_of_memory", 1)


def test_cancelling_ends_the_process_without_a_poll(watched: StartService, files: Files) -> None:
    service = watched(poll_seconds=60)
    analysis = submit(service, files, "sleep:60")
    running = until(lambda: state(service, analysis) == "running" and child(service))
    assert service.client.post(f"/v1/analyses/{analysis}/cancel").status_code == 202
    running.wait(50)
    until(lambda: state(service, analysis) == "cancelled", seconds=50)


@pytest.mark.slow
def test_what_a_killed_worker_has_left_in_the_job_folder_is_removed(start_service: StartService, files: Files) -> None:
    api = start_service(worker=False)
    left = api.settings.job_dir / "scratch-left" / "job-1"
    left.mkdir(parents=True)
    (left / "model").write_bytes(files["model"])
    start_service()
    assert not left.parent.exists()
