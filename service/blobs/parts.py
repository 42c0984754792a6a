"""Multipart bodies that bring models and batches: files are stored as they arrive, short fields stay in memory."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from io import BytesIO
from typing import Self

from fastapi import Request

from service.blobs.repository import NOUNS, max_bytes
from service.context import Context
from service.http.multipart import InvalidFormError, LimitedWriter, Writer, read_form
from service.storage.store import Kind, Upload

FILES: dict[str, Kind] = {noun: kind for kind, noun in NOUNS.items()}
"""Kind of the file in a part, by the part's name."""


class Parts:
    """The parts of one multipart body; a context manager, which deletes every upload that was not kept.

    Args:
        context: Context of the request.
        fields: Limit in bytes of each part that is not a file, by its name.
        advice: What to send instead of a part that is not expected.
    """

    def __init__(self, context: Context, fields: Mapping[str, int], *, advice: str | None = None) -> None:
        self.uploads: dict[str, Upload] = {}
        """Files received so far, by the name of their part."""
        self._context = context
        self._advice = advice
        self._limits = {**fields, **{name: max_bytes(context.settings, kind) for name, kind in FILES.items()}}
        self._fields: dict[str, BytesIO] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    async def receive(self, request: Request) -> None:
        """Receive the whole body.

        Raises:
            ServiceError: as ``read_form``, and for a part that is not expected or is too large.
        """
        await read_form(request, sum(self._limits.values()), self.open)

    def open(self, name: str) -> Writer:
        """Return the writer for the part of this name; called as the part begins."""
        if name not in self._limits:
            raise InvalidFormError(
                f"The part {name[:80]!r} is not expected.", code="unexpected_part", advice=self._advice
            )
        writer: Writer
        if name in FILES:
            writer = self.uploads[name] = self._stack.enter_context(self._context.blobs.receive(FILES[name]))
        else:
            writer = self._fields[name] = BytesIO()
        return LimitedWriter(writer, self._limits[name], name if name in FILES else f"{name} part")

    def field(self, name: str) -> bytes | None:
        """Return the content of a part that is not a file; None if it was not sent."""
        field = self._fields.get(name)
        return None if field is None else field.getvalue()
