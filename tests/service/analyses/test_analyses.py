from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support.client import connect
from support.forms import thinned
from support.service import Files, Service, StartService, until

from service.analyses.schemas import MAX_PROGRESS_BYTES, progress_document


def request_part(**content: Any) -> bytes:
    return json.dumps(content).encode()


def commanded(files: Files, command: str, **content: Any) -> Files:
    """The files with a request that tells the fake entry what to do."""
    return {**files, "request": request_part(options={"output": command}, **content)}


def post(service: Service, files: Files, *, wait: float | None = None) -> Any:
    headers = {} if wait is None else {"Prefer": f"wait={wait}"}
    return service.client.post("/v1/analyses", files=files, headers=headers)


def test_one_multipart_call_gives_the_report(service: Service, files: Files) -> None:
    response = post(service, files, wait=60)
    assert response.status_code == 201
    assert response.json()["model"]["parameters"]["count"] == len(files["model"])
    assert response.headers["preference-applied"] == "wait=60"
    assert response.headers["content-location"] == response.headers["location"] + "/report"
    assert service.leftovers() == []


def test_uploaded_files_are_analysed_by_their_identifiers(service: Service, files: Files) -> None:
    model = service.client.post("/v1/models", content=files["model"]).json()["id"]
    batch = service.client.post("/v1/batches", content=files["batch"]).json()["id"]
    body = {"model": model, "batch": batch, "options": {"spectrum": "dense"}, "labels": {"run": "a"}, "priority": 3}
    response = service.client.post("/v1/analyses", json=body, headers={"Prefer": "wait=60"})
    assert response.status_code == 201
    analysis = service.client.get(response.headers["location"]).json()
    assert (analysis["model"], analysis["batch"], analysis["state"]) == (model, batch, "succeeded")
    assert (analysis["options"]["spectrum"], analysis["labels"], analysis["priority"]) == ("dense", {"run": "a"}, 3)


def test_a_form_may_name_a_file_that_was_uploaded_before(service: Service, files: Files) -> None:
    model = service.client.post("/v1/models", content=files["model"]).json()["id"]
    form = {"batch": files["batch"], "request": request_part(model=model)}
    assert post(service, form, wait=60).status_code == 201


def test_without_prefer_the_answer_is_202_and_where_to_look(service: Service, files: Files) -> None:
    response = post(service, files)
    assert (response.status_code, response.headers["retry-after"]) == (202, "1")
    assert "preference-applied" not in response.headers
    analysis = service.ended(response.json()["id"])
    assert response.headers["location"] == analysis["links"]["self"]
    assert service.client.get(analysis["links"]["report"]).status_code == 200


@pytest.mark.slow
def test_an_analysis_that_outlasts_the_wait_is_answered_202(service: Service, files: Files) -> None:
    response = post(service, commanded(files, "sleep:60"), wait=1)
    assert (response.status_code, response.headers["preference-applied"]) == (202, "wait=1")
    assert response.json()["state"] in ("queued", "running")


def test_the_end_of_an_analysis_wakes_the_waiter_without_a_poll(borrow_service: StartService, files: Files) -> None:
    service = borrow_service(poll_seconds=60)
    started = time.monotonic()
    assert post(service, files, wait=60).status_code == 201
    assert time.monotonic() - started < 50  # the end of the wait looks as well


def test_a_server_that_stops_answers_who_waits(api: Service, files: Files) -> None:
    api.loop.call_soon_threadsafe(api.stopping.set)
    started = time.monotonic()
    assert post(api, files, wait=60).status_code == 202
    assert time.monotonic() - started < 50


def test_an_input_error_within_the_wait_is_a_problem_with_the_engines_code(service: Service, files: Files) -> None:
    response = post(service, commanded(files, "fail"), wait=60)
    problem = response.json()
    assert (response.status_code, problem["code"]) == (422, "unsupported_operator")
    assert problem["detail"] == "node 3 'Foo': no such operator"
    assert (problem["advice"], problem["details"]) == ("Export again.", {"node": 3})
    analysis = service.client.get(f"/v1/analyses/{problem['analysis']}")
    assert (analysis.status_code, analysis.json()["state"]) == (200, "failed")
    assert analysis.json()["error"]["code"] == "unsupported_operator"


@pytest.mark.parametrize(("command", "code"), [("crash", "worker_child_killed"), ("garbage", "invalid_report")])
def test_a_breakdown_within_the_wait_is_a_500_that_names_it(
    service: Service, files: Files, command: str, code: str
) -> None:
    response = post(service, commanded(files, command), wait=60)
    assert (response.status_code, response.json()["code"]) == (500, code)
    assert service.leftovers() == []


def test_an_analysis_that_takes_too_long_is_timed_out(service: Service, files: Files) -> None:
    response = post(service, commanded(files, "sleep:60", timeout_s=0.3), wait=60)
    assert (response.status_code, response.json()["code"]) == (504, "time_limit_exceeded")
    analysis = service.client.get(response.headers["location"]).json()
    assert (analysis["state"], analysis["timeout_s"]) == ("timed_out", 0.3)


def test_progress_shows_in_the_analysis(borrow_service: StartService, files: Files) -> None:
    service = borrow_service(progress_seconds=0.05)
    path = post(service, commanded(files, "sleep:20")).headers["location"]
    progress = until(lambda: service.client.get(path).json()["progress"])
    assert progress == {"phase": "moments", "fraction": 0.5, "hessian_vector_products": 3, "enclosure": None}


def certified(service: Service, path: str) -> Any:
    progress = service.client.get(path).json()["progress"]
    return None if progress is None else progress["enclosure"]


END = {"lower": 1.5, "upper": 2.5, "relative_gap": None, "kind": "probabilistic", "failure_probability": 1e-6}
ENCLOSURE = {"lambda_max": END, "lambda_min": {**END, "lower": -1.0}, "hessian_vector_products": 4}
PROGRESS = {"phase": "enclosure", "fraction": 0.25, "hessian_vector_products": 4, "enclosure": ENCLOSURE}
LIES: dict[str, dict[str, Any]] = {
    "an empty interval": {"enclosure": {**ENCLOSURE, "lambda_max": {**END, "lower": 3.0}}},
    "more than certain": {"enclosure": {**ENCLOSURE, "lambda_max": {**END, "failure_probability": 2.0}}},
    "a long phase": {"phase": "x" * 90},
    "markup": {"phase": "<script>"},
    "more fields": {"enclosure": {**ENCLOSURE, "page": ""}},
    "a large fraction": {"fraction": 2.0},
    "many products": {"hessian_vector_products": 10**30},
    "no enclosure": {"enclosure": "all"},
    "no estimate": {"enclosure": None, "estimate": {"seconds": -1}},
}


ESTIMATE = {
    "device": "cpu",
    "dtype": "float64",
    "products": 40,
    "rate": 2e9,
    "operations": 3e9,
    "bytes": 5 << 20,
    "seconds": 1.5,
    "phases": [],
    "left_out": [],
}


def telling(files: Files, progress: Any, seconds: float, **content: Any) -> Files:
    """The files with a request in which the fake entry sends this progress, then sleeps."""
    text = json.dumps(progress, separators=(",", ":"))
    return commanded(files, f"tell:{seconds}:{text}", **content)


def test_what_is_certified_so_far_shows_while_it_runs_and_after_it_was_cancelled(
    borrow_service: StartService, files: Files
) -> None:
    service = borrow_service(progress_seconds=0.05)
    path = post(service, telling(files, PROGRESS, 60)).headers["location"]
    assert until(lambda: certified(service, path)) == ENCLOSURE
    service.client.post(f"{path}/cancel")
    assert service.ended(path.rsplit("/", 1)[1])["state"] == "cancelled"
    assert certified(service, path) == ENCLOSURE


def test_what_it_is_expected_to_cost_shows_as_soon_as_it_is_known(borrow_service: StartService, files: Files) -> None:
    service = borrow_service(progress_seconds=0.05)
    first = post(service, telling(files, {"phase": "loss", "fraction": 0, "estimate": ESTIMATE}, 60))
    assert first.json()["estimate"] is None
    path = first.headers["location"]
    assert until(lambda: service.client.get(path).json()["estimate"]) == ESTIMATE
    assert "estimate" not in service.client.get(path).json()["progress"]


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["time", "cancel"])
def test_what_was_certified_last_is_kept_however_the_analysis_ends(
    start_service: StartService, files: Files, ending: str
) -> None:
    service = start_service(progress_seconds=60)  # so that nothing is written before the end
    timeout = {"timeout_s": 3} if ending == "time" else {}
    path = post(service, telling(files, PROGRESS, 60, **timeout)).headers["location"]
    until(lambda: service.client.get(path).json()["state"] == "running")
    if ending == "cancel":
        time.sleep(2)  # the child has said it by then, and nothing else shows that
        service.client.post(f"{path}/cancel")
    assert service.ended(path.rsplit("/", 1)[1])["state"] == {"time": "timed_out", "cancel": "cancelled"}[ending]
    assert certified(service, path) == ENCLOSURE


def test_progress_that_is_too_long_to_keep_is_ignored() -> None:
    lengthy = {**ESTIMATE, "left_out": ["x" * MAX_PROGRESS_BYTES]}
    assert progress_document({**PROGRESS, "estimate": ESTIMATE}) is not None
    assert progress_document({**PROGRESS, "estimate": lengthy}) is None


@pytest.mark.slow
@pytest.mark.parametrize("lie", thinned(LIES, 4))
def test_progress_that_the_engine_would_not_send_is_ignored(
    borrow_service: StartService, files: Files, lie: str
) -> None:
    service = borrow_service(progress_seconds=0.05)
    path = post(service, telling(files, PROGRESS | LIES[lie], 1)).headers["location"]
    ended = service.ended(path.rsplit("/", 1)[1])
    assert (ended["state"], ended["progress"]) == ("succeeded", None)


def test_an_analysis_that_has_not_changed_is_304(api: Service, files: Files) -> None:
    path = post(api, files).headers["location"]
    first = api.client.get(path)
    again = api.client.get(path, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    api.client.post(f"{path}/cancel")
    assert api.client.get(path, headers={"If-None-Match": first.headers["etag"]}).status_code == 200


def test_the_report_never_changes_and_is_304_to_who_has_it(service: Service, files: Files) -> None:
    created = post(service, files, wait=60)
    path = created.headers["content-location"]
    report = service.client.get(path)
    assert report.content == created.content
    assert report.headers["etag"] == created.headers["etag"]
    assert "immutable" in report.headers["cache-control"]
    assert service.client.get(path, headers={"If-None-Match": report.headers["etag"]}).status_code == 304


def test_there_is_no_report_before_the_end(api: Service, files: Files) -> None:
    path = post(api, files).headers["location"]
    response = api.client.get(f"{path}/report")
    assert (response.status_code, response.json()["code"]) == (409, "report_not_ready")


def test_a_failed_analysis_has_no_report_and_says_why(service: Service, files: Files) -> None:
    path = post(service, commanded(files, "fail"), wait=60).headers["location"]
    response = service.client.get(f"{path}/report")
    assert (response.status_code, response.json()["code"]) == (409, "no_report")
    assert response.json()["details"] == {"state": "failed", "code": "unsupported_operator"}


@pytest.mark.parametrize("path", ["", "/report", "/cancel"])
@pytest.mark.parametrize("identifier", ["00000000-0000-0000-0000-000000000000", "nonsense", "%00"])
def test_an_unknown_analysis_is_not_found(api: Service, identifier: str, path: str) -> None:
    method = "POST" if path == "/cancel" else "GET"
    response = api.client.request(method, f"/v1/analyses/{identifier}{path}")
    assert (response.status_code, response.json()["code"]) == (404, "analysis_not_found")


def test_a_waiting_analysis_is_cancelled_at_once_and_leaves_the_queue(api: Service, files: Files) -> None:
    path = post(api, files).headers["location"]
    response = api.client.post(f"{path}/cancel")
    assert (response.status_code, response.json()["state"]) == (202, "cancelled")
    assert api.sql("SELECT count(*) FROM procrastinate_jobs") == [(0,)]


def test_cancelling_twice_changes_nothing(api: Service, files: Files) -> None:
    path = post(api, files).headers["location"]
    assert api.client.post(f"{path}/cancel").json() == api.client.post(f"{path}/cancel").json()


def test_a_running_analysis_is_killed_without_a_poll(borrow_service: StartService, files: Files) -> None:
    service = borrow_service(poll_seconds=60)
    path = post(service, commanded(files, "sleep:60")).headers["location"]
    until(lambda: service.client.get(path).json()["state"] == "running")
    assert service.client.post(f"{path}/cancel").json()["state"] in ("cancelling", "cancelled")
    until(lambda: service.client.get(path).json()["state"] == "cancelled", seconds=50)
    until(lambda: not service.leftovers())
    assert post(service, files, wait=60).status_code == 201


def test_what_has_ended_cannot_be_cancelled(service: Service, files: Files) -> None:
    path = post(service, files, wait=60).headers["location"]
    response = service.client.post(f"{path}/cancel")
    assert (response.status_code, response.json()["code"]) == (409, "analysis_final")


def test_a_file_that_a_live_analysis_needs_is_not_deleted(api: Service, files: Files) -> None:
    analysis = post(api, files).json()
    for kind, blob in (("models", analysis["model"]), ("batches", analysis["batch"])):
        response = api.client.delete(f"/v1/{kind}/{blob}")
        assert (response.status_code, response.json()["code"]) == (409, "blob_in_use")
    api.client.post(analysis["links"]["cancel"])
    assert api.client.delete(f"/v1/models/{analysis['model']}").status_code == 204


@pytest.mark.slow
def test_a_higher_priority_leaves_the_queue_first(api: Service, start_service: StartService, files: Files) -> None:
    low, high = (post(api, {**files, "request": request_part(priority=p)}).json()["id"] for p in (0, 5))
    start_service()
    assert api.ended(high)["started_at"] < api.ended(low)["started_at"]


def test_a_full_queue_is_answered_429(start_service: StartService, files: Files) -> None:
    api = start_service(worker=False, max_queue=2)
    codes = [post(api, files).status_code for _ in range(3)]
    assert codes == [202, 202, 429]
    assert post(api, files).headers["retry-after"] == "5"


@pytest.mark.slow
@pytest.mark.parametrize("limit", ["max_queue", "max_queue_per_tenant"])
def test_requests_at_the_same_time_cannot_exceed_the_queues_limit(
    start_service: StartService, files: Files, limit: str
) -> None:
    api = start_service(worker=False, **{limit: 5})
    # Files that are sent anew would have the requests take turns.
    model = api.client.post("/v1/models", content=files["model"]).json()["id"]
    batch = api.client.post("/v1/batches", content=files["batch"]).json()["id"]

    def send(_: int) -> int:
        with connect(api.url, timeout=60) as client:
            return client.post("/v1/analyses", json={"model": model, "batch": batch}).status_code

    with ThreadPoolExecutor(16) as pool:
        codes = list(pool.map(send, range(32)))
    assert sorted(codes) == [202] * 5 + [429] * 27
    assert api.sql("SELECT count(*) FROM analyses") == [(5,)]


def test_a_device_that_no_worker_has_is_refused(service: Service, files: Files) -> None:
    form = {**files, "request": request_part(options={"device": "cuda:1"})}
    response = post(service, form)
    assert (response.status_code, response.json()["code"]) == (422, "device_unavailable")
    assert response.json()["details"] == {"devices": ["cpu"]}


def test_a_device_by_kind_is_served_by_its_worker(service: Service, files: Files) -> None:
    form = {**files, "request": request_part(options={"device": "cpu"})}
    assert post(service, form, wait=60).json()["engine"]["device"] == "cpu"
