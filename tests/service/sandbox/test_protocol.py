"""Frames: what is encoded comes back, and what is not a frame is refused."""

from __future__ import annotations

import json
import struct
import tracemalloc
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.sandbox.job import JobError
from service.sandbox.protocol import (
    NOTICE_BYTES,
    Failure,
    FrameDecoder,
    Progress,
    ProtocolError,
    Result,
    encode_error,
    encode_progress,
    encode_result,
)

LIMIT = 1 << 20

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=10,
)
fields = st.dictionaries(texts.filter(lambda name: name != "type"), values, max_size=4)


def decode(data: bytes, *, piece: int = LIMIT, limit: int = LIMIT):
    decoder = FrameDecoder(limit)
    return [frame for start in range(0, len(data), piece) for frame in decoder.feed(data[start : start + piece])]


def frame(payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + payload


@pytest.mark.slow
@given(st.lists(fields, max_size=4), texts, st.integers(1, 50))
def test_frames_come_back_whole_in_pieces_of_any_size(progress, body, piece):
    data = b"".join(map(encode_progress, progress)) + encode_result(body, frame_bytes=LIMIT)

    assert decode(data, piece=piece) == [*map(Progress, progress), Result(body)]


@pytest.mark.slow
@given(texts, texts, fields)
def test_an_error_comes_back_whole(message, advice, details):
    error = JobError(code="bad_labels", message=message, advice=advice, details=details)

    assert decode(encode_error(error)) == [Failure(error)]


@given(st.binary(max_size=200))
def test_any_bytes_are_frames_or_refused(data):
    with suppress(ProtocolError):
        decode(data, piece=7, limit=100)


@given(st.binary(max_size=60))
def test_any_payload_is_a_frame_or_refused(payload):
    for head in (b"", b'{"type":"result","body":"', b'{"type":"progress","x":'):
        with suppress(ProtocolError):
            decode(frame(head + payload))


REFUSED = {
    "NaN": b'{"type":"progress","x":NaN}',
    "infinity": b'{"type":"progress","x":-Infinity}',
    "a number beyond float64": b'{"type":"progress","x":1e999}',
    "a number of a million digits": b'{"type":"progress","x":' + b"1" * 200_000 + b"}",
    "nesting beyond the parser": b"[" * 200_000,
    "nesting beyond the limit": b'{"type":"progress","x":' + b"[" * 40 + b"]" * 40 + b"}",
    "not UTF-8": b'{"type":"progress","x":"\xff"}',
    "not an object": b'"progress"',
    "empty": b"",
    "an error without advice": b'{"type":"error","code":"a","message":"b","details":{}}',
    "an error with a strange code": b'{"type":"error","code":"A-1","message":"b","advice":"c","details":{}}',
    "a result that is not a string": b'{"type":"result","body":{}}',
    "a result written in another way": b'{"body":"x","type":"result"}',
    "a result with more in it": b'{"type":"result","body":"x","more":1}',
    "a result with a lone surrogate": b'{"type":"result","body":"\\ud800"}',
    "a result with a null character": b'{"type":"result","body":"\\u0000"}',
    "an unfinished result": b'{"type":"result","body":"x',
}


@pytest.mark.parametrize("payload", REFUSED.values(), ids=REFUSED.keys())
def test_a_bad_frame_is_refused(payload):
    with pytest.raises(ProtocolError):
        decode(frame(payload))


def test_only_a_result_may_be_long():
    with pytest.raises(ProtocolError, match="not a result"):
        decode(frame(b'{"type":"progress","x":[' + b"[]," * NOTICE_BYTES + b"0]}"), limit=1 << 30)


def test_a_frame_that_says_it_is_huge_takes_no_memory():
    tracemalloc.start()
    try:
        decode(struct.pack(">I", LIMIT) + b"x" * 100)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 100_000


def test_characters_that_no_text_column_holds_are_replaced_at_any_depth():
    payload = b'{"type":"progress","a\\u0000":["b\\ud800",{"c":"\\u0000"}]}'

    assert decode(frame(payload)) == [Progress({"a\ufffd": ["b?", {"c": "\ufffd"}]})]


def test_progress_cannot_pretend_to_be_a_result():
    assert decode(encode_progress({"type": "result", "body": "x"})) == [Progress({"body": "x"})]


@pytest.mark.parametrize("value", [float("nan"), "x" * NOTICE_BYTES], ids=["NaN", "too long"])
def test_progress_that_does_not_fit_is_refused_where_it_is_sent(value):
    with pytest.raises(ValueError, match=r"JSON|longer"):
        encode_progress({"x": value})


def test_an_error_always_fits():
    error = JobError(code="a", message="∂" * 10**6, advice="∂" * 10**6, details={"x": "∂" * 10**6})

    (decoded,) = decode(encode_error(error))

    assert len(json.dumps(decoded.error.message)) < NOTICE_BYTES
    assert decoded.error.details == {"omitted": "too long"}
