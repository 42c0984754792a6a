"""JSON documents in request bodies, parsed in bounded time."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json, to_json

from service.errors import InvalidRequestError, MalformedRequestError
from service.fields import field_errors

Wanted = TypeVar("Wanted", bound=BaseModel)

_EXACT = 2**53
"""Largest integer up to which float64 holds every integer."""
_SMALL_BYTES = 1 << 14
"""Size of a JSON body up to which its errors may cost what they like."""
MAX_CONTAINERS = 20_000
"""Lists and objects of a JSON body: more than a report has that fits into one."""
MAX_MEMBERS = 200
"""Members of one JSON object: more than any has, and few enough that naming each error takes no time."""


def parse(schema: type[Wanted], content: bytes) -> Wanted:
    """Parse the request in a JSON body.

    Raises:
        MalformedRequestError: if it is not JSON.
        InvalidRequestError: if it does not match the schema.
    """
    if content.count(b"[") + content.count(b"{") > MAX_CONTAINERS:
        raise MalformedRequestError(f"The request has more than {MAX_CONTAINERS} lists and objects.")
    try:
        # In JSON 3 and 3.0 are the same number; strict validation tells them apart.
        document = _whole(from_json(content))
        content = to_json(document)
    except ValueError as error:
        raise MalformedRequestError(f"The request is not JSON: {error}") from error
    try:
        if len(content) > _SMALL_BYTES:
            # What is wrong in here is wrong in JSON too, where each error would copy all that it is about.
            schema.model_validate(document)
        return schema.model_validate_json(content, strict=True)
    except ValidationError as error:
        raise _invalid(error) from error


def _invalid(error: ValidationError) -> InvalidRequestError:
    """Return the error of a request with invalid values, with what is wrong in each field."""
    errors = field_errors(error)
    more = error.error_count() - len(errors)
    text = "The request has invalid values." + (f" {more} errors more are not listed." if more else "")
    return InvalidRequestError(text, errors=errors)


def _whole(value: Any) -> Any:
    """Replace whole numbers by integers, at any depth, if floats hold them exactly.

    Raises:
        ValueError: if an object is too large.
    """
    if isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT:
        return int(value)
    if isinstance(value, list):
        return [_whole(item) for item in value]
    if isinstance(value, dict):
        if len(value) > MAX_MEMBERS:
            raise ValueError(f"an object has more than {MAX_MEMBERS} members")
        return {name: _whole(item) for name, item in value.items()}
    return value
