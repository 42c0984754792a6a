"""Pages as the server makes them: what is on them, for whom, and with which headers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.pages import Visitor
from support.service import Service, StartService, until

from service.keys import hash_key, new_key
from service.web.pages import PAGE_POLICY

Visit = Callable[..., Visitor]

CASES = Path(__file__).parents[1] / "rendering" / "cases"
NOBODYS = "11111111-1111-1111-1111-111111111111"


def planted(service: Service, visitor: Visitor, case: str, **labels: str) -> str:
    """An analysis that has the report of a rendering case."""
    content = json.loads((CASES / f"{case}.json").read_text(encoding="utf-8"))
    analysis = visitor.asked(labels="\n".join(f"{key}: {value}" for key, value in labels.items()))
    service.ended(analysis)
    body, verdict = json.dumps(content["report"]), json.dumps(content["verdict"])
    service.sql("UPDATE reports SET body = %s WHERE analysis = %s", body, analysis)
    service.sql("UPDATE analyses SET verdict = %s WHERE id = %s", verdict, analysis)
    return analysis


def headings(response: httpx.Response) -> list[str]:
    return [
        re.sub(r"<[^>]+>|\s+", " ", text).strip() for text in re.findall(r"<h[12][^>]*>(.*?)</h[12]>", response.text)
    ]


def test_every_page_has_the_headers_that_keep_it_to_itself(service: Service, visit: Visit) -> None:
    visitor = visit(service)
    analysis = visitor.asked()
    service.ended(analysis)
    for path in ("/", f"/analyses/{analysis}", "/compare", "/series", "/nothing"):
        response = visitor.get(path)
        assert response.headers["content-type"] == "text/html; charset=utf-8", path
        assert response.headers["content-security-policy"] == PAGE_POLICY
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "same-origin"
        assert response.headers["cross-origin-opener-policy"] == "same-origin"
        assert response.headers["x-request-id"]
        # The policy would forbid these: a page with any would be broken.
        assert not re.search(r"<style|<script>| style=| on\w+=|javascript:", response.text)


def test_what_pages_load_is_there_and_may_be_kept(api: Service, visit: Visit) -> None:
    visitor = visit(api)
    files = re.findall(r'(?:href|src)="(/static/[^"]+)"', visitor.get("/").text)
    assert len(files) == 4
    for file in files:
        response = visitor.get(file)
        assert (response.status_code, "immutable" in response.headers["cache-control"]) == (200, True)
    assert visitor.get("/static/..%2fpages.py").status_code == 404


def test_a_running_analysis_shows_how_far_it_is_and_loads_itself_again_without_scripts(
    service: Service, visit: Visit
) -> None:
    visitor = visit(service)
    analysis = visitor.asked(output="sleep:60")
    text = until(lambda: (t := visitor.get(f"/analyses/{analysis}").text) and "3 Hessian-vector products" in t and t)
    assert '<noscript><meta http-equiv="refresh" content="2"></noscript>' in text
    assert 'value="0.5"' in text
    assert f'data-events="/v1/analyses/{analysis}/events"' in text
    response = visitor.post(f"/analyses/{analysis}/cancel")
    assert (response.status_code, response.headers["location"]) == (303, f"/analyses/{analysis}")
    assert service.ended(analysis)["state"] == "cancelled"
    ended = visitor.get(f"/analyses/{analysis}")
    assert "The analysis was cancelled before it had a report." in ended.text
    assert "http-equiv" not in ended.text


def told(seconds: float) -> str:
    """A command to the worker of these tests: what it has certified and expects, and how long it goes on."""
    end = {"lower": 1.5, "upper": 2.5, "relative_gap": None, "kind": "probabilistic", "failure_probability": 1e-6}
    enclosure = {"lambda_max": end, "lambda_min": {**end, "lower": -1}, "hessian_vector_products": 4}
    sizes = {"products": 9, "rate": 1, "operations": 2, "bytes": 5 << 20, "seconds": 1.5}
    cost = {"device": "cpu", "dtype": "float64", **sizes, "phases": [], "left_out": ["no <moments>"]}
    progress = {"phase": "enclosure", "fraction": 0.5, "enclosure": enclosure, "estimate": cost}
    return f"tell:{seconds}:{json.dumps(progress, separators=(',', ':'))}"


def test_what_is_certified_and_expected_is_on_the_page_while_it_runs_and_after_it_was_cancelled(
    service: Service, visit: Visit
) -> None:
    visitor = visit(service)
    analysis = visitor.asked(output=told(60))
    text = until(lambda: (t := visitor.get(f"/analyses/{analysis}").text) and "after 4 products" in t and t)
    assert '<p id="known">So far: λ_max in [1.5, 2.5] after 4 products</p>' in text
    assert '<p id="expected" class="quiet">Expected: about 1.5 s and 5 MiB</p>' in text
    assert "Left out: no &lt;moments&gt;" in text
    visitor.post(f"/analyses/{analysis}/cancel")
    service.ended(analysis)
    ended = visitor.get(f"/analyses/{analysis}")
    assert "Certified before it ended" in headings(ended)
    assert "λ_max in [1.5, 2.5], but for a probability of 1e-6" in ended.text
    assert "λ_min in [-1, 2.5]" in ended.text


def test_a_failed_analysis_says_why_and_what_to_do(service: Service, visit: Visit) -> None:
    visitor = visit(service)
    analysis = visitor.asked(output="fail")
    service.ended(analysis)
    response = visitor.get(f"/analyses/{analysis}")
    assert response.status_code == 200
    assert visitor.post(f"/analyses/{analysis}/cancel").status_code == 409
    for told in ("node 3 &#39;Foo&#39;: no such operator", "[unsupported_operator]", "Export again."):
        assert told in response.text


def test_a_report_is_on_the_page_and_to_be_had_in_every_form(service: Service, visit: Visit) -> None:
    visitor = visit(service)
    analysis = planted(service, visitor, "perceptron")
    response = visitor.get(f"/analyses/{analysis}")
    assert {"Sharpness", "Bounds", "Audit"} < set(headings(response))
    types = {}
    for path in re.findall(rf'href="(/analyses/{analysis}/report\.\w+)"', response.text):
        download = visitor.get(path)
        assert download.status_code == 200
        name = path.rpartition(".")[2]
        assert f'filename="wsb-{analysis[:8]}.{name}"' in download.headers["content-disposition"]
        types[name] = download.headers["content-type"].partition(";")[0]
    wanted = {"json": "application/json", "md": "text/markdown", "xml": "application/junit+xml", "html": "text/html"}
    assert types == wanted
    assert visitor.get(f"/analyses/{analysis}/report.exe").status_code == 404


def test_the_report_as_a_document_can_run_nothing(service: Service, visit: Visit) -> None:
    visitor = visit(service)
    analysis = planted(service, visitor, "hostile")
    policy = visitor.get(f"/analyses/{analysis}/report.html").headers["content-security-policy"]
    assert policy.startswith("sandbox; default-src 'none'")


def test_names_of_strangers_make_no_elements(service: Service, visit: Visit) -> None:
    visitor = visit(service)
    analysis = planted(service, visitor, "hostile", run='"><img src=x onerror=alert(1)>')
    for path in (f"/analyses/{analysis}", "/", f"/compare?a={analysis}&b={analysis}", "/series?label=run"):
        text = visitor.get(path).text
        assert "<img" not in text, path
        assert "<script>" not in text, path
        assert "\u202e" not in text, path


def test_a_report_of_a_version_that_cannot_be_read_leaves_its_json(service: Service, visit: Visit) -> None:
    visitor = visit(service)
    analysis = planted(service, visitor, "perceptron")
    service.sql("UPDATE reports SET body = '{}' WHERE analysis = %s", analysis)
    assert "An older version produced this report" in visitor.get(f"/analyses/{analysis}").text
    assert visitor.get(f"/analyses/{analysis}/report.json").text == "{}"
    assert visitor.get(f"/analyses/{analysis}/report.md").status_code == 406
    assert visitor.get(f"/compare?a={analysis}&b={analysis}").status_code == 422


def test_an_analysis_is_deleted_once_it_has_ended(service: Service, visit: Visit) -> None:
    visitor = visit(service)
    analysis = visitor.asked(output="sleep:60")
    assert visitor.post(f"/analyses/{analysis}/delete").status_code == 409
    service.client.post(f"/v1/analyses/{analysis}/cancel")
    service.ended(analysis)
    response = visitor.post(f"/analyses/{analysis}/delete")
    assert (response.status_code, response.headers["location"]) == (303, "/")
    assert visitor.get(f"/analyses/{analysis}").status_code == 404


@pytest.mark.slow
def test_the_list_is_filtered_and_has_pages(api: Service, visit: Visit) -> None:
    visitor = visit(api)
    analyses = [visitor.asked(labels=f"run: a\nepoch: {i}", fresh="on") for i in range(25)]
    other = visitor.asked(labels="run: b", fresh="on")

    def listed(response: httpx.Response) -> list[str]:
        return re.findall(r'<th scope="row" class="named"><a href="/analyses/([^"]+)"', response.text)

    assert listed(visitor.get("/", params={"label": "run:b"})) == [other]
    assert listed(visitor.get("/", params={"label": "run:a", "state": "running"})) == []
    first = visitor.get("/", params={"label": "run:a", "state": "queued"})
    assert listed(first) == analyses[:4:-1]
    following = re.search(r'href="/(\?[^"]+)#list">Next page', first.text)
    assert following
    second = visitor.get("/" + following[1].replace("&amp;", "&"))
    assert listed(second) == analyses[4::-1]
    assert "Next page" not in second.text
    assert "New analysis" not in second.text


def test_the_list_says_what_each_report_found_and_is_sorted_by_it(api: Service, visit: Visit) -> None:
    visitor = visit(api)
    analyses = [visitor.asked(name=f"<run> {i}", fresh="on") for i in range(3)]
    for loss, analysis in zip((0.5, 0.25, None), analyses, strict=True):
        api.sql(
            "UPDATE analyses SET state = CASE WHEN %s::float8 IS NULL THEN 'queued' ELSE 'succeeded' END, loss = %s,"
            " accuracy = 0.5, parameters = 12345, device = 'cpu', seconds = 90, reliable = %s, lambda_max_lower = 1.25,"
            " lambda_max_upper = 1.2500000001 WHERE id = %s",
            *(loss, loss, loss == 0.25, analysis),
        )
    text = visitor.get("/", params={"sort": "loss"}).text
    found = re.findall(r'<a href="/analyses/([^"]+)">&lt;run&gt; \d</a><span class="note">on b.npz</span>', text)
    assert found == [analyses[1], analyses[0], analyses[2]]
    for cell in ("1.25000", "0.25", "50 %", "12,345", "1.5 min"):
        assert f'<td class="number">{cell}' in text, cell
    assert text.count("Not reliable") == 1
    assert re.search(r'aria-sort="ascending"><a href="/\?sort=-loss#list">Loss', text)
    assert re.findall(r'name="pick" value="([^"]+)"', text) == [analyses[1], analyses[0]]
    assert "&lt;run&gt; 2" not in visitor.get("/", params={"name": "RUN> 1"}).text


def test_two_ticked_analyses_are_compared_the_older_one_as_the_baseline(service: Service, visit: Visit) -> None:
    visitor = visit(service)
    older, newer = (planted(service, visitor, "perceptron", n=name) for name in "12")
    for picked in ([newer, older], [older, newer]):
        response = visitor.get("/compare", params={"pick": picked})
        assert (response.status_code, response.headers["location"]) == (303, f"/compare?a={older}&b={newer}")
    assert "Tick two analyses to compare, not 1." in visitor.get("/compare", params={"pick": older}).text
    assert visitor.get("/compare", params={"pick": [older, NOBODYS]}).status_code == 404


def test_a_filter_that_is_no_label_is_told_at_its_field(api: Service, visit: Visit) -> None:
    response = visit(api).get("/", params={"label": "a b:c<"})
    assert (response.status_code, "A label is a name, or name:value." in response.text) == (200, True)
    assert "a b:c&lt;" in response.text


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/analyses/x", 404, "analysis_not_found"),
        ("GET", f"/analyses/{NOBODYS}", 404, "analysis_not_found"),
        ("GET", f"/compare?a={NOBODYS}&b={NOBODYS}", 404, "analysis_not_found"),
        ("GET", "/?after=x", 422, "invalid_request"),
        ("PUT", "/", 405, "method_not_allowed"),
    ],
)
def test_errors_are_pages_for_browsers_and_problems_for_programs(
    api: Service, visit: Visit, method: str, path: str, status: int, code: str
) -> None:
    seen = visit(api).client.request(method, path)
    assert (seen.status_code, seen.headers["content-type"]) == (status, "text/html; charset=utf-8")
    assert code in seen.text
    assert 'href="/"' in seen.text
    told = api.client.request(method, path)
    assert (told.status_code, told.json()["code"]) == (status, code)


def test_the_interface_answers_browsers_with_problems_too(api: Service, visit: Visit) -> None:
    response = visit(api).get(f"/v1/analyses/{NOBODYS}")
    assert (response.status_code, response.headers["content-type"]) == (404, "application/problem+json")


def test_an_unexpected_error_is_a_page_with_the_request_id(
    api: Service, visit: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr("service.web.endpoints.empty_form", broken)
    response = visit(api).get("/")
    assert (response.status_code, response.headers["content-type"]) == (500, "text/html; charset=utf-8")
    assert response.headers["x-request-id"] in response.text
    assert "secret" not in response.text


@pytest.mark.slow
def test_analyses_of_another_tenant_are_not_there(start_service: StartService, visit: Visit) -> None:
    keys = [new_key(), new_key()]
    service = start_service(api_keys=f"one:{hash_key(keys[0])},two:{hash_key(keys[1])}")
    one, two = visit(service), visit(service)
    for visitor, key in zip((one, two), keys, strict=True):
        assert visitor.sign_in(key).status_code == 303
    analysis = one.asked(labels="run: hidden")
    until(lambda: "Sharpness" in one.get(f"/analyses/{analysis}").text)
    for path in (f"/analyses/{analysis}", f"/analyses/{analysis}/report.json", f"/compare?a={analysis}"):
        assert one.get(path).status_code == 200
        assert two.get(path).status_code == 404
    for action in ("cancel", "delete"):
        assert two.post(f"/analyses/{analysis}/{action}").status_code == 404
    for path in ("/", "/series?label=run:hidden", "/compare"):
        assert analysis[:8] not in two.get(path).text
    assert two.ask(policy='[[rule]]\nmetric = "loss.value"\nmax_increase = 1', baseline=analysis).status_code == 404
