"""A device that fails: its analysis ends right elsewhere, and a worker whose device is lost leaves and says so."""

from __future__ import annotations

from typing import Any

import pytest
from support.service import Files, Service, StartService, submit, until

from service.database.workers import owner_offers
from service.sandbox import SandboxError
from service.worker.device import options_here


class Tries:
    """Stands in for what a worker computes on its device: works so many times, then does not."""

    def __init__(self) -> None:
        self.works = 1

    async def __call__(self, *_: Any, device: str, **__: Any) -> list[str]:
        if device != "cpu":
            self.works -= 1
            if self.works < 0:
                raise SandboxError(f"{device} does not work: gone", code="device_failed", advice="")
        return []


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> Tries:
    made = Tries()
    monkeypatch.setattr("service.worker.worker.active_protections", made)
    monkeypatch.setattr("service.worker.worker.START_ENTRY", "fake_entry:nothing")  # which is not there, and not missed
    return made


def measured(service: Service, name: str) -> float | None:
    lines = service.client.get("/metrics").text.splitlines()
    return next((float(line.split()[-1]) for line in lines if line.startswith(name)), None)


def test_a_worker_whose_device_has_gone_leaves_and_its_job_ends_on_another(
    start_service: StartService, files: Files, tries: Tries
) -> None:
    first = start_service(device="cuda:0")
    analysis = submit(first, files, "lose")
    until(lambda: first.worker_left)
    assert first.worker_left[0].code == "device_failed"
    told = first.client.get("/readyz")
    assert told.status_code == 503
    assert "cuda:0 does not work: gone" in told.json()["detail"]
    assert measured(first, 'wsb_workers_failed{device="cuda:0"}') == 1
    assert measured(first, 'wsb_device_failures_total{device="cuda:0"}') == 1
    second = start_service()
    ended = second.ended(analysis)
    assert (ended["state"], ended["attempts"]) == ("succeeded", 1)
    assert second.client.get(f"/v1/analyses/{analysis}/report").json()["engine"]["device"] == "cpu"
    told = second.client.get("/readyz").json()
    assert told["status"] == "ready"
    assert len(told["failed_devices"]) == 1


def test_an_analysis_during_which_a_working_device_failed_is_tried_elsewhere(
    start_service: StartService, files: Files, tries: Tries
) -> None:
    tries.works = 100
    first = start_service(device="cuda:0")
    first.sql(
        "INSERT INTO workers (id, host, process, device, engine_version, protections, seen_at)"
        " VALUES (gen_random_uuid(), 'elsewhere', 1, 'cpu', '0', '[]', now() + interval '1 hour')"
    )
    analysis = submit(first, files, "lose")
    events = "SELECT count(*) FROM procrastinate_events WHERE type = 'deferred_for_retry'"
    until(lambda: first.sql(events)[0][0] > 1)
    # Tried here once, and not taken again while another worker is there.
    assert first.client.get(f"/v1/analyses/{analysis}").json()["attempts"] == 1
    start_service()
    assert first.ended(analysis)["state"] == "succeeded"
    assert not first.worker_left


@pytest.mark.slow
def test_without_another_worker_it_fails_after_some_attempts(
    start_service: StartService, files: Files, tries: Tries
) -> None:
    tries.works = 100
    service = start_service(device="cuda:0", max_attempts=2)
    ended = service.ended(submit(service, files, "lose"))
    assert (ended["state"], ended["error"]["code"], ended["attempts"]) == ("failed", "device_failed", 2)
    assert measured(service, 'wsb_analysis_failures_total{cause="device_failed"}') == 1
    assert service.ended(submit(service, files))["state"] == "succeeded"


def test_a_worker_whose_device_does_not_work_takes_nothing_and_says_why(
    start_service: StartService, tries: Tries
) -> None:
    tries.works = 0
    service = start_service(device="cuda:0")
    assert service.worker_left[0].code == "device_failed"
    assert "cuda:0 does not work: gone" in service.client.get("/readyz").json()["detail"]
    tries.works = 1
    again = start_service(device="cuda:0")
    assert again.client.get("/readyz").json()["failed_devices"] == []


@pytest.mark.slow
def test_an_analysis_of_several_devices_waits_for_a_worker_that_owns_them(
    start_service: StartService, files: Files, tries: Tries
) -> None:
    api = start_service(worker=False)
    analysis = submit(api, files, devices="all")
    start_service(device="cuda:0")
    tries.works = 1
    start_service(device="cuda:0+cuda:1")
    assert api.ended(analysis)["state"] == "succeeded"
    named = submit(api, files, devices=["cuda:0", "cuda:1"])
    assert api.ended(named)["state"] == "succeeded"


@pytest.mark.parametrize(
    ("worker", "wanted", "here"),
    [
        ("cpu", {"device": "auto", "devices": None}, {"device": "cpu", "devices": None}),
        ("cuda:1", {"device": "auto", "devices": None}, {"device": "auto", "devices": None}),
        ("cuda:1", {"device": "cuda", "devices": None}, {"device": "cuda:1", "devices": None}),
        ("cuda:0+cuda:1", {"device": "cuda:1", "devices": None}, {"device": "cuda:1", "devices": None}),
        ("cuda:0+cuda:1", {"device": "cuda", "devices": None}, {"device": "cuda:0", "devices": None}),
        ("cuda:1+cuda:3", {"device": "auto", "devices": "all"}, {"device": "auto", "devices": ["cuda:1", "cuda:3"]}),
        ("cuda:0+cuda:1", {"device": "auto", "devices": ["cuda:1"]}, {"device": "auto", "devices": ["cuda:1"]}),
        ("MIG-7", {"device": "cuda", "devices": None}, {"device": "cuda:0", "devices": None}),
    ],
)
def test_a_worker_gives_an_analysis_its_own_devices(worker: str, wanted: dict[str, Any], here: dict[str, Any]) -> None:
    assert owner_offers(worker, wanted)
    assert options_here(worker, wanted) == here


@pytest.mark.parametrize("worker", ["cpu", "cuda:0", "cuda:0+cuda:1"])
def test_devices_that_a_worker_does_not_own_are_not_offered(worker: str) -> None:
    assert not owner_offers(worker, {"device": "auto", "devices": ["cuda:0", "cuda:2"]})
    assert owner_offers(worker, {"device": "auto", "devices": "all"}) == (worker == "cuda:0+cuda:1")
