"""What a monitor reads at /metrics."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
import sqlalchemy
from alembic import command
from alembic.config import Config
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse
from support.outages import WAITING, close_database
from support.service import Files, Service, StartService, npz_batch, onnx_mlp, submit, until

import wsb_engine as wsb
from service.analyses.outcomes import CAUSES, TIMINGS, cause
from service.analyses.table import FINAL_STATES
from service.database import counters
from service.database.counters import BUCKETS, Event
from service.database.engine import Database
from service.keys import hash_key, new_key
from service.monitoring.metrics import OTHER, Metrics, SnapshotReader
from service.server.app import create_app
from service.settings import Settings

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


# What has been counted is a process's own, so that each test has its own service.
@pytest.fixture
def service(start_service: StartService) -> Service:
    return start_service()


@pytest.fixture
def api(start_service: StartService) -> Service:
    return start_service(worker=False)


def samples(text: str) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse(text)
        for sample in family.samples
    }


def value(service: Service, name: str, **labels: str) -> float | None:
    """As it is now; the database snapshot may be a second old."""
    found = samples(service.client.get("/metrics").text)
    return found.get((name, tuple(sorted(labels.items()))))


def series(service: Service, name: str) -> list[dict[str, str]]:
    found = samples(service.client.get("/metrics").text)
    return [dict(labels) for sample, labels in found if sample == name]


def test_analyses_and_slots_are_told_by_tenant(api: Service, files: Files) -> None:
    analysis = submit(api, files)
    until(lambda: value(api, "wsb_tenant_analyses", tenant="default", state="queued") == 1)
    held = {"kind": "event_streams", "tenant": "default"}
    with api.client.stream("GET", f"/v1/analyses/{analysis}/events") as events:
        lines = events.iter_lines()  # which closes the stream when it is forgotten
        next(lines)
        assert value(api, "wsb_tenant_slots", **held) == 1
    until(lambda: value(api, "wsb_tenant_slots", **held) is None)


@pytest.mark.slow
def test_analyses_that_end_are_counted_by_state_and_cause(service: Service, files: Files) -> None:
    for output in ("", "fail", "crash", "garbage"):
        service.ended(submit(service, files, output))
    until(lambda: value(service, "wsb_analyses_ended_total", state="failed") == 3)
    assert value(service, "wsb_analyses_ended_total", state="succeeded") == 1
    assert value(service, "wsb_analysis_failures_total", cause="rejected") == 1
    assert value(service, "wsb_analysis_failures_total", cause="crashed") == 2
    assert value(service, "wsb_queue_wait_seconds_count") == 4
    assert value(service, "wsb_analysis_duration_seconds_count") == 1


@pytest.mark.slow
def test_an_analysis_that_is_cancelled_in_the_queue_is_counted(api: Service, files: Files) -> None:
    analysis = submit(api, files)
    api.client.post(f"/v1/analyses/{analysis}/cancel")
    until(lambda: value(api, "wsb_analyses_ended_total", state="cancelled") == 1)
    assert value(api, "wsb_queue_wait_seconds_count") == 0


@pytest.mark.slow
def test_one_that_runs_out_of_time_is_counted_with_its_cause(start_service: StartService, files: Files) -> None:
    service = start_service(job_seconds=1)
    service.ended(submit(service, files, "sleep:60"))
    until(lambda: value(service, "wsb_analyses_ended_total", state="timed_out") == 1)
    assert value(service, "wsb_analysis_failures_total", cause="time_limit") == 1


@pytest.mark.slow
def test_totals_stay_when_the_analyses_are_deleted(service: Service, files: Files) -> None:
    service.ended(submit(service, files))
    service.sql("DELETE FROM analyses")
    until(lambda: value(service, "wsb_analyses_ended_total", state="succeeded") == 1)


def test_every_state_and_cause_is_there_before_it_happens(api: Service) -> None:
    assert {labels["state"] for labels in series(api, "wsb_analyses_ended_total")} == set(FINAL_STATES)
    assert {labels["cause"] for labels in series(api, "wsb_analysis_failures_total")} == set(CAUSES)


def test_the_queue_has_a_depth_and_an_age(api: Service, files: Files) -> None:
    submit(api, files)
    submit(api, files)
    api.sql("UPDATE analyses SET created_at = now() - interval '500 seconds' WHERE sequence = 1")
    until(lambda: value(api, "wsb_queue_depth") == 2)
    assert 500 <= (value(api, "wsb_queue_oldest_seconds") or 0) < 600
    assert value(api, "wsb_analyses", state="queued") == 2
    assert value(api, "wsb_analyses", state="running") == 0


def test_workers_are_counted_by_device(service: Service) -> None:
    assert value(service, "wsb_workers", device="cpu") == 1
    assert value(service, "wsb_database_up") == 1


@pytest.mark.slow
def test_requests_are_counted_by_template_never_by_path(api: Service) -> None:
    for number in range(20):
        api.client.get(f"/v1/models/sha256:{number:064x}")
        api.client.get(f"/v1/secret-{number}")
        api.client.request(f"BREW{number}", "/healthz")
    labels = {"method": "GET", "route": "/v1/models/{model_id}", "status": "404"}
    assert value(api, "wsb_http_requests_total", **labels) == 20
    assert value(api, "wsb_http_requests_total", method="GET", route=OTHER, status="404") == 20
    methods = {labels["method"] for labels in series(api, "wsb_http_requests_total")}
    assert methods == {"GET", OTHER}
    assert value(api, "wsb_http_request_duration_seconds_count", method="GET", route=OTHER) == 20


@pytest.mark.slow
def test_every_route_has_its_own_label(api: Service) -> None:
    paths = create_app(api.settings).openapi()["paths"]
    for path in paths:
        api.client.get(path.replace("{", "").replace("}", ""))
    until(lambda: value(api, "wsb_http_requests_total", method="GET", route="/metrics", status="200"))
    counted = {labels["route"] for labels in series(api, "wsb_http_requests_total")}
    assert set(paths) <= counted
    assert OTHER not in counted


def test_the_bytes_of_uploads_are_counted_by_kind(api: Service, files: Files) -> None:
    api.client.post("/v1/models", content=files["model"])
    api.client.post("/v1/batches", content=files["batch"])
    submit(api, files)
    assert value(api, "wsb_upload_bytes_total", kind="models") == len(files["model"])
    assert value(api, "wsb_upload_bytes_total", kind="batches") == len(files["batch"])
    assert (value(api, "wsb_upload_bytes_total", kind="forms") or 0) > len(files["model"]) + len(files["batch"])


def test_who_asks_for_openmetrics_gets_it(api: Service) -> None:
    response = api.client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    names = {family.name for family in parse_openmetrics(response.text)}
    assert {"wsb_build", "wsb_analyses_ended", "wsb_queue_wait_seconds", "process_cpu_seconds"} <= names


def test_others_get_the_text_format(api: Service) -> None:
    response = api.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    assert 'wsb_build_info{python="' in response.text
    assert f'version="{wsb.__version__}"' in response.text


def test_where_keys_are_set_a_monitor_needs_one(start_service: StartService) -> None:
    key = new_key()
    api = start_service(worker=False, api_keys=f"monitor:{hash_key(key)}")
    assert api.client.get("/metrics").status_code == 401
    assert api.client.get("/metrics", headers={"Authorization": f"Bearer {key}"}).status_code == 200


def test_without_the_database_the_process_still_tells_its_own(api: Service, postgres: str) -> None:
    close_database(api, postgres)
    until(lambda: value(api, "wsb_database_up") == 0)
    assert value(api, "wsb_queue_depth") is None
    assert value(api, "process_resident_memory_bytes")
    assert value(api, "wsb_http_requests_total", method="GET", route="/metrics", status="200")


def test_a_monitor_is_not_kept_waiting_by_a_database_that_hangs(start_service: StartService, files: Files) -> None:
    api = start_service(worker=False, probe_seconds=0.2)
    with psycopg.connect(str(api.settings.database_url)) as blocker:
        blocker.execute("LOCK TABLE totals IN ACCESS EXCLUSIVE MODE")
        until(lambda: value(api, "wsb_database_up") == 0)
        # One query waits, however often the monitor has asked.
        for _ in range(3):
            api.client.get("/metrics")
        assert api.sql(WAITING) == [(1,)]
    until(lambda: value(api, "wsb_database_up") == 1)


def test_applications_in_one_process_count_apart() -> None:
    settings = Settings(_env_file=None)
    create_app(settings)
    create_app(settings)
    one, other = Metrics(), Metrics()
    one.answered("GET", "/healthz", 200, seconds=0.1, received=0)
    key = ("wsb_http_requests_total", (("method", "GET"), ("route", "/healthz"), ("status", "200")))
    found = [samples(bytes(metrics.exposition("", None, {}).body).decode()) for metrics in (one, other)]
    assert [key in each for each in found] == [True, False]


def test_the_database_is_read_at_most_once_a_second(database_url: str) -> None:
    class Counting(Database):
        read = 0

        @asynccontextmanager
        async def transaction(self) -> Any:
            self.read += 1
            async with super().transaction() as session:
                yield session

    async def act() -> int:
        database = Counting(database_url)
        reader = SnapshotReader(Settings(_env_file=None), database)
        await asyncio.gather(*(reader.read() for _ in range(20)))
        await reader.read()
        await database.close()
        return database.read

    assert asyncio.run(act()) == 1


def test_events_that_come_at_one_time_are_all_counted(database_url: str) -> None:
    async def act() -> list[tuple[str, str, int]]:
        database = Database(database_url)

        async def count(number: int) -> None:
            # In either order, as two workers may come: they must not wait for each other for ever.
            events = [Event("phase", "load", 0.02), Event("phase", "loss", 0.02)]
            async with database.transaction() as session:
                await counters.add(session, events if number % 2 else reversed(events))

        await asyncio.gather(*map(count, range(30)))
        async with database.transaction() as session:
            found = [(row.metric, row.label, row.count) for row in await counters.read(session)]
        await database.close()
        return found

    assert asyncio.run(act()) == [("phase", "load", 30), ("phase", "loss", 30)]


def test_durations_are_a_cumulative_histogram(api: Service) -> None:
    async def act() -> None:
        database = Database(str(api.settings.database_url))
        for seconds in (-1.0, 0.01, 0.02, 7.0, 1e9):
            async with database.transaction() as session:
                await counters.add(session, [Event("phase", "moments", seconds)])
        await database.close()

    asyncio.run(act())
    name = "wsb_analysis_phase_seconds"
    until(lambda: value(api, f"{name}_count", phase="moments") == 5)
    buckets = {end: value(api, f"{name}_bucket", phase="moments", le=end) for end in ("0.01", "0.03", "10.0", "+Inf")}
    assert buckets == {"0.01": 2, "0.03": 3, "10.0": 4, "+Inf": 5}
    assert value(api, f"{name}_sum", phase="moments") == pytest.approx(1e9 + 7.03)


def test_the_buckets_ascend_to_infinity() -> None:
    assert list(BUCKETS) == sorted(set(BUCKETS))
    assert math.isinf(BUCKETS[-1])


@pytest.mark.slow
def test_every_phase_of_the_engine_is_counted(tmp_path: Any) -> None:
    (tmp_path / "model.onnx").write_bytes(onnx_mlp())
    (tmp_path / "batch.npz").write_bytes(npz_batch())
    classifier, batch = wsb.load_model(tmp_path / "model.onnx"), wsb.load_batch(tmp_path / "batch.npz")
    # Moments by the basis come after the enclosure, which is then finished by deflation.
    questions = {
        "layers": "certified",
        "groups": ("*",),
        "classes": "certified",
        "gauss_newton": True,
        "alignment": True,
        "scaling": "tensor",
        "optimizer": {"kind": "sgd"},
        "population": 0.95,
    }
    reports = [wsb.analyze(classifier, batch, wsb.Options(moments="auto", **questions))]
    reports.append(wsb.analyze(classifier, batch, wsb.Options(moments="basis")))
    assert {phase for report in reports for phase in report.timings} == set(TIMINGS)


@pytest.mark.parametrize("code", ["worker_made_up", "zygote_x", "made_up", "", "out_of_memory", "worker_child_killed"])
def test_whatever_code_a_child_makes_up_has_one_of_the_known_causes(code: str) -> None:
    assert cause(code) in CAUSES


@pytest.fixture
def alembic(database_url: str) -> Iterator[tuple[Config, sqlalchemy.Connection]]:
    engine = sqlalchemy.create_engine("postgresql+psycopg://" + database_url.split("://", 1)[1])
    config = Config()
    config.set_main_option("script_location", "service.database:migrations")
    config.set_main_option("path_separator", "os")
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        yield config, connection
    engine.dispose()


def test_the_migration_can_be_undone_and_repeated(alembic: tuple[Config, sqlalchemy.Connection]) -> None:
    config, connection = alembic
    exists = sqlalchemy.text("SELECT to_regclass('totals') IS NOT NULL")
    trigger = sqlalchemy.text("SELECT count(*) FROM pg_trigger WHERE tgname = 'count_ended'")
    for target, expected in (("0002", (False, 0)), ("0003", (True, 1))):
        (command.downgrade if target == "0002" else command.upgrade)(config, target)
        assert (connection.scalar(exists), connection.scalar(trigger)) == expected
        connection.commit()
