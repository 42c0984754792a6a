"""Exception handlers that turn every error of a route or of the framework into a problem document."""

from __future__ import annotations

from http import HTTPStatus

import psycopg
import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from procrastinate.exceptions import ConnectorException
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from service.database.engine import is_away
from service.errors import (
    DatabaseUnavailableError,
    InvalidRequestError,
    MethodNotAllowedError,
    NotFoundError,
    OtherHTTPError,
    ServiceError,
)
from service.fields import field_errors

log = structlog.get_logger(__name__)


def install(app: FastAPI) -> None:
    """Register the handlers with an application."""

    @app.exception_handler(SQLAlchemyError)
    @app.exception_handler(ConnectorException)
    @app.exception_handler(psycopg.Error)
    async def database_error(_: Request, error: Exception) -> Response:
        if not is_away(error):
            raise error
        log.warning("database_away", error=str(error).partition("\n")[0])
        return DatabaseUnavailableError(
            "The database can't be reached at the moment.",
            advice="Try again; a request with an Idempotency-Key is not executed twice.",
            headers={"Retry-After": "1"},
        ).response()

    @app.exception_handler(ServiceError)
    async def service_error(_: Request, error: ServiceError) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def validation_error(_: Request, error: RequestValidationError) -> Response:
        return InvalidRequestError("A parameter has an invalid value.", errors=field_errors(error)).response()

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        if error.status_code == HTTPStatus.NOT_FOUND:
            return NotFoundError(f"{request.url.path} does not exist.").response()
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            detail = f"{request.url.path} does not support {request.method}."
            return MethodNotAllowedError(detail, headers={"Allow": _allowed(request)}).response()
        return OtherHTTPError(error.status_code, str(error.detail), error.headers).response()


def _allowed(request: Request) -> str:
    """Methods of all routes at the request's path; the framework itself names only those of the first route."""
    methods: set[str] = set()
    for route in iter_route_contexts(request.app.routes):
        if route.methods and route.matches(request.scope)[0] is not Match.NONE:
            methods |= route.methods
    return ", ".join(sorted(methods))
