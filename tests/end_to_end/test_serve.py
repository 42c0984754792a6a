"""The real `wsb serve`, started as a user starts it: database, API, worker, sandbox and engine together."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import psycopg
import pytest
from support.command import wsb
from support.external import combined, external_mlp, form
from support.forms import full
from support.golden import Golden
from support.served import SERVE, Served, environment, postmasters, served
from support.service import DEADLINE, npz_batch, onnx_mlp, until

from service.sandbox.job import LOG_NAME
from service.server.postgres import existing_postgres


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served() as running:
        yield running


def post(server: Served, model: bytes, batch: bytes, *, wait: int = 60, **options: Any) -> httpx.Response:
    files = {"model": model, "batch": batch, "request": json.dumps({"options": options}).encode()}
    return server.client.post("/v1/analyses", files=files, headers={"Prefer": f"wait={wait}"})


def test_a_model_and_a_batch_give_a_report_from_within_the_sandbox(server: Served) -> None:
    response = post(server, onnx_mlp(), npz_batch(), spectrum="dense")
    assert response.status_code == 201, response.text
    report = response.json()
    assert report["spectrum"]["eigenvalues"][0] <= report["bounds"]["wolkowicz_styan"]["lambda_max"]["upper"]
    assert "no_new_privs" in report["engine"]["sandbox"]


def test_what_is_advised_when_data_files_are_missing_works(server: Served) -> None:
    model, data = external_mlp("m.onnx.data", "weights/part.bin")
    sent: dict[str, bytes] = {}
    for _ in data:
        refused = ask_with_data(server, model, sent).json()
        assert refused["code"] == "external_data_missing"
        assert set(refused["details"]["missing"]) == data.keys() - sent.keys()
        # A part as curl takes it: model_data=@FILE, or model_data=@FILE;filename=NAME.
        [part] = re.findall(r"-F '?model_data=@([^' ]+?)'?\. ", refused["advice"])
        path, _, name = part.partition(";filename=")
        sent[name or Path(path).name] = data[path]
    response = ask_with_data(server, model, sent)
    assert response.status_code == 201, response.text
    report, whole = response.json(), post(server, onnx_mlp(), npz_batch()).json()
    assert f"sha256:{report['model']['sha256']}" == combined(model, data)
    for part in ("loss", "moments", "bounds", "enclosure"):
        assert report[part] == whole[part]


def ask_with_data(server: Served, model: bytes, data: dict[str, bytes]) -> httpx.Response:
    parts = form(model, data, batch=npz_batch())
    return server.client.post("/v1/analyses", files=parts, headers={"Prefer": "wait=60"})


@pytest.mark.parametrize("name", [full("paper_three_layer_tanh"), full("gelu_soft_labels"), "softplus_single_logit"])
def test_a_golden_case_comes_back_over_http_to_nine_digits(server: Served, name: str) -> None:
    case = Golden(name)
    response = post(server, case.onnx(), case.npz(), spectrum="dense")
    assert response.status_code == 201, response.text
    report, expected = response.json(), case.expected
    close = {"rel": 1e-9, "abs": 0}
    assert report["loss"]["value"] == pytest.approx(expected["loss"], **close)
    assert report["loss"]["gradient_norm"] == pytest.approx(expected["gradient_norm"], **close)
    assert report["moments"]["trace"] == pytest.approx(expected["trace"], **close)
    assert report["moments"]["frobenius_squared"] == pytest.approx(expected["frobenius_squared"], **close)
    for end in ("lambda_max", "lambda_min"):
        assert report["bounds"]["wolkowicz_styan"][end] == pytest.approx(expected["wolkowicz_styan"][end], **close)
    scale = np.abs(case.eigenvalues).max()
    np.testing.assert_allclose(report["spectrum"]["eigenvalues"], case.eigenvalues, rtol=1e-9, atol=1e-9 * scale)


def test_a_batch_that_does_not_fit_is_a_problem_with_advice(server: Served) -> None:
    response = post(server, onnx_mlp(), npz_batch(features=7))
    assert response.status_code == 422, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["advice"]
    assert "Traceback" not in response.text


def test_job_folders_and_uploads_leave_nothing(server: Served) -> None:
    places = [server.folder / "jobs", server.folder / "blobs" / "incoming"]

    def leftovers() -> list[Path]:
        # All but the folder of the child that waits for the next analysis, which has its log in it.
        found = [path for place in places for path in place.glob("scratch-*/*") if path.name != ".owner"]
        return [path for path in found if not path.is_dir() or {entry.name for entry in path.iterdir()} - {LOG_NAME}]

    assert all(any(place.glob("scratch-*/.owner")) for place in places)
    post(server, onnx_mlp(), npz_batch())
    post(server, b"no model", npz_batch())
    until(lambda: not leftovers())


@pytest.mark.slow  # tests/service/operations backs up and restores without the processes
def test_a_backup_of_the_running_server_gives_another_one_with_every_report(server: Served) -> None:
    post(server, onnx_mlp(seed=11), npz_batch(seed=11))
    query = "SELECT analysis, body, sha256 FROM reports ORDER BY analysis"
    # Not below pytest's folder, which is closed to the user that Postgres runs as when the tests run as root.
    with tempfile.TemporaryDirectory(prefix="wsb-test-") as name:
        Path(name).chmod(0o755)
        file = f"{name}/backup"
        saved = wsb("backup", file, WSB_DATA_DIR=str(server.folder))
        assert saved.returncode == 0, saved.stderr
        assert saved.stdout.startswith(f"{file}: ")
        assert "operation=backup" in saved.stderr
        restored = wsb("restore", file, WSB_DATA_DIR=f"{name}/data")
        assert restored.returncode == 0, restored.stderr
        with existing_postgres(server.folder) as url, psycopg.connect(url) as connection:
            reports = connection.execute(query).fetchall()
        assert reports != []
        with existing_postgres(Path(name, "data")) as url, psycopg.connect(url) as connection:
            assert connection.execute(query).fetchall() == reports


@pytest.mark.slow
def test_a_report_comes_although_the_worker_is_killed_in_the_middle(server: Served) -> None:
    response = post(server, onnx_mlp((64, 24, 10)), npz_batch(features=64, classes=10), wait=0, spectrum="dense")
    path = response.headers["location"]
    until(lambda: (server.client.get(path).json()["progress"] or {}).get("phase") == "spectrum")
    (worker,) = server.workers()
    victims = [worker, *worker.children(recursive=True)]
    assert len(victims) >= 3
    for victim in victims:
        with suppress(psutil.NoSuchProcess):  # some end with the one before
            victim.kill()
    until(lambda: server.workers() not in ([], [worker]))
    until(lambda: server.client.get(path).json()["attempts"] == 2)
    analysis = until(lambda: (a := server.client.get(path).json())["finished_at"] and a)
    assert analysis["state"] == "succeeded", server.log.read_text()
    assert len(server.client.get(analysis["links"]["report"]).json()["spectrum"]["eigenvalues"]) == 1810
    assert not any(victim.is_running() for victim in victims)


@pytest.mark.slow  # a server that drains leaves none either
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopping_in_the_middle_of_an_analysis_leaves_no_process(number: signal.Signals) -> None:
    with served(WSB_SHUTDOWN_SECONDS="0.5") as server:
        batch = npz_batch(features=64, classes=10, samples=300)
        path = post(server, onnx_mlp((64, 80, 10)), batch, wait=0, spectrum="dense").headers["location"]
        until(lambda: (server.client.get(path).json()["progress"] or {}).get("phase") == "spectrum")
        # The server, its Postgres, the worker, the zygote and the child.
        family = server.family()
        assert len(family) >= 5
        server.process.send_signal(number)
        assert server.process.wait(DEADLINE) == 0, server.log.read_text()
        until(lambda: not any(member.is_running() for member in family))


@pytest.mark.slow
def test_a_server_that_drains_says_so_and_lets_the_running_analysis_finish() -> None:
    with tempfile.TemporaryDirectory(prefix="wsb-test-") as name:
        Path(name).chmod(0o755)
        with served(WSB_DATA_DIR=name, WSB_SHUTDOWN_SECONDS="120") as server:
            batch = npz_batch(features=64, classes=10)
            path = post(server, onnx_mlp((64, 16, 10)), batch, wait=0, spectrum="dense").headers["location"]
            until(lambda: server.client.get(path).json()["state"] == "running")
            family = server.family()
            server.process.terminate()
            problem = until(lambda: (r := server.client.get("/readyz")).status_code == 503 and r.json())
            assert problem["details"] == {"missing": "server"}
            # What comes in late is kept for the next server.
            late = post(server, onnx_mlp(), npz_batch(), wait=0)
            assert late.status_code == 202
            assert server.process.wait(DEADLINE) == 0, server.log.read_text()
            until(lambda: not any(member.is_running() for member in family))
        with existing_postgres(Path(name)) as url, psycopg.connect(url) as connection:
            query = "SELECT '/v1/analyses/' || id, state, attempts FROM analyses"
            kept = {row[0]: row[1:] for row in connection.execute(query).fetchall()}
        assert kept == {path: ("succeeded", 1), late.headers["location"]: ("queued", 0)}


@pytest.mark.slow
def test_a_second_signal_puts_the_running_analysis_back_at_once() -> None:
    with tempfile.TemporaryDirectory(prefix="wsb-test-") as name:
        with served(WSB_DATA_DIR=name, WSB_SHUTDOWN_SECONDS="600") as server:
            batch = npz_batch(features=64, classes=10, samples=300)
            path = post(server, onnx_mlp((64, 80, 10)), batch, wait=0, spectrum="dense").headers["location"]
            until(lambda: (server.client.get(path).json()["progress"] or {}).get("phase") == "spectrum")
            family = server.family()
            server.process.terminate()
            until(lambda: server.client.get("/readyz").status_code == 503)
            server.process.terminate()
            assert server.process.wait(DEADLINE) == 0, server.log.read_text()
            until(lambda: not any(member.is_running() for member in family))
        with served(WSB_DATA_DIR=name, WSB_SHUTDOWN_SECONDS="0") as server:
            assert server.client.get(path).json()["state"] in ("queued", "running")
            assert server.client.get(path).json()["attempts"] <= 1


@pytest.mark.slow  # tests/service/server takes the database away without the processes
def test_a_killed_database_is_back_soon_and_the_running_analysis_goes_on(server: Served) -> None:
    batch = npz_batch(features=64, classes=10)
    path = post(server, onnx_mlp((64, 24, 10), seed=3), batch, wait=0, spectrum="dense").headers["location"]
    until(lambda: (server.client.get(path).json()["progress"] or {}).get("phase") == "spectrum")
    postmaster = psutil.Process(int((server.folder / "postgres" / "postmaster.pid").read_text().split()[0]))
    postmaster.kill()
    statuses = set[int]()
    until(lambda: statuses.add((r := server.client.get(path)).status_code) or r.json().get("finished_at"))
    assert statuses <= {200, 503}
    found = server.client.get(path).json()
    assert (found["state"], found["attempts"]) == ("succeeded", 1)


@pytest.mark.slow
def test_analyses_that_wait_survive_a_restart_of_everything() -> None:
    with tempfile.TemporaryDirectory(prefix="wsb-test-") as name:
        with served(WSB_DATA_DIR=name) as server:
            (worker,) = server.workers()
            worker.suspend()
            path = post(server, onnx_mlp(), npz_batch(), wait=0).headers["location"]
            assert server.client.get(path).json()["state"] == "queued"
            server.process.terminate()
            until(lambda: not server.ready())
            late = post(server, onnx_mlp(seed=1), npz_batch(), wait=0)
            assert late.status_code == 202
            worker.resume()
        with served(WSB_DATA_DIR=name) as server:
            for location in (path, late.headers["location"]):
                found = until(lambda location=location: (a := server.client.get(location).json())["finished_at"] and a)
                assert (found["state"], found["attempts"]) == ("succeeded", 1)


@pytest.mark.slow  # tests/service/server ends what a killed owner of a database has left
def test_a_killed_server_takes_its_workers_along_and_the_next_one_takes_over() -> None:
    with tempfile.TemporaryDirectory(prefix="wsb-test-") as name:
        with served(WSB_DATA_DIR=name) as server:
            path = post(server, onnx_mlp(), npz_batch()).headers["location"]
            workers = server.process.children(recursive=True)
            server.process.kill()
            until(lambda: not any(worker.is_running() for worker in workers))
        with served(WSB_DATA_DIR=name) as server:
            assert server.client.get(path).json()["state"] == "succeeded"
        assert postmasters(Path(name)) == []


@pytest.mark.slow
def test_a_signal_while_the_database_starts_leaves_no_database() -> None:
    with tempfile.TemporaryDirectory(prefix="wsb-test-") as name:
        pipe = subprocess.PIPE
        with subprocess.Popen(SERVE, env=environment(WSB_DATA_DIR=name), stdout=pipe, stderr=pipe) as process:
            until((Path(name) / "postgres" / "postmaster.pid").exists)
            process.terminate()
            assert process.wait(DEADLINE) == 0
        assert postmasters(Path(name)) == []


def test_a_second_server_on_the_same_data_is_refused(server: Served) -> None:
    run = environment(WSB_DATA_DIR=str(server.folder))
    second = subprocess.run(SERVE, env=run, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert second.returncode == 2
    assert "in use by another wsb process" in second.stderr
    assert server.ready()
