"""Streaming multipart/form-data: the bytes of each part go to its writer as they arrive."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.context import Context
from service.errors import MalformedRequestError, ServiceError
from service.http.bodies import Body, pump, too_large

_ROOM_FOR_HEADERS = 1 << 16


class InvalidFormError(ServiceError, status=422, code="invalid_form", title="The form has the wrong parts"):
    """A part is missing, unexpected, repeated, one too many, or has a file name that can't be used: see the code."""

    codes = ("missing_part", "unexpected_part", "duplicate_part", "too_many_parts", "invalid_file_name")


class Writer(Protocol):
    def write(self, data: bytes, /) -> object: ...


class Allowance:
    """A number of bytes for one part, or for several parts together; raises BodyTooLargeError beyond that."""

    def __init__(self, limit: int, what: str) -> None:
        self._limit = limit
        self._what = what
        self._taken = 0

    def take(self, size: int) -> None:
        self._taken += size
        if self._taken > self._limit:
            raise too_large(self._what, self._limit)


class LimitedWriter:
    """Passes on as many bytes as all allowances permit."""

    def __init__(self, writer: Writer, *allowances: Allowance) -> None:
        self._writer = writer
        self._allowances = allowances

    def write(self, data: bytes) -> None:
        for allowance in self._allowances:
            allowance.take(len(data))
        self._writer.write(data)


async def read_form(request: Request, limit: int, open_part: Callable[[str, str | None], Writer]) -> None:
    """Read the whole form.

    Args:
        request: A multipart/form-data request.
        limit: Largest total size of the parts in bytes.
        open_part: Returns the writer for a part of this name and file name (None without one), or raises if the part
            is not expected or is repeated, which bounds the number of parts. Called by one thread at a time, not always
            the same one.

    Raises:
        MalformedRequestError: if the body is not complete multipart.
        BodyTooLargeError: past the limit.
        ServiceError: as ``open_part``.
    """
    _, parameters = parse_options_header(request.headers.get("content-type"))
    boundary = parameters.get(b"boundary")
    if not boundary:
        raise MalformedRequestError("The Content-Type has no boundary.", advice="Let your HTTP client set it.")
    form = _PartCallbacks(open_part)
    context: Context = request.state.context
    limits = context.settings
    async with Body(request, limit + _ROOM_FOR_HEADERS, "multipart body") as body:
        try:
            parser = MultipartParser(
                boundary,
                {
                    "on_header_field": form.header_name,
                    "on_header_value": form.header_value,
                    "on_header_end": form.header_end,
                    "on_headers_finished": form.headers_finished,
                    "on_part_data": form.data,
                    "on_end": form.end,
                },
                max_header_count=limits.max_part_headers,
                max_header_size=limits.max_part_header_bytes,
            )
            await pump(body, parser.write)
        except FormParserError as error:
            raise MalformedRequestError(f"The multipart body is malformed: {error}") from error
    if not form.complete:
        raise MalformedRequestError(
            "The multipart body ends without its closing boundary.", advice="Send the whole body again."
        )


class _PartCallbacks:
    """Callbacks of the parser, called in the order of the bytes."""

    def __init__(self, open_part: Callable[[str, str | None], Writer]) -> None:
        self.complete = False
        self._open_part = open_part
        self._writer: Writer | None = None
        self._name = bytearray()
        self._value = bytearray()
        self._headers: dict[bytes, bytes] = {}

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_end(self) -> None:
        self._headers[bytes(self._name).lower()] = bytes(self._value)
        self._name.clear()
        self._value.clear()

    def headers_finished(self) -> None:
        disposition, parameters = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._headers.clear()
        if disposition != b"form-data" or b"name" not in parameters:
            raise MalformedRequestError("A part has no Content-Disposition: form-data with a name.")
        name, file_name = parameters[b"name"], parameters.get(b"filename")
        self._writer = self._open_part(_text(name), None if file_name is None else _text(file_name))

    def data(self, data: bytes, start: int, end: int) -> None:
        if self._writer is not None:
            self._writer.write(data[start:end])

    def end(self) -> None:
        self.complete = True


def _text(value: bytes) -> str:
    return value.decode("utf-8", errors="replace")
