"""Every route that takes a JSON document bounds it, and says what it refuses in the same words."""

from __future__ import annotations

from typing import Any

import pytest
from support.service import Service

from service.http.documents import MAX_CONTAINERS, MAX_MEMBERS

ROUTES = {
    "POST /v1/comparisons": "create_comparison",
    "PUT /v1/baselines/main": "put_baseline",
    "POST /v1/webhooks": "create_webhook",
    "POST /v1/badges": "create_badge",
}
EVERY_ROUTE = pytest.mark.parametrize("route", ROUTES)


def sent(api: Service, route: str, content: bytes, **headers: str) -> tuple[int, str]:
    """Send a body; return the status and the code, after checking that the specification has both."""
    response = api.client.request(
        *route.split(), content=content, headers={"Content-Type": "application/json", **headers}
    )
    status, code = response.status_code, response.json()["code"]
    paths: dict[str, Any] = api.client.get("/openapi.json").json()["paths"]
    operations = [operation for path in paths.values() for operation in path.values()]
    [operation] = [each for each in operations if each.get("operationId") == ROUTES[route]]
    assert code in operation["responses"][str(status)]["x-codes"]
    return status, code


@EVERY_ROUTE
def test_a_compressed_body_is_refused(api: Service, route: str) -> None:
    assert sent(api, route, b"{}", **{"Content-Encoding": "gzip"}) == (415, "unsupported_media_type")


@EVERY_ROUTE
@pytest.mark.parametrize(
    "content",
    [
        b'{"a": ',
        b'{"a": ' + b"[" * MAX_CONTAINERS + b"]" * MAX_CONTAINERS + b"}",
        b"{" + b",".join(b'"%d": 0' % number for number in range(MAX_MEMBERS + 1)) + b"}",
    ],
    ids=["cut off", "too many lists", "too many members"],
)
def test_a_body_that_is_no_document_or_too_large_a_one_is_malformed(api: Service, route: str, content: bytes) -> None:
    assert sent(api, route, content) == (400, "malformed_request")


@EVERY_ROUTE
def test_fields_of_no_meaning_are_refused(api: Service, route: str) -> None:
    assert sent(api, route, b'{"no_field": 1}') == (422, "invalid_request")


@EVERY_ROUTE
def test_a_body_larger_than_the_limit_is_refused(api: Service, route: str) -> None:
    assert sent(api, route, b" " * (api.settings.max_request_bytes + 1)) == (413, "body_too_large")
