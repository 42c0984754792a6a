"""The OpenAPI specification: FastAPI's, with problem documents in place of its error schema."""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.errors import (
    DatabaseUnavailableError,
    InternalError,
    Problem,
    ServiceError,
    declare,
)
from service.http.security import ScopeMissingError, UnauthorizedError, is_public, openapi_scheme

_REFERENCE = "#/components/schemas/{model}"
_REQUEST_ID = {
    # Every route takes it. At uploads it is declared because openapi-python-client writes a module that does not load
    # for an operation with two kinds of body and no parameter.
    "name": "X-Request-ID",
    "in": "header",
    "required": False,
    "description": "Identifier of the request in the service's log, which the response repeats.",
    "schema": {"type": "string"},
}
_READS = ("get", "head")


def binary_body(description: str, *, form: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return ``openapi_extra`` for a route that reads a raw body itself, or a multipart form of this schema."""
    content = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    if form is not None:
        content["multipart/form-data"] = {"schema": form}
    return {
        "requestBody": {"required": True, "description": description, "content": content},
        "parameters": [_REQUEST_ID],
    }


def json_body(schema: type[BaseModel]) -> dict[str, Any]:
    """Return ``openapi_extra`` for a route that reads a JSON body itself; ``install`` needs its schema too."""
    content = {"application/json": {"schema": {"$ref": _REFERENCE.format(model=schema.__name__)}}}
    return {"requestBody": {"required": True, "content": content}}


def install(
    app: FastAPI,
    *,
    extra_models: tuple[type[BaseModel], ...],
    every: tuple[type[ServiceError], ...],
    changes: tuple[type[ServiceError], ...],
) -> None:
    """Replace the specification of an application.

    Args:
        app: Application with all its routes.
        extra_models: Schemas that only ``openapi_extra`` refers to.
        every: Errors of middleware, which any request may get.
        changes: The same for requests that are no reads.
    """

    def specification() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _build(app, extra_models, every, changes)
        return app.openapi_schema

    app.openapi = specification  # type: ignore[method-assign]


def render(app: FastAPI) -> str:
    """Render the specification as it is committed: sorted, indented, with a newline at the end."""
    return json.dumps(app.openapi(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _build(
    app: FastAPI,
    extra_models: tuple[type[BaseModel], ...],
    every: tuple[type[ServiceError], ...],
    changes: tuple[type[ServiceError], ...],
) -> dict[str, Any]:
    document = get_openapi(
        title=app.title,
        version=app.version,
        summary=app.summary,
        description=app.description,
        routes=app.routes,
        tags=app.openapi_tags,
        license_info=app.license_info,
    )
    failure = declare(InternalError)[500]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            responses = operation["responses"]
            guards = [*every, *(() if method in _READS else changes)]
            if not is_public(method.upper(), path):
                # The empty alternative stands for a service without keys.
                operation["security"] = [{name: []} for name in openapi_scheme()] + [{}]
                guards += [UnauthorizedError, ScopeMissingError, DatabaseUnavailableError]
            for status, response in declare(*guards).items():
                known = responses.get(str(status))
                responses[str(status)] = response if known is None else _either(known, response)
            if "application/json" in responses.get("422", {}).get("content", {}):  # FastAPI's own
                del responses["422"]
            if "500" not in responses:
                responses["500"] = failure
            operation["responses"] = dict(sorted(responses.items()))
    _add_links(document)
    document["components"]["securitySchemes"] = openapi_scheme()
    schemas = document["components"]["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    models: list[type[BaseModel]] = [Problem, *extra_models]
    _, definitions = models_json_schema([(model, "validation") for model in models], ref_template=_REFERENCE)
    schemas.update(definitions["$defs"])
    return document


def _add_links(document: dict[str, Any]) -> None:
    """Link responses of ``POST /things`` that have an ``id`` to the operations below ``/things/{thing_id}``."""
    for path, operations in document["paths"].items():
        below = {other: found for other, found in document["paths"].items() if other.startswith(f"{path}/{{")}
        if "post" not in operations or not below:
            continue
        parameter = next(iter(below)).removeprefix(f"{path}/{{").partition("}")[0]
        parameters = {parameter: "$response.body#/id"}
        targets = [operation["operationId"] for found in below.values() for operation in found.values()]
        links = {target: {"operationId": target, "parameters": parameters} for target in targets}
        for status, response in operations["post"]["responses"].items():
            if status < "300" and "id" in _properties(document, response):
                response["links"] = links


def _properties(document: dict[str, Any], response: dict[str, Any]) -> dict[str, Any]:
    """Properties of the JSON object in a response, whose schema must be a reference."""
    reference = response.get("content", {}).get("application/json", {}).get("schema", {}).get("$ref", "")
    properties: dict[str, Any] = document["components"]["schemas"].get(reference.rpartition("/")[2], {})
    found: dict[str, Any] = properties.get("properties", {})
    return found


def _either(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Merge two responses that ``declare`` made for the same status."""
    codes = [*first["x-codes"], *(code for code in second["x-codes"] if code not in first["x-codes"])]
    if codes == first["x-codes"]:
        return first  # the route has declared it too
    description = f"{first['description'].removesuffix('.')}; {second['description']}"
    return {**first, "description": description, "x-codes": codes}
