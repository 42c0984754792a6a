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
    """A part is missing, unexpected or repeated; the code says which."""

    code_schema = {"enum": ["missing_part", "unexpected_part", "duplicate_part"]}  # noqa: RUF012


class Writer(Protocol):
    def write(self, data: bytes, /) -> object: ...


class LimitedWriter:
    """Passes on at most ``limit`` bytes; raises BodyTooLargeError beyond that."""

    def __init__(self, writer: Writer, limit: int, what: str) -> None:
        self._writer = writer
        self._limit = limit
        self._what = what
        self._written = 0

    def write(self, data: bytes) -> None:
        self._written += len(data)
        if self._written > self._limit:
            raise too_large(self._what, self._limit)
        self._writer.write(data)


async def read_form(request: Request, limit: int, open_part: Callable[[str], Writer]) -> None:
    """Read the whole form.

    Args:
        request: A multipart/form-data request.
        limit: Largest total size of the parts in bytes.
        open_part: Returns the writer for a part of this name, or raises if the name is not expected; as names may not
            repeat, this bounds the number of parts. Called by one thread at a time, not always the same one.

    Raises:
        MalformedRequestError: if the body is not complete multipart.
        InvalidFormError: if a part is repeated.
        BodyTooLargeError: past the limit.
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

    def __init__(self, open_part: Callable[[str], Writer]) -> None:
        self.complete = False
        self._open_part = open_part
        self._names: set[str] = set()
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
        name = parameters[b"name"].decode("utf-8", errors="replace")
        if name in self._names:
            raise InvalidFormError(f"The part {name[:80]!r} is repeated.", code="duplicate_part")
        self._writer = self._open_part(name)
        self._names.add(name)

    def data(self, data: bytes, start: int, end: int) -> None:
        if self._writer is not None:
            self._writer.write(data[start:end])

    def end(self) -> None:
        self.complete = True
