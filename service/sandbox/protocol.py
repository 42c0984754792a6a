"""Frames from a child to its parent: a 4-byte big-endian length, then that many bytes of UTF-8 JSON.

    {"type":"progress", …}                                any number of them
    {"type":"result","body":"…"}                          or
    {"type":"error","code","message","advice","details"}  one of these two, last

The child may be under an attacker's control, so the parent trusts nothing. A result starts with exactly the bytes shown
and holds one string, so the parent decodes it without building any other JSON value; all other frames are short.
Decoding therefore needs memory in proportion to the limits, whatever the frame contains.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from service.sandbox.errors import SandboxError
from service.sandbox.job import JobError

NOTICE_BYTES = 256 << 10
"""Longest progress or error frame."""

CONTROL_BYTES = 4096
"""Longest message between the zygote and its caller, in either direction."""

_HEADER = struct.Struct(">I")
_RESULT_HEAD = '{"type":"result","body":"'
_CODE = re.compile(r"[a-z][a-z0-9_]{0,63}")
_TEXT_CHARACTERS = 8192
_MAX_DEPTH = 32


class ProtocolError(Exception):
    """The child sent something that is not a frame, or a frame out of order."""


@dataclass(frozen=True)
class Progress:
    fields: dict[str, Any]


@dataclass(frozen=True)
class Result:
    body: str


@dataclass(frozen=True)
class Failure:
    error: JobError


Frame = Progress | Result | Failure


def is_code(text: str) -> bool:
    """Whether ``text`` is a valid code of an error frame."""
    return _CODE.fullmatch(text) is not None


def write_whole(descriptor: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def encode_progress(fields: Mapping[str, Any]) -> bytes:
    """Encode one progress frame.

    Raises:
        TypeError: if a value is not JSON-compatible.
        ValueError: if a number is not finite, or the frame is longer than ``NOTICE_BYTES``.
    """
    payload = _dump({**fields, "type": "progress"})
    if len(payload) > NOTICE_BYTES:
        raise ValueError(f"a progress frame of {len(payload)} bytes is longer than {NOTICE_BYTES}")
    return _frame(payload)


def encode_result(body: str, *, frame_bytes: int) -> bytes:
    """Encode the result frame.

    Raises:
        SandboxError: ``result_too_large`` if the frame is longer than ``frame_bytes``.
        UnicodeEncodeError: if the body contains lone surrogates.
    """
    payload = f"{_RESULT_HEAD[:-1]}{json.dumps(body, ensure_ascii=False)}}}".encode()
    if len(payload) > frame_bytes:
        raise SandboxError(
            f"The result has {len(payload)} bytes; the limit is {frame_bytes}.",
            code="result_too_large",
            advice="Request less, or raise the limit on the size of a frame.",
            bytes=len(payload),
            limit=frame_bytes,
        )
    return _frame(payload)


def encode_error(error: JobError) -> bytes:
    """Encode an error frame that always fits: texts are cut, details that are not short JSON are omitted."""
    notice = {
        "type": "error",
        "code": error.code,
        "message": error.message[:_TEXT_CHARACTERS],
        "advice": error.advice[:_TEXT_CHARACTERS],
        "details": error.details,
    }
    try:
        payload = _dump(notice)
        omitted = "too long" if len(payload) > NOTICE_BYTES else None
    except (TypeError, ValueError, RecursionError) as problem:
        omitted = f"not JSON: {problem}"[:_TEXT_CHARACTERS]
    if omitted is not None:
        payload = _dump({**notice, "details": {"omitted": omitted}})
    return _frame(payload)


class FrameDecoder:
    """Decodes the bytes of one child, in chunks of any size, into frames.

    Args:
        frame_bytes: Longest frame to accept.
    """

    def __init__(self, frame_bytes: int) -> None:
        self._frame_bytes = frame_bytes
        self._buffer = bytearray()
        self._ended = False

    def feed(self, data: bytes) -> list[Frame]:
        """Add the next bytes and return the frames that they complete.

        Raises:
            ProtocolError: if a frame is malformed or too long, or follows a result or an error.
        """
        self._buffer += data
        frames: list[Frame] = []
        while self._buffer:
            if self._ended:
                raise ProtocolError("data after the last frame")
            if len(self._buffer) < _HEADER.size:
                break
            (length,) = _HEADER.unpack_from(self._buffer)
            if length > self._frame_bytes:
                raise ProtocolError(f"a frame of {length} bytes, of which {self._frame_bytes} are allowed")
            end = _HEADER.size + length
            if len(self._buffer) < end:
                break
            frame = _decode(self._buffer[_HEADER.size : end])
            del self._buffer[:end]
            self._ended = not isinstance(frame, Progress)
            frames.append(frame)
        return frames


def _dump(value: Any) -> bytes:
    return json.dumps(value, allow_nan=False, default=str, separators=(",", ":")).encode()


def _frame(payload: bytes) -> bytes:
    return _HEADER.pack(len(payload)) + payload


def _decode(payload: bytearray) -> Frame:
    try:
        text = payload.decode()
        if text.startswith(_RESULT_HEAD):
            return Result(_result_body(text))
        if len(payload) > NOTICE_BYTES:
            raise ProtocolError(f"a frame of {len(payload)} bytes that is not a result")
        value = _NOTICES.decode(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("a frame that is not JSON in UTF-8 with finite numbers") from error
    match _storable(value):
        case {"type": "progress", **fields}:
            return Progress({str(name): field for name, field in fields.items()})
        case {
            "type": "error",
            "code": str(code),
            "message": str(message),
            "advice": str(advice),
            "details": dict(details),
        } if is_code(code):
            return Failure(JobError(code=code, message=message, advice=advice, details=details))
    raise ProtocolError("a frame that is neither progress, result nor error")


def _result_body(text: str) -> str:
    body, end = _NOTICES.raw_decode(text, len(_RESULT_HEAD) - 1)
    if text[end:] != "}" or not isinstance(body, str):
        raise ProtocolError("a result frame with more than a body")
    body.encode()  # a lone surrogate written as \ud800 would otherwise fail only when the report is stored
    if "\0" in body:
        raise ProtocolError("a result body with a null character")
    return body


def _storable(value: Any, depth: int = 0) -> Any:
    """Replace what a UTF-8 text column can't hold (null characters, lone surrogates), at any depth."""
    if depth > _MAX_DEPTH:
        raise ProtocolError(f"a frame nested deeper than {_MAX_DEPTH}")
    if isinstance(value, str):
        return value.encode(errors="replace").decode().replace("\0", "\ufffd")
    if isinstance(value, list):
        return [_storable(item, depth + 1) for item in value]
    if isinstance(value, dict):
        return {_storable(key): _storable(item, depth + 1) for key, item in value.items()}
    return value


def _finite(literal: str) -> float:
    number = float(literal)
    if not math.isfinite(number):
        raise ValueError(f"{literal} is not a finite number")
    return number


_NOTICES = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)
