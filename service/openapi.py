"""The specification: what FastAPI derives, with our problems in place of its own error schema."""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.errors import InternalError, Problem, ServiceError, declare, every_error

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
    failure = declare(InternalError)[500]
    for path in document["paths"].values():
        for operation in path.values():
            responses = operation["responses"]
            if _is_frameworks_own(responses.get("422", {})):
                del responses["422"]
            if "500" not in responses:
                responses["500"] = failure
            operation["responses"] = dict(sorted(responses.items()))
    schemas = document["components"]["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    models: list[type[BaseModel]] = [Problem, *extra_models]
    _, definitions = models_json_schema([(model, "validation") for model in models], ref_template=_REFERENCE)
    schemas.update(definitions["$defs"])
    text = json.dumps(document)
    schemas.update({error.schema_name(): error.json_schema() for error in every_error() if _mentions(text, error)})
    return document


def _is_frameworks_own(response: dict[str, Any]) -> bool:
    return "application/json" in response.get("content", {})


def _mentions(text: str, error: type[ServiceError]) -> bool:
    return f'"#/components/schemas/{error.schema_name()}"' in text
