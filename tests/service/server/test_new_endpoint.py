"""An endpoint needs its route and its schemas, and nothing else: the rest of the service treats it like the others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel
from support.service import Service, StartService

from service.errors import InvalidRequestError, NotFoundError, declare
from service.http.security import InTenant
from service.keys import hash_key, new_key
from service.monitoring.endpoints import router

KEY = new_key()
AUTHORIZED = {"Authorization": f"Bearer {KEY}"}


class Toy(BaseModel):
    id: int
    owner: str


async def create_toy(tenant: InTenant) -> Toy:
    return Toy(id=7, owner=tenant)


async def get_toy(toy_id: int, tenant: InTenant) -> Toy:
    if toy_id == 0:
        raise ZeroDivisionError("secret")
    if toy_id != 7:
        raise NotFoundError(f"There is no toy {toy_id}.")
    return Toy(id=toy_id, owner=tenant)


@pytest.fixture
def extended() -> Iterator[None]:
    """Has two more endpoints in the router of a room."""
    before = list(router.routes)
    router.add_api_route("/v1/toys", create_toy, methods=["POST"], status_code=201)
    errors = declare(InvalidRequestError, NotFoundError)
    router.add_api_route("/v1/toys/{toy_id}", get_toy, methods=["GET"], responses=errors)
    try:
        yield
    finally:
        router.routes[:] = before


@pytest.fixture
def toys(extended: None, borrow_service: StartService) -> Service:
    """A service with these endpoints."""
    return borrow_service(worker=False, api_keys=f"ci:{hash_key(KEY)}")


def test_it_needs_a_key_and_knows_the_tenant(toys: Service) -> None:
    refused = toys.client.get("/v1/toys/7")
    assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized")
    assert toys.client.get("/v1/toys/7", headers=AUTHORIZED).json() == {"id": 7, "owner": "ci"}


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/toys/8", 404, "not_found"),
        ("GET", "/v1/toys/seven", 422, "invalid_request"),
        ("PUT", "/v1/toys/7", 405, "method_not_allowed"),
        ("GET", "/v1/toys/0", 500, "internal_error"),
    ],
)
def test_its_errors_are_problems_with_a_request_id(
    toys: Service, method: str, path: str, status: int, code: str
) -> None:
    response = toys.client.request(method, path, headers={**AUTHORIZED, "X-Request-ID": "mine"})
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-request-id"] == "mine"
    assert "secret" not in response.text


def test_it_is_counted_by_its_template(extended: None, start_service: StartService) -> None:
    toys = start_service(worker=False, api_keys=f"ci:{hash_key(KEY)}")
    for toy in (7, 8):
        toys.client.get(f"/v1/toys/{toy}", headers=AUTHORIZED)
    metrics = toys.client.get("/metrics", headers=AUTHORIZED).text
    for status in (200, 404):
        assert f'wsb_http_requests_total{{method="GET",route="/v1/toys/{{toy_id}}",status="{status}"}} 1.0' in metrics


def test_the_specification_has_its_errors_its_security_and_the_link_to_it(toys: Service) -> None:
    paths: dict[str, Any] = toys.client.get("/openapi.json").json()["paths"]
    create, get = paths["/v1/toys"]["post"], paths["/v1/toys/{toy_id}"]["get"]
    assert get["responses"].keys() == {"200", "400", "401", "403", "404", "421", "422", "500", "503"}
    assert get["security"] == [{"ApiKey": []}, {}]
    assert get["responses"]["404"]["x-codes"] == ["not_found"]
    assert create["responses"].keys() == {"201", "400", "401", "403", "421", "500", "503"}
    links = create["responses"]["201"]["links"]
    assert links == {"get_toy": {"operationId": "get_toy", "parameters": {"toy_id": "$response.body#/id"}}}
