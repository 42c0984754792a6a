"""Errors of the HTTP API as RFC 9457 problems; each class has its status, code and title."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, ClassVar

import structlog
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from starlette.responses import JSONResponse, Response

from service.fields import FieldError

MEDIA_TYPE = "application/problem+json"

log = structlog.get_logger(__name__)


class Problem(BaseModel):
    """An error as RFC 9457 describes it."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="Relative URI of the kind of problem.")
    title: str
    status: int
    detail: str = Field(description="What was found, and where.")
    code: str = Field(description="Stable identifier for programs.")
    advice: str | None = Field(None, description="What to do about it.")
    errors: list[FieldError] | None = Field(None, description="Errors by field, if fields are invalid.")
    analysis: str | None = Field(None, description="Identifier of the analysis that failed.")
    details: dict[str, JsonValue] | None = Field(None, description="Facts for programs.")


class ServiceError(Exception):
    """Base class of every error response; a subclass states its status, code and title as class arguments.

    Args:
        detail: What was found, and where.
        advice: What to do about it.
        errors: Errors by field.
        headers: Extra response headers.
        code: Replaces the code of a class that stands for several codes.
        members: Further members of the problem document.
    """

    status: ClassVar[HTTPStatus]
    code: ClassVar[str]
    title: ClassVar[str]
    codes: ClassVar[tuple[str, ...] | None] = None
    """Codes of a class that stands for several; empty if they are those of the engine."""

    def __init_subclass__(cls, *, status: int | None = None, code: str | None = None, title: str | None = None) -> None:
        super().__init_subclass__()
        if status is not None:
            cls.status = HTTPStatus(status)
        if code is not None:
            cls.code = code
        if title is not None:
            cls.title = title

    def __init__(
        self,
        detail: str,
        *,
        advice: str | None = None,
        errors: Iterable[FieldError] = (),
        headers: Mapping[str, str] | None = None,
        code: str | None = None,
        **members: Any,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.advice = advice
        self.errors = list(errors)
        self.headers = dict(headers or {})
        self.problem_code = code or self.code
        self.members = members

    def problem(self) -> Problem:
        """Return the problem document of this error."""
        return Problem(
            type=f"/problems/{self.problem_code}",
            title=self.title,
            status=int(self.status),
            detail=self.detail,
            code=self.problem_code,
            advice=self.advice,
            errors=self.errors or None,
            **self.members,
        )

    def response(self) -> Response:
        return JSONResponse(
            self.problem().model_dump(mode="json", exclude_none=True),
            status_code=self.status,
            headers=self.headers,
            media_type=MEDIA_TYPE,
        )

    @classmethod
    def possible_codes(cls) -> tuple[str, ...]:
        """Return the codes that a problem of this class can have, apart from those of the engine."""
        return (cls.code,) if cls.codes is None else cls.codes


class MalformedRequestError(ServiceError, status=400, code="malformed_request", title="The request can't be read"): ...


class NotFoundError(ServiceError, status=404, code="not_found", title="Not found"): ...


class MethodNotAllowedError(
    ServiceError, status=405, code="method_not_allowed", title="This resource does not support that method"
): ...


class BodyTooLargeError(ServiceError, status=413, code="body_too_large", title="The body is larger than the limit"): ...


class UnsupportedMediaTypeError(
    ServiceError, status=415, code="unsupported_media_type", title="The media type of the body is not accepted"
): ...


class InvalidRequestError(ServiceError, status=422, code="invalid_request", title="The request has invalid values"): ...


class EmptyBodyError(ServiceError, status=422, code="empty_body", title="The body is empty"): ...


class InternalError(ServiceError, status=500, code="internal_error", title="The service failed"): ...


class UnavailableError(ServiceError, status=503, code="not_ready", title="The service is not ready"): ...


class DatabaseUnavailableError(
    ServiceError, status=503, code="database_unavailable", title="The database is unavailable"
): ...


class OtherHTTPError(ServiceError, status=400, code="http_error", title="The request was rejected"):
    """Any other error of the framework; its code is made from its status."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail, headers=headers, code=f"http_{status}")
        self.status = HTTPStatus(status)  # type: ignore[misc]


def declare(*errors: type[ServiceError]) -> dict[int | str, dict[str, Any]]:
    """Return FastAPI's ``responses`` for these errors, grouped by status.

    All have the schema ``Problem``, because generators of clients drop a response with a choice of schemas. Which codes
    a status can have is in the description, and for programs in ``x-codes``.
    """
    grouped: dict[int, list[type[ServiceError]]] = defaultdict(list)
    for error in errors:
        grouped[int(error.status)].append(error)
    result: dict[int | str, dict[str, Any]] = {}
    for status, group in sorted(grouped.items()):
        result[status] = {
            "description": "; ".join(error.title for error in group) + ".",
            "content": {MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{Problem.__name__}"}}},
        }
        if codes := [code for error in group for code in error.possible_codes()]:
            result[status]["x-codes"] = codes
    return result


def every_error() -> list[type[ServiceError]]:
    """Return all concrete error classes defined so far, ordered by name."""
    found: set[type[ServiceError]] = set()
    pending: list[type[ServiceError]] = [ServiceError]
    while pending:
        for subclass in pending.pop().__subclasses__():
            pending.append(subclass)
            if not subclass.__name__.startswith("_"):
                found.add(subclass)
    return sorted(found, key=lambda error: error.__name__)
