"""Errors in the fields of a request, a policy or a command; does not import FastAPI, which commands don't need."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args, get_origin

from pydantic import BaseModel, Field, ValidationError

if TYPE_CHECKING:
    from fastapi.exceptions import RequestValidationError


MAX_ERRORS = 100
"""Errors that a response names."""


class FieldError(BaseModel):
    """An error in one field of the request."""

    pointer: str = Field(description="JSON pointer into the body, or the name of a parameter.")
    detail: str


def field_errors(error: ValidationError | RequestValidationError) -> list[FieldError]:
    """Convert pydantic's errors to JSON pointers with a sentence each; at most ``MAX_ERRORS``."""
    result = []
    found = error.errors()
    for item in found[:MAX_ERRORS]:
        if item["type"] == "too_short" and any(_lies_in(other["loc"], item["loc"]) for other in found[:MAX_ERRORS]):
            continue  # pydantic counts the items before the first wrong one
        path = [str(part).replace("~", "~0").replace("/", "~1") for part in item["loc"]]
        detail = item["msg"].replace("Tuple should", "List should")
        result.append(FieldError(pointer="/" + "/".join(path) if path else "", detail=detail))
    return result


def _lies_in(inner: tuple[int | str, ...], outer: tuple[int | str, ...]) -> bool:
    return len(inner) > len(outer) and inner[: len(outer)] == outer


def is_list(annotation: Any) -> bool:
    """Return whether an option may be given as several words."""
    return get_origin(annotation) is tuple or any(map(is_list, get_args(annotation)))


def is_object(annotation: Any) -> bool:
    """Return whether an option has several settings, and is given as JSON."""
    is_model = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return is_model or any(map(is_object, get_args(annotation)))
