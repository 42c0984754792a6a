"""/v1/baselines: names for analyses that others are compared with."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs
from support.forms import full
from support.service import Files, Service, StartService, submit, until

from service.context import Context
from service.server.app import open_context
from service.server.retention import sweep
from wsb import Client, ClientError

RISE = {"rule": [{"metric": "loss.value", "max_increase": 0.1}]}
NOTHING = "00000000-0000-0000-0000-000000000000"


def analysed(service: Service, files: Files, command: str = "", count: int = 1, **fields: Any) -> list[str]:
    """Analyses that have ended, in the order in which they were requested."""
    request = json.dumps({"options": {"output": command or None}, "fresh": True, **fields}).encode()
    found = [
        service.client.post("/v1/analyses", files={**files, "request": request}).json()["id"] for _ in range(count)
    ]
    for each in found:
        service.ended(each)
    return found


def put(service: Service, name: str, analysis: str, **fields: Any) -> Any:
    return service.client.put(f"/v1/baselines/{name}", json={"analysis": analysis, **fields})


def test_an_analysis_becomes_a_baseline_and_a_newer_one_replaces_it(service: Service, files: Files) -> None:
    older, newer = analysed(service, files, count=2)
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        made = put(service, "main", older)
        until(lambda: [line for line in lines if line["event"] == "change"])
    assert (made.status_code, made.headers["location"]) == (201, "/v1/baselines/main")
    assert made.json()["links"]["report"] == f"/v1/analyses/{older}/report"
    [audited] = [line for line in lines if line["event"] == "change"]
    assert (audited["operation"], audited["resource"]) == ("put_baseline", "/v1/baselines/main")
    assert (audited["promoted"], audited["replaced"]) == (older, None)

    replaced = put(service, "main", newer)
    assert (replaced.status_code, replaced.json()["replaced"]) == (200, older)
    assert put(service, "main", newer).json()["replaced"] is None
    refused = put(service, "main", older)
    assert (refused.status_code, refused.json()["code"]) == (409, "baseline_newer")
    assert refused.json()["analysis"] == newer
    assert put(service, "main", older, allow_older=True).json()["replaced"] == newer

    assert put(service, "a.b-c_1", newer).status_code == 201
    assert [each["name"] for each in service.client.get("/v1/baselines").json()["items"]] == ["a.b-c_1", "main"]
    assert service.client.get("/v1/baselines/main").json()["analysis"] == older
    assert service.client.delete("/v1/baselines/main").status_code == 204
    assert service.client.get("/v1/baselines/main").json()["code"] == "baseline_not_found"


def test_promotions_at_the_same_time_leave_the_newest(service: Service, files: Files) -> None:
    analyses = analysed(service, files, count=4)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda each: put(service, "main", each).status_code, [*analyses[2:], *analyses[:2]]))
    assert set(answers) <= {200, 201, 409}
    assert service.client.get("/v1/baselines/main").json()["analysis"] == analyses[-1]


@pytest.mark.parametrize(
    ("command", "status", "code"), [("fail", 409, "no_report"), full("sleep:60", 409, "report_not_ready")]
)
def test_an_analysis_without_a_report_is_refused(
    service: Service, files: Files, command: str, status: int, code: str
) -> None:
    analysis = submit(service, files, command)
    if code == "no_report":
        service.ended(analysis)
    answer = put(service, "main", analysis)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_an_analysis_that_stopped_when_it_was_decided_is_refused(service: Service, files: Files) -> None:
    ends = {"lower": 1.0, "upper": 1.5, "relative_gap": 0.5, "kind": "deterministic", "failure_probability": 0.0}
    enclosure = {"lambda_max": ends, "lambda_min": ends, "hessian_vector_products": 2}
    enclosure |= {"rounding_slack": 0.0, "stopped_by": "decided"}
    [analysis] = analysed(service, files, "forge:" + json.dumps({"enclosure": enclosure}))
    assert service.ended(analysis)["error"] is None
    answer = put(service, "main", analysis)
    assert (answer.status_code, answer.json()["code"]) == (422, "baseline_decided")


@pytest.mark.slow
def test_a_report_that_this_version_can_not_read_is_refused(service: Service, files: Files) -> None:
    [analysis] = analysed(service, files)
    service.sql("UPDATE reports SET body = '{}'")
    answer = put(service, "main", analysis)
    assert (answer.status_code, answer.json()["code"]) == (409, "no_report")


def test_a_name_that_can_not_be_is_refused(api: Service) -> None:
    for name in ("a" * 65, "-a", "a%2Fb", NOTHING, NOTHING.upper()):
        answer = put(api, name, NOTHING)
        assert answer.status_code in (404, 422), name
        assert answer.json()["code"] in ("not_found", "invalid_request"), name


@pytest.mark.slow
def test_there_is_a_limit_on_names(start_service: StartService, files: Files) -> None:
    service = start_service(max_baselines=1)
    [analysis] = analysed(service, files)
    assert put(service, "one", analysis).status_code == 201
    assert put(service, "two", analysis).json()["code"] == "baselines_full"
    assert put(service, "one", analysis).status_code == 200


def test_a_request_may_name_its_baseline(service: Service, files: Files) -> None:
    [analysis] = analysed(service, files)
    put(service, "main", analysis)
    [judged] = analysed(service, files, policy=RISE, baseline="main")
    assert service.ended(judged)["verdict"]["baseline"]["compatible"] is True
    body = {"candidate": judged, "baseline": "main", "policy": RISE}
    assert service.client.post("/v1/comparisons", json=body).json()["verdict"]["outcome"] == "pass"
    body["baseline"] = "other"
    assert service.client.post("/v1/comparisons", json=body).json()["code"] == "baseline_not_found"
    with Client(service.url, http=service.client) as client:
        assert str(client.promote("main", judged).replaced) == analysis
        assert str(client.baseline("main").analysis) == judged
        with pytest.raises(ClientError) as caught:
            client.promote("main", analysis)
        assert caught.value.code == "baseline_newer"


@pytest.mark.slow
def test_a_baseline_is_deleted_neither_by_hand_nor_by_age(service: Service, files: Files) -> None:
    kept, other = analysed(service, files, count=2)
    put(service, "main", kept)
    refused = service.client.delete(f"/v1/analyses/{kept}")
    assert (refused.status_code, refused.json()["code"]) == (409, "analysis_is_baseline")

    async def swept() -> None:
        context: Context
        async with open_context(service.settings, asyncio.Event()) as context:
            await sweep(context, datetime.now(UTC) + timedelta(days=1))

    asyncio.run(swept())
    assert service.client.get(f"/v1/analyses/{kept}/report").status_code == 200
    assert service.client.get(f"/v1/analyses/{other}").status_code == 404
    service.client.delete("/v1/baselines/main")
    assert service.client.delete(f"/v1/analyses/{kept}").status_code == 204


def test_the_page_shows_a_baseline_and_promotes_by_hand(service: Service, files: Files) -> None:
    older, newer = analysed(service, files, count=2)
    page = f"/analyses/{newer}"
    assert ">Baseline<" not in service.client.get(page).text
    assert service.client.post(f"{page}/promote", data={"name": "main"}).status_code == 303
    assert '<th scope="row">Baseline</th><td><code>main</code>' in service.client.get(page).text
    html = {"Accept": "text/html"}
    refused = service.client.post(f"/analyses/{older}/promote", data={"name": "main"}, headers=html)
    assert (refused.status_code, "is a newer analysis" in refused.text) == (409, True)
    again = service.client.post(f"/analyses/{older}/promote", data={"name": "main", "allow_older": "true"})
    assert again.status_code == 303
    assert service.client.get("/v1/baselines/main").json()["analysis"] == older
