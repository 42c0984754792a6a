"""Small forms that are posted: buttons, and the one to sign in."""

from __future__ import annotations

from urllib.parse import parse_qsl

from fastapi import Request

from service.errors import MalformedRequestError, UnsupportedMediaTypeError
from service.http.bodies import Body
from service.web.browsers import check_csrf

MAX_BYTES = 8192
_MAX_FIELDS = 8


async def read_fields(request: Request) -> dict[str, str]:
    """Fields of an ``application/x-www-form-urlencoded`` body.

    Raises:
        UnsupportedMediaTypeError, MalformedRequestError, BodyTooLargeError: for any other body.
    """
    media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if media_type != "application/x-www-form-urlencoded":
        raise UnsupportedMediaTypeError("The body is no form.")
    content = bytearray()
    async with Body(request, MAX_BYTES, "form", stored=False) as body:
        async for chunk in body:
            content += chunk
    try:
        return dict(parse_qsl(content.decode("ascii"), keep_blank_values=True, max_num_fields=_MAX_FIELDS))
    except ValueError as error:
        raise MalformedRequestError("The form can't be read.") from error


async def read_post(request: Request) -> dict[str, str]:
    """Fields of a form of the session's own.

    Raises:
        CrossSiteError: when it is none.
        ServiceError: as ``read_fields`` does.
    """
    fields = await read_fields(request)
    check_csrf(request.state.session, fields.get("csrf", ""))
    return fields
