"""Small urlencoded forms: buttons, and signing in."""

from __future__ import annotations

from urllib.parse import parse_qsl

from fastapi import Request

from service.errors import MalformedRequestError, UnsupportedMediaTypeError
from service.http.bodies import read
from service.http.headers import media_type
from service.web.browsers import check_csrf

MAX_BYTES = 8192
_MAX_FIELDS = 8


async def read_fields(request: Request) -> dict[str, str]:
    """Read the fields of an ``application/x-www-form-urlencoded`` body.

    Raises:
        UnsupportedMediaTypeError, MalformedRequestError, BodyTooLargeError: if the body is anything else.
    """
    if media_type(request.headers) != "application/x-www-form-urlencoded":
        raise UnsupportedMediaTypeError("The body is not a form.")
    content = await read(request, MAX_BYTES, "form")
    try:
        return dict(parse_qsl(content.decode("ascii"), keep_blank_values=True, max_num_fields=_MAX_FIELDS))
    except ValueError as error:
        raise MalformedRequestError("The form can't be read.") from error


async def read_post(request: Request) -> dict[str, str]:
    """Read the fields of a form that belongs to the session.

    Raises:
        CrossSiteError: if the form does not belong to it.
        ServiceError: as ``read_fields``.
    """
    fields = await read_fields(request)
    check_csrf(request.state.session, fields.get("csrf", ""))
    return fields
