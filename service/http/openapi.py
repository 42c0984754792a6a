"""The specification: what FastAPI derives, with our problems in place of its own error schema."""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.errors import (
    MEDIA_TYPE,
    DatabaseUnavailableError,
    InternalError,
    Problem,
    ServiceError,
    declare,
    every_error,
)
from service.http.security import PUBLIC_PATHS, UnauthorizedError, openapi_scheme

_REFERENCE = "#/components/schemas/{model}"


def binary_body(description: str) -> dict[str, Any]:
    """``openapi_extra`` of a route that reads a raw body itself."""
    content = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    return {"requestBody": {"required": True, "description": description, "content": content}}


def install(app: FastAPI, *, extra_models: tuple[type[BaseModel], ...]) -> None:
    """Replaces the app's specification.

    Args:
        app: With all its routes.
        extra_models: Schemas that only ``openapi_extra`` refers to.
    """

    def specification() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _build(app, extra_models)
        return app.openapi_schema

    app.openapi = specification  # type: ignore[method-assign]


def render(app: FastAPI) -> str:
    """The specification as it is committed: sorted, indented, with a newline at the end."""
    return json.dumps(app.openapi(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _build(app: FastAPI, extra_models: tuple[type[BaseModel], ...]) -> dict[str, Any]:
    document = get_openapi(
        title=app.title,
        version=app.version,
        summary=app.summary,
        description=app.description,
        routes=app.routes,
        tags=app.openapi_tags,
        license_info=app.license_info,
    )
    failure, unauthorized = declare(InternalError)[500], declare(UnauthorizedError)[401]
    away = declare(DatabaseUnavailableError)[503]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            responses = operation["responses"]
            if path not in PUBLIC_PATHS:
                # An empty alternative: a service without keys asks for none.
                operation["security"] = [{name: []} for name in openapi_scheme()] + [{}]
                responses["401"] = unauthorized
                responses["503"] = _either(responses["503"], away) if "503" in responses else away
            if _is_frameworks_own(responses.get("422", {})):
                del responses["422"]
            if "500" not in responses:
                responses["500"] = failure
            _link(operation)
            operation["responses"] = dict(sorted(responses.items()))
    document["components"]["securitySchemes"] = openapi_scheme()
    schemas = document["components"]["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    models: list[type[BaseModel]] = [Problem, *extra_models]
    _, definitions = models_json_schema([(model, "validation") for model in models], ref_template=_REFERENCE)
    schemas.update(definitions["$defs"])
    text = json.dumps(document)
    schemas.update({error.schema_name(): error.json_schema() for error in every_error() if _mentions(text, error)})
    return document


_LINKS: dict[str, tuple[str, tuple[str, ...]]] = {
    "create_analysis": (
        "analysis_id",
        ("get_analysis", "get_report", "stream_events", "cancel_analysis", "delete_analysis"),
    ),
    "upload_model": ("model_id", ("get_model", "head_model", "delete_model")),
    "upload_batch": ("batch_id", ("get_batch", "head_batch", "delete_batch")),
}
"""By operation that makes something: the parameter that takes its id, and the operations that have it."""


def _link(operation: dict[str, Any]) -> None:
    """Says where the id in an answer leads to."""
    parameter, targets = _LINKS.get(operation["operationId"], ("", ()))
    for status in ("200", "201", "202"):
        response = operation["responses"].get(status)
        # The answer 201 to a request for an analysis is the report, which has no id.
        if not targets or response is None or (parameter == "analysis_id" and status == "201"):
            continue
        response["links"] = {
            target: {"operationId": target, "parameters": {parameter: "$response.body#/id"}} for target in targets
        }


def _either(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """One response for two that ``declare`` gave for the same status."""
    schemas = [response["content"][MEDIA_TYPE]["schema"] for response in (first, second)]
    every = [reference for schema in schemas for reference in schema.get("anyOf", [schema])]
    description = f"{first['description'].removesuffix('.')}; {second['description']}"
    return {"description": description, "content": {MEDIA_TYPE: {"schema": {"anyOf": every}}}}


def _is_frameworks_own(response: dict[str, Any]) -> bool:
    return "application/json" in response.get("content", {})


def _mentions(text: str, error: type[ServiceError]) -> bool:
    return f'"#/components/schemas/{error.schema_name()}"' in text
