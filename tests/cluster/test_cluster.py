"""Two API processes and three workers on machines of their own, some of which fail."""

from __future__ import annotations

import json
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx
import pytest
from cluster.harness import Cluster, Machine, Proxy, cluster, files, submit, wait_until_ready
from support.forms import full
from support.service import until


@pytest.fixture
def machines() -> Iterator[Cluster]:
    with cluster() as found:
        yield found


def free_ports(count: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(listener.getsockname()[1]) for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def ended(machines: Cluster, analysis: str) -> bool:
    return machines.sql("SELECT finished_at IS NOT NULL FROM analyses WHERE id = %s", analysis) == [(True,)]


def all_ended(machines: Cluster) -> bool:
    return machines.sql("SELECT bool_and(finished_at IS NOT NULL) FROM analyses") == [(True,)]


def outcomes(machines: Cluster) -> Counter[tuple[str, int]]:
    """How many analyses ended in each state, with so many reports."""
    query = (
        "SELECT state, (SELECT count(*) FROM reports WHERE reports.analysis = analyses.id), count(*)"
        " FROM analyses GROUP BY 1, 2"
    )
    return Counter({(state, reports): count for state, reports, count in machines.sql(query)})


def counted(machines: Cluster) -> int:
    """How many reports were stored, by the count that is made when one is."""
    return int(machines.sql("SELECT sum(count) FROM totals WHERE metric = 'duration'")[0][0])


@pytest.mark.slow
@pytest.mark.parametrize(("count", "kill"), [(3, False), full(5, True)], ids=["cut off", "killed and cut off"])
def test_what_is_accepted_ends_once_though_workers_are_killed_and_cut_off(
    machines: Cluster, count: int, kill: bool
) -> None:
    ports = free_ports(2)
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    apis = [machines.start_api(f"api-{number}", port) for number, port in enumerate(ports)]
    proxy = Proxy(machines.database_url)
    try:
        steady, doomed = machines.start_worker("steady"), machines.start_worker("doomed") if kill else None
        lonely = machines.start_worker("lonely", WSB_DATABASE_URL=proxy.url)
        wait_until_ready(*urls)
        until(lambda: machines.workers() == 2 + kill)
        content = files(large=True)
        posted = [submit(urls[number % 2], content, number) for number in range(count)]

        if doomed is not None:
            until(doomed.is_working)
            doomed.kill()
        until(lonely.is_working)
        proxy.cut()
        until(lambda: all_ended(machines))
        until(lambda: not lonely.is_working())
        expected = {("succeeded", 1): count}
        assert (outcomes(machines), counted(machines)) == (expected, count), machines.logs()
        attempts = dict(machines.sql("SELECT id::text, attempts FROM analyses"))
        assert sum(attempts.values()) >= count + 1 + kill, "one attempt was lost with each of these workers"
        before = machines.sql("SELECT analysis, sha256 FROM reports ORDER BY analysis")

        # What the worker that was cut off has made comes too late, and it goes on as if nothing had been.
        proxy.mend()
        assert steady.stop() == 0
        last = submit(urls[0], content, count)
        until(lambda: ended(machines, last))
        late = [line for line in lonely.told() if line["event"] == "analysis_ended"]
        assert late[-1]["analysis"] == last
        assert (late[-2]["status"], attempts[late[-2]["analysis"]] > 1) == ("succeeded", True)
        assert len(set(posted)) == count
        assert (outcomes(machines), counted(machines)) == ({("succeeded", 1): count + 1}, count + 1)
        after = machines.sql("SELECT analysis, sha256 FROM reports WHERE analysis <> %s ORDER BY analysis", last)
        assert after == before
        # Either API tells what was asked of the other.
        assert {httpx.get(f"{url}/v1/analyses/{last}").json()["state"] for url in urls} == {"succeeded"}
        assert [machine.stop() for machine in (lonely, *apis)] == [0, 0, 0]
    finally:
        proxy.close()


@dataclass
class Clients:
    """Post one analysis after another, to the APIs in turn, each until it is accepted."""

    urls: list[str]
    over: threading.Event = field(default_factory=threading.Event)
    accepted: dict[int, str] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)
    retries: Counter[str] = field(default_factory=Counter)

    def post_all(self) -> None:
        content = files(large=False)
        number = turn = 0
        with httpx.Client(timeout=30) as client:
            while not self.over.is_set():
                turn += 1
                form = {**content, "request": json.dumps({"options": {"seed": number}}).encode()}
                try:
                    response = client.post(
                        f"{self.urls[turn % len(self.urls)]}/v1/analyses",
                        files=form,
                        headers={"Idempotency-Key": f"number-{number}"},
                    )
                except httpx.TransportError as error:
                    self.retries[type(error).__name__] += 1
                    continue
                if response.status_code in (201, 202):
                    self.accepted[number] = response.json()["id"]
                    number += 1
                elif response.status_code == 503:
                    self.retries[response.json()["code"]] += 1
                else:
                    self.unexpected.append(response.text[:300])


@pytest.mark.slow
def test_a_rolling_restart_under_load_loses_nothing_and_does_nothing_twice(machines: Cluster) -> None:
    ports = free_ports(2)
    clients = Clients([f"http://127.0.0.1:{port}" for port in ports])
    apis: list[Machine] = [machines.start_api(f"api-{number}", port) for number, port in enumerate(ports)]
    machines.start_worker("worker")
    wait_until_ready(*clients.urls)
    thread = threading.Thread(target=clients.post_all)
    thread.start()
    try:
        for number, port in enumerate(ports):
            seen = len(clients.accepted)
            until(lambda seen=seen: len(clients.accepted) > seen + 3)
            assert apis[number].stop() == 0
            until(lambda seen=seen: len(clients.accepted) > seen + 6)
            apis[number] = machines.start_api(f"api-{number}", port)
            wait_until_ready(clients.urls[number])
        seen = len(clients.accepted)
        until(lambda: len(clients.accepted) > seen + 3)
    finally:
        clients.over.set()
        thread.join(30)
    assert clients.unexpected == []
    assert clients.retries, "no request met an API that was away"
    until(lambda: all_ended(machines))
    found = {str(analysis) for (analysis,) in machines.sql("SELECT id FROM analyses")}
    assert found == set(clients.accepted.values())
    assert outcomes(machines) == {("succeeded", 1): len(clients.accepted)}


@pytest.mark.slow
def test_one_command_keeps_a_worker_on_every_device(machines: Cluster) -> None:
    (port,) = free_ports(1)
    machines.start_api("api", port)
    keeper = machines.start_worker("keeper", "--device", "all")
    wait_until_ready(f"http://127.0.0.1:{port}")
    (worker,) = keeper.process.children()
    worker.kill()
    until(lambda: [child for child in keeper.process.children() if child != worker])
    analysis = submit(f"http://127.0.0.1:{port}", files(large=False), 0)
    until(lambda: ended(machines, analysis))
    children = keeper.process.children(recursive=True)
    assert keeper.stop() == 0
    assert not [child for child in children if child.is_running()]
