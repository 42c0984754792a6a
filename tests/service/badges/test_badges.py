"""Badges: their tokens read one series and nothing else."""

from __future__ import annotations

import json
from typing import Any

from support.client import connect
from support.service import Files, Service, StartService

from service.keys import hash_key, new_key

KEYS = {"ours": new_key(), "theirs": new_key()}
ENTRIES = ",".join(f"{name}:{hash_key(key)}" for name, key in KEYS.items())


def ask(service: Service, method: str, path: str, name: str | None = "ours", **more: Any) -> Any:
    headers = {} if name is None else {"Authorization": f"Bearer {KEYS[name]}"}
    with connect(service.url, headers=headers, timeout=60) as client:
        return client.request(method, path, **more)


def analysed(service: Service, files: Files, lower: float, upper: float, label: str) -> None:
    """An analysis of a series, with this enclosure."""
    ends = {"lower": lower, "upper": upper, "relative_gap": 0.1, "kind": "deterministic", "failure_probability": 0.0}
    enclosure = {"lambda_max": ends, "lambda_min": ends, "hessian_vector_products": 2, "rounding_slack": 0.0}
    options = {"output": "forge:" + json.dumps({"enclosure": enclosure})}
    form = {**files, "request": json.dumps({"options": options, "labels": {"run": label}, "fresh": True}).encode()}
    made = ask(service, "POST", "/v1/analyses", files=form, headers={"Prefer": "wait=60"})
    assert made.status_code == 201, made.text


def test_a_token_shows_one_series_until_it_is_revoked(start_service: StartService, files: Files) -> None:
    service = start_service(api_keys=ENTRIES, badge_seconds=30)
    made = ask(service, "POST", "/v1/badges", json={"label": "run:a/b"})
    assert made.status_code == 201
    url, token = made.json()["url"], made.json()["token"]
    assert "no report" in ask(service, "GET", url, None).text

    analysed(service, files, 1.2041, 1.2043, "a/b")
    shown = ask(service, "GET", url, None)
    assert (shown.headers["content-type"], "λ_max: 1.204<" in shown.text) == ("image/svg+xml", True)
    assert shown.headers["cache-control"] == "public, max-age=30"
    assert shown.headers["cross-origin-resource-policy"] == "cross-origin"
    assert ask(service, "GET", url, None, headers={"If-None-Match": shown.headers["etag"]}).status_code == 304
    analysed(service, files, 2.5, 2.5000001, "a/b")
    assert "λ_max: 2.5<" in ask(service, "GET", url, None).text

    # Nothing of it is in the database, and it opens nothing else.
    assert service.sql("SELECT sha256 FROM badges") == [(hash_key(token),)]
    assert token not in ask(service, "GET", "/v1/badges").text
    for path in (url.replace("a/b", "a"), url.replace("a/b", "a/c"), url[:-1]):
        assert ask(service, "GET", path, None).json()["code"] == "badge_not_found"
    for path in (f"{start}?token={token}" for start in ("/v1/analyses", "/v1/badges", "/v1/series", "/series")):
        assert ask(service, "GET", path, None).status_code == 401
        assert ask(service, "GET", path, None, headers={"Authorization": f"Bearer {token}"}).status_code == 401
    assert ask(service, "POST", url, None).status_code == 401

    assert ask(service, "DELETE", made.headers["location"], "theirs").json()["code"] == "badge_not_found"
    assert ask(service, "GET", "/v1/badges", "theirs").json() == {"items": []}
    assert ask(service, "DELETE", made.headers["location"]).status_code == 204
    assert ask(service, "GET", url, None).json()["code"] == "badge_not_found"


def test_there_is_a_limit_on_badges_and_without_a_token_there_is_none(start_service: StartService) -> None:
    service = start_service(worker=False, max_badges=1)
    for label in ("", "a b:c", "run:\n"):
        assert service.client.post("/v1/badges", json={"label": label}).json()["code"] == "invalid_request"
    assert service.client.post("/v1/badges", json={"label": "run"}).status_code == 201
    assert service.client.post("/v1/badges", json={"label": "run"}).json()["code"] == "badges_full"
    assert service.client.get("/v1/series/run/badge.svg").json()["code"] == "invalid_request"
    assert service.client.get("/v1/series/run/badge.svg?token=").json()["code"] == "badge_not_found"
