from __future__ import annotations

import json

import pytest
from support.service import Service


@pytest.fixture
def filled(api: Service, model_bytes: bytes, batch_bytes: bytes) -> Service:
    """Seven analyses, labelled n=0 … n=6 and, every second one, even; the last is cancelled."""
    for number in range(7):
        labels = {"n": str(number)} | ({"even": "yes"} if number % 2 == 0 else {})
        form = {"model": model_bytes, "batch": batch_bytes, "request": json.dumps({"labels": labels}).encode()}
        analysis = api.client.post("/v1/analyses", files=form).json()
    api.client.post(analysis["links"]["cancel"])
    return api


def numbers(service: Service, path: str) -> list[str]:
    response = service.client.get(path)
    assert response.status_code == 200, response.text
    return [item["labels"]["n"] for item in response.json()["items"]]


def test_the_newest_comes_first(filled: Service) -> None:
    assert numbers(filled, "/v1/analyses") == list("6543210")


def test_pages_follow_each_other_without_gap_or_repetition(filled: Service) -> None:
    seen, path = [], "/v1/analyses?limit=3"
    while path is not None:
        seen += numbers(filled, path)
        path = filled.client.get(path).json()["next"]
    assert seen == list("6543210")


def test_a_page_keeps_its_filters(filled: Service) -> None:
    path = filled.client.get("/v1/analyses?limit=1&label=even:yes&state=queued").json()["next"]
    assert numbers(filled, path) == ["2"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("state=cancelled", "6"),
        ("state=queued&limit=2", "54"),
        ("state=cancelled&state=queued", "6543210"),
        ("label=n:3", "3"),
        ("label=even", "6420"),
        ("label=even:yes&label=n:4", "4"),
        ("label=even:no", ""),
        ("label=absent", ""),
    ],
)
def test_filters_choose(filled: Service, query: str, expected: str) -> None:
    assert numbers(filled, f"/v1/analyses?{query}") == list(expected)


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=201",
        "limit=x",
        "state=unknown",
        "after=!!!",
        "after=%00",
        "after=OTk5OTk5OTk5OTk5OTk5OTk5OQ",
        "label=%00",
        "label=",
    ],
)
def test_a_query_that_makes_no_sense_is_a_problem_that_points_at_it(api: Service, query: str) -> None:
    response = api.client.get(f"/v1/analyses?{query}")
    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")
    assert query.partition("=")[0] in response.json()["errors"][0]["pointer"]
