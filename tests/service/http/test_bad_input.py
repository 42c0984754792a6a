"""A table of bad requests and files: each has its answer, and none leaves anything behind in the server.

The requests go over a socket as raw bytes to a real `wsb serve`; the files through its sandbox and the real engine.
"""

from __future__ import annotations

import gzip
import json
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from support import hostile
from support.external import external_mlp
from support.forms import full, thinned
from support.hostile import changed, claiming, first_node, npy, npz, opset, safetensors, tensor, with_member, zipped
from support.served import Served, served
from support.service import npz_batch, onnx_mlp, until

ID = "00000000-0000-0000-0000-000000000000"
NO_ANSWER = (None, None)
X, Y = np.zeros((2, 4)), np.array([0, 1])


@dataclass(frozen=True)
class Row:
    id: str
    content: Callable[[], bytes]
    """The whole request."""
    status: int | None
    code: str | None
    """None for an answer that is no problem; both None where the connection is closed without an answer."""


def raw(id: str, content: bytes, status: int | None, code: str | None) -> Row:  # noqa: A002
    return Row(id, lambda: content, status, code)


def http(method: str, path: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: x", "Connection: close", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode("utf-8") + body


def head(*lines: str, body: bytes = b"") -> bytes:
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def chunked(path: str, body: bytes, *headers: str) -> bytes:
    start = (f"POST {path} HTTP/1.1", "Host: x", "Connection: close", "Transfer-Encoding: chunked")
    return head(*start, *headers, body=body)


def posted(body: bytes | str, media_type: str | None = "application/json") -> bytes:
    content = body.encode("utf-8", "surrogatepass") if isinstance(body, str) else body
    return http("POST", "/v1/analyses", content, *([] if media_type is None else [f"Content-Type: {media_type}"]))


def request(**content: Any) -> bytes:
    return posted(json.dumps({"model": "sha256:" + "0" * 64, "batch": "sha256:" + "0" * 64, **content}))


def parts(*dispositions: str, end: str = "--b--\r\n", content: str = "x", newline: str = "\r\n") -> bytes:
    text = "".join(f"--b{newline}Content-Disposition: {item}{newline * 2}{content}{newline}" for item in dispositions)
    return posted((text + end).encode(), "multipart/form-data; boundary=b")


def files(model: bytes, batch: bytes, data: Mapping[str, bytes] = MappingProxyType({}), **options: Any) -> bytes:
    body = b""
    named = {"model": model, "batch": batch, "request": json.dumps({"options": options}).encode()}
    parts = [(name, "f", content) for name, content in named.items()]
    for name, file_name, content in [*parts, *(("model_data", *each) for each in data.items())]:
        body += f'--wsb\r\nContent-Disposition: form-data; name="{name}"; filename="{file_name}"\r\n\r\n'.encode()
        body += content + b"\r\n"
    media_type = "Content-Type: multipart/form-data; boundary=wsb"
    return http("POST", "/v1/analyses", body + b"--wsb--\r\n", media_type, "Prefer: wait=60")


def model_row(id: str, content: Callable[[], bytes], status: int, code: str) -> Row:  # noqa: A002
    return Row(f"model-{id}", cache(lambda: files(content(), npz_batch())), status, code)


def data_row(id: str, names: tuple[str, ...], data: dict[str, bytes], code: str) -> Row:  # noqa: A002
    """A model that refers to data files of these names, sent with others; without names, a model of one file."""
    model = external_mlp(*names)[0] if names else onnx_mlp()
    return Row(f"data-{id}", cache(lambda: files(model, npz_batch(), data)), 422, code)


def batch_row(id: str, content: Callable[[], bytes], status: int, code: str) -> Row:  # noqa: A002
    return Row(f"batch-{id}", cache(lambda: files(onnx_mlp(), content())), status, code)


ROUTES = [
    raw("method-not-of-the-resource", http("PUT", "/v1/models"), 405, "method_not_allowed"),
    raw("method-of-another-level", http("DELETE", "/v1/analyses"), 405, "method_not_allowed"),
    raw("method-unknown", http("BREW", "/v1/models"), 405, "method_not_allowed"),
    raw("method-trace", http("TRACE", "/v1/models"), 405, "method_not_allowed"),
    raw("method-on-a-probe", http("POST", "/healthz"), 405, "method_not_allowed"),
    raw("path-unknown", http("GET", "/v1/nothing"), 404, "not_found"),
    raw("path-with-dots", http("GET", "/v1/models/../../etc/passwd"), 404, "not_found"),
    raw("path-with-encoded-dots", http("GET", "/v1/models/..%2f..%2fetc%2fpasswd"), 404, "not_found"),
    raw("path-with-a-slash-too-many", http("GET", "/v1/analyses/"), 404, "not_found"),
    raw("path-with-null", http("GET", "/v1/models/sha256:%00"), 404, "blob_not_found"),
    raw("path-long", http("GET", "/v1/models/" + "a" * 8000), 404, "blob_not_found"),
    raw("path-emoji", http("GET", "/v1/analyses/%F0%9F%92%A9"), 404, "analysis_not_found"),
    raw("path-not-utf8", http("GET", "/v1/analyses/%ff%fe"), 404, "analysis_not_found"),
    raw("path-asterisk", http("OPTIONS", "*"), 404, "not_found"),
    raw("path-sql", http("GET", "/v1/analyses/'%20OR%201=1--"), 404, "analysis_not_found"),
    raw("identifier-in-capitals", http("GET", f"/v1/analyses/{ID.replace('0', 'A')}"), 404, "analysis_not_found"),
    raw("events-of-nothing", http("GET", f"/v1/analyses/{ID}/events"), 404, "analysis_not_found"),
    raw("report-of-nothing", http("GET", f"/v1/analyses/{ID}/report"), 404, "analysis_not_found"),
    raw("cancel-of-nothing", http("POST", f"/v1/analyses/{ID}/cancel"), 404, "analysis_not_found"),
    raw("delete-of-nothing", http("DELETE", f"/v1/models/sha256:{'0' * 64}"), 404, "blob_not_found"),
    raw("query-limit-zero", http("GET", "/v1/analyses?limit=0"), 422, "invalid_request"),
    raw("query-limit-word", http("GET", "/v1/analyses?limit=many"), 422, "invalid_request"),
    raw("query-limit-huge", http("GET", f"/v1/analyses?limit={'9' * 6000}"), 422, "invalid_request"),
    raw("query-state-unknown", http("GET", "/v1/analyses?state=asleep"), 422, "invalid_request"),
    raw("query-label-with-null", http("GET", "/v1/analyses?label=a:%00"), 422, "invalid_request"),
    raw("query-cursor-garbage", http("GET", "/v1/analyses?after=%ff"), 422, "invalid_request"),
    raw("query-cursor-huge", http("GET", "/v1/analyses?after=" + "OTk5" * 10), 422, "invalid_request"),
]

GET = "GET /healthz HTTP/1.1"
POST = "POST /v1/models HTTP/1.1"
WIRE = [
    raw("http-0.9", b"GET /healthz\r\n\r\n", 400, "malformed_request"),
    raw("http-2-preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 404, "not_found"),
    raw(
        "tls-hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(50) + b"\r\n\r\n", 400, "malformed_request"
    ),
    raw("null-bytes", bytes(100) + b"\r\n\r\n", 400, "malformed_request"),
    raw("host-missing", head(GET), 400, "malformed_request"),
    raw("host-twice", head(GET, "Host: a", "Host: b"), 400, "malformed_request"),
    raw("header-without-colon", head(GET, "Host: x", "Nonsense"), 400, "malformed_request"),
    raw("header-name-with-space", head(GET, "Host: x", "A B: c"), 400, "malformed_request"),
    raw("header-with-null", head(GET, "Host: x", "A: b\x00c"), 400, "malformed_request"),
    raw("header-huge", head(GET, "Host: x", "A: " + "b" * 20_000), 400, "malformed_request"),
    raw("headers-many", head(GET, "Host: x", *(f"A{i}: b" for i in range(3_000))), 400, "malformed_request"),
    raw("url-huge", head(f"GET /{'a' * 20_000} HTTP/1.1", "Host: x"), 400, "malformed_request"),
    raw("length-negative", head(POST, "Host: x", "Content-Length: -1"), 400, "malformed_request"),
    raw("length-word", head(POST, "Host: x", "Content-Length: 1e3"), 400, "malformed_request"),
    raw("length-plus", head(POST, "Host: x", "Content-Length: +5"), 400, "malformed_request"),
    raw("length-of-5000-digits", head(POST, "Host: x", f"Content-Length: {'9' * 5000}"), 400, "malformed_request"),
    raw("length-twice", head(POST, "Host: x", "Content-Length: 1", "Content-Length: 2"), 400, "malformed_request"),
    raw("length-huge", head(POST, "Host: x", "Content-Length: 99999999999999999999"), 413, "body_too_large"),
    raw(
        "length-and-chunks",
        chunked("/v1/models", b"4\r\nabcd\r\n0\r\n\r\n", "Content-Length: 3"),
        400,
        "malformed_request",
    ),
    raw("chunks-and-gzip", chunked("/v1/models", b"0\r\n\r\n", "Transfer-Encoding: gzip"), 400, "malformed_request"),
    raw("chunk-size-word", chunked("/v1/models", b"zz\r\nabc\r\n"), 400, "malformed_request"),
    raw("chunk-size-negative", chunked("/v1/models", b"-1\r\nabc\r\n"), 400, "malformed_request"),
    raw("chunk-size-of-30-digits", chunked("/v1/models", b"f" * 30 + b"\r\nabc\r\n"), 400, "malformed_request"),
    raw("chunk-without-its-end", chunked("/v1/models", b"3\r\nabcdef\r\n0\r\n\r\n"), 400, "malformed_request"),
    raw("chunk-line-huge", chunked("/v1/models", b"3;" + b"a" * 20_000), 400, "malformed_request"),
    raw("chunks-without-end", chunked("/v1/models", b"3\r\nabc\r\n"), 408, "upload_too_slow"),
    raw("chunks-none", chunked("/v1/models", b"0\r\n\r\n"), 422, "empty_body"),
    raw("body-that-stops", head(POST, "Host: x", "Content-Length: 9", body=b"abc"), 408, "upload_too_slow"),
    raw("body-cut-off", head(POST, "Host: x", "Content-Length: 9", body=b"abc"), *NO_ANSWER),
    raw("head-cut-off", b"GET /healthz HTT", *NO_ANSWER),
    raw(
        "encoding-gzip",
        http("POST", "/v1/models", gzip.compress(b"x"), "Content-Encoding: gzip"),
        415,
        "unsupported_media_type",
    ),
    raw(
        "encoding-list",
        http("POST", "/v1/models", b"x", "Content-Encoding: identity, br"),
        415,
        "unsupported_media_type",
    ),
    raw(
        "upgrade-to-websocket",
        http("GET", "/v1/nothing", b"", "Connection: upgrade", "Upgrade: websocket"),
        404,
        "not_found",
    ),
    raw(
        "key-with-space",
        http("POST", "/v1/analyses", b"{}", "Content-Type: application/json", "Idempotency-Key: a b"),
        422,
        "invalid_request",
    ),
]

FORMS = [
    raw("type-missing", posted(b"{}", None), 415, "unsupported_media_type"),
    raw("type-text", posted(b"{}", "text/plain"), 415, "unsupported_media_type"),
    raw("type-garbage", posted(b"{}", ';;;=\\"'), 415, "unsupported_media_type"),
    raw("type-problem", posted(b"{}", "application/problem+json"), 415, "unsupported_media_type"),
    raw("form-without-boundary", posted(b"x", "multipart/form-data"), 400, "malformed_request"),
    raw("form-boundary-long", posted(b"x", f"multipart/form-data; boundary={'b' * 300}"), 400, "malformed_request"),
    raw("form-empty", posted(b"", "multipart/form-data; boundary=b"), 400, "malformed_request"),
    raw("form-of-no-parts", parts(), 422, "missing_part"),
    raw("form-without-end", parts('form-data; name="model"', end=""), 400, "malformed_request"),
    raw("form-lines-by-lf", parts('form-data; name="model"', newline="\n", end="--b--\n"), 400, "malformed_request"),
    raw("part-twice", parts('form-data; name="model"', 'form-data; name="model"'), 422, "duplicate_part"),
    raw("part-unknown", parts('form-data; name="weights"'), 422, "unexpected_part"),
    raw("part-name-a-path", parts('form-data; name="../../etc/passwd"'), 422, "unexpected_part"),
    raw("part-name-with-null", parts('form-data; name="model\x00"'), 422, "unexpected_part"),
    raw("part-name-right-to-left", parts('form-data; name="\u202eledom"'), 422, "unexpected_part"),
    raw("part-name-lookalike", parts('form-data; name="mоdel"'), 422, "unexpected_part"),
    raw("part-name-empty", parts('form-data; name=""'), 422, "unexpected_part"),
    raw("part-name-long", parts(f'form-data; name="{"m" * 5000}"'), 400, "malformed_request"),
    raw("part-without-name", parts("form-data"), 400, "malformed_request"),
    raw("part-attachment", parts('attachment; name="model"'), 400, "malformed_request"),
    raw("part-headers-many", parts('form-data; name="model"' + "\r\nA: b" * 20), 400, "malformed_request"),
    raw("part-file-name-a-path", parts('form-data; name="model"; filename="/etc/passwd"'), 422, "missing_part"),
    raw(
        "part-in-base64",
        parts('form-data; name="model"\r\nContent-Transfer-Encoding: base64', 'form-data; name="batch"'),
        415,
        "unknown_format",
    ),
    raw("json-none", posted(b""), 400, "malformed_request"),
    raw("json-cut-off", posted('{"model": "a'), 400, "malformed_request"),
    raw("json-utf16", posted('{"model": "a"}'.encode("utf-16")), 400, "malformed_request"),
    raw("json-not-utf8", posted(b'{"model": "\xff"}'), 400, "malformed_request"),
    raw("json-lone-surrogate", posted('{"model": "\\ud800"}'), 400, "malformed_request"),
    raw("json-deep", posted("[" * 100_000), 400, "malformed_request"),
    raw("json-deep-object", posted('{"a":' * 50_000), 400, "malformed_request"),
    raw("json-above-the-limit", posted(b" " * 2_000_000), 413, "body_too_large"),
    raw("json-list", posted("[1]"), 422, "invalid_request"),
    raw("json-long-list", posted("[" + "1," * 400_000 + "1]"), 422, "invalid_request"),
    raw("json-number-of-many-digits", posted('{"priority": ' + "9" * 100_000 + "}"), 400, "malformed_request"),
    raw("json-nan", request(timeout_s=float("nan")), 422, "invalid_request"),
    raw("json-infinite", posted('{"timeout_s": 1e999}'), 422, "invalid_request"),
    raw("json-label-with-null", request(labels={"a": "\x00"}), 422, "invalid_request"),
    raw("json-lists-many", posted('{"options": [' + "[]," * 20_000 + "0]}"), 400, "malformed_request"),
    raw("json-members-many", request(**{str(i): 0 for i in range(201)}), 400, "malformed_request"),
    raw("json-labels-many", request(labels={str(i): "" for i in range(33)}), 422, "invalid_request"),
    raw("json-option-unknown", request(options={"exec": "ls"}), 422, "invalid_request"),
    raw("json-glob-of-a-megabyte", request(options={"parameters": ["*" * 900_000]}), 422, "invalid_request"),
    raw("json-blob-a-path", request(model="../../etc/passwd"), 404, "blob_not_found"),
]

MODELS = [
    model_row("empty", lambda: b"", 422, "empty_body"),
    model_row("text", lambda: b"import os", 415, "unknown_format"),
    model_row("pickle", hostile.evil_pickle, 415, "unknown_format"),
    model_row(
        "torch-save", lambda: zipped({"m/data.pkl": hostile.evil_pickle(), "m/version": b"3"}), 415, "unknown_format"
    ),
    model_row(
        "pt2-compiled",
        lambda: zipped({"m/archive_format": b"pt2", "m/data/aotinductor/m.so": b""}),
        415,
        "unknown_format",
    ),
    model_row("pt2", lambda: zipped({"m/archive_format": b"pt2", "m/models/model.json": b"{}"}), 422, "model_invalid"),
    model_row("gzip", lambda: gzip.compress(onnx_mlp()), 415, "unknown_format"),
    model_row("zip-without-end", lambda: b"PK\x03\x04" + bytes(200), 422, "truncated_file"),
    model_row("onnx-cut-off", lambda: onnx_mlp()[:-20], 422, "truncated_file"),
    model_row(
        "torchscript-of-a-pickle", lambda: hostile.torchscript(hostile.evil_pickle()), 422, "torchscript_code_refused"
    ),
    model_row("torchscript-of-garbage", lambda: hostile.torchscript(b"\x80\x02garbage"), 422, "model_invalid"),
    model_row(
        "onnx-of-random-fields",
        lambda: b"\x08\x0a" + hostile.field(7, b"\xff" * 50) + hostile.field(8, b"\x10\x11"),
        422,
        "model_invalid",
    ),
    model_row("graphs-in-graphs", lambda: hostile.nested(5000), 422, "model_invalid"),
    model_row("cycle", lambda: changed(hostile.cyclic), 422, "model_invalid"),
    model_row("external-data", lambda: changed(hostile.external("weights.bin")), 422, "external_data_missing"),
    model_row(
        "external-data-of-the-host", lambda: changed(hostile.external("/etc/passwd")), 422, "external_data_refused"
    ),
    model_row("operator-unknown", lambda: changed(first_node(op_type="Exfiltrate")), 422, "unsupported_operator"),
    model_row("operator-of-a-domain", lambda: changed(first_node(domain="evil")), 422, "model_invalid"),
    model_row("opset-of-the-future", lambda: changed(opset(9999)), 422, "unsupported_opset"),
    model_row("opset-negative", lambda: changed(opset(-1)), 422, "unsupported_opset"),
    model_row("weight-of-another-shape", lambda: changed(claiming(7, 7)), 422, "model_invalid"),
    model_row("weight-of-a-huge-shape", lambda: changed(claiming(1 << 40, 1 << 20)), 422, "tensor_too_large"),
    model_row("weight-of-a-negative-shape", lambda: changed(claiming(-4, -5)), 422, "model_invalid"),
    model_row("weights-nan", lambda: changed(hostile.weights(float("nan"))), 422, "model_not_finite"),
    model_row("weights-that-overflow", lambda: changed(hostile.weights(1e308, 2)), 422, "logits_not_finite"),
    model_row("no-outputs", lambda: changed(hostile.without("output")), 422, "model_invalid"),
    model_row("no-weights", lambda: changed(hostile.without("initializer")), 422, "model_invalid"),
    model_row("no-parameters", hostile.no_parameters, 422, "model_no_parameters"),
    model_row("name-given-twice", lambda: changed(hostile.twice_named), 422, "model_invalid"),
]

DATA = external_mlp()[1]["m.onnx.data"]
DATA_FILES = [
    data_row("missing", ("m.onnx.data",), {}, "external_data_missing"),
    data_row("one-of-two-missing", ("a", "b"), {"a": DATA}, "external_data_missing"),
    data_row("of-another-name", ("m.onnx.data",), {"n.onnx.data": DATA}, "external_data_missing"),
    data_row("of-the-batch", ("batch",), {}, "external_data_missing"),
    data_row("of-the-model", ("model",), {}, "external_data_missing"),
    data_row("of-the-log", ("child.log",), {}, "external_data_missing"),
    data_row("one-too-many", ("m.onnx.data",), {"m.onnx.data": DATA, "notes.txt": b"x"}, "external_data_unused"),
    data_row("for-a-model-of-one-file", (), {"m.onnx.data": DATA}, "external_data_unused"),
    data_row("cut-short", ("m.onnx.data",), {"m.onnx.data": DATA[:-1]}, "external_data_refused"),
    data_row("empty", ("m.onnx.data",), {"m.onnx.data": b""}, "external_data_refused"),
    data_row("above-the-folder", ("../batch",), {"batch": DATA}, "external_data_refused"),
    data_row("of-the-host", ("/etc/passwd",), {"etc/passwd": DATA}, "external_data_refused"),
    data_row("of-a-folder", ("a/b", "a"), {"a/b": DATA}, "external_data_refused"),
]

BATCHES = [
    batch_row("empty", lambda: b"", 422, "empty_body"),
    batch_row("text", lambda: b"x,y\n1,2\n", 415, "unknown_format"),
    batch_row("pickle", hostile.evil_pickle, 415, "unknown_format"),
    batch_row("one-npy", lambda: npy("<f8", "(1,)", bytes(8)), 415, "unknown_format"),
    batch_row("zip-of-others", lambda: zipped({"x.pkl": b"x"}), 415, "unknown_format"),
    batch_row("cut-off", lambda: npz_batch()[:-30], 422, "truncated_file"),
    batch_row("objects", lambda: npz(x=np.array([{}, {}], dtype=object), y=Y), 422, "object_array"),
    batch_row("pickle-in-a-member", lambda: with_member("x.npy", hostile.evil_pickle()), 422, "batch_invalid"),
    batch_row(
        "header-that-is-code",
        lambda: with_member("x.npy", npy("", "", b"", header="__import__('os').system('true')")),
        422,
        "batch_invalid",
    ),
    batch_row("header-deep", lambda: with_member("x.npy", npy("", "", b"", header="(" * 9000)), 422, "batch_invalid"),
    batch_row("shape-huge", lambda: with_member("x.npy", npy("<f8", (1 << 40, 1 << 20), b"")), 422, "batch_invalid"),
    batch_row("shape-negative", lambda: with_member("x.npy", npy("<f8", (-2, -4), bytes(64))), 422, "batch_invalid"),
    batch_row("shape-of-nothing", lambda: with_member("x.npy", npy("<f8", (1 << 60, 0), b"")), 422, "batch_invalid"),
    batch_row(
        "member-named-a-path",
        lambda: with_member("../../x2.npy", npy("<f8", "(2, 4)", bytes(64))),
        422,
        "input_unknown",
    ),
    batch_row("member-twice", lambda: with_member("x", npy("<f8", "(2, 4)", bytes(64))), 415, "unknown_format"),
    batch_row("zip-bomb", cache(hostile.bomb), 422, "row_count_mismatch"),
    batch_row("nan", lambda: npz(x=X * np.nan, y=Y), 422, "batch_not_finite"),
    batch_row("no-rows", lambda: npz(x=X[:0], y=Y[:0]), 422, "empty_batch"),
    batch_row("no-labels", lambda: npz(x=X), 422, "labels_missing"),
    batch_row("no-inputs", lambda: npz(y=Y), 422, "inputs_missing"),
    batch_row("rows-of-other-number", lambda: npz(x=X, y=np.zeros(3, int)), 422, "row_count_mismatch"),
    batch_row("features-of-other-number", lambda: npz(x=X[:, :3], y=Y), 422, "feature_count_mismatch"),
    batch_row("label-above-the-classes", lambda: npz(x=X, y=Y + 7), 422, "labels_out_of_range"),
    batch_row("label-negative", lambda: npz(x=X, y=Y - 5), 422, "labels_out_of_range"),
    batch_row("labels-complex", lambda: npz(x=X, y=Y + 1j), 422, "unsupported_array_dtype"),
    batch_row("labels-of-other-width", lambda: npz(x=X, y=np.full((2, 5), 0.2)), 422, "label_classes_mismatch"),
    batch_row("labels-no-probabilities", lambda: npz(x=X, y=X[:, :3] + 0.7), 422, "labels_not_probabilities"),
    batch_row("weights-negative", lambda: npz(x=X, y=Y, weights=-np.ones(2)), 422, "weights_invalid"),
    batch_row("input-of-another-name", lambda: npz(image=X, y=Y, mask=X), 422, "input_missing"),
    batch_row(
        "tensors-overlapping",
        lambda: safetensors({"x": tensor("F64", [2, 4], 0, 64), "y": tensor("I64", [2], 56, 72)}, bytes(72)),
        422,
        "batch_invalid",
    ),
    batch_row(
        "tensors-beyond-the-end", lambda: safetensors({"x": tensor("F64", [2, 4], 0, 6400)}), 422, "batch_invalid"
    ),
    batch_row("tensors-of-bad-json", lambda: safetensors(b"{" * 5000), 422, "batch_invalid"),
    batch_row("tensors-of-a-strange-type", lambda: safetensors({"x": tensor("Q99", [2], 0, 16)}), 422, "batch_invalid"),
    batch_row("tensors-header-cut-off", lambda: safetensors({"x": 1}, b"", length=1 << 20), 422, "truncated_file"),
    batch_row("tensors-header-of-a-terabyte", lambda: safetensors({"x": 1}, length=1 << 40), 415, "unknown_format"),
]

TABLE = [*ROUTES, *WIRE, *FORMS, *MODELS, *DATA_FILES, *BATCHES]


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(WSB_UPLOAD_IDLE_SECONDS="1", WSB_JOB_THREADS="1", OMP_NUM_THREADS="1") as running:
        yield running


def answer(server: Served, row: Row) -> tuple[int | None, str | None]:
    """Status and code of the first answer to the row's bytes."""
    address = urlsplit(server.url)
    received = b""
    with socket.create_connection((str(address.hostname), int(address.port or 0)), timeout=90) as connection:
        try:
            connection.sendall(row.content())
            if row.status is None:
                connection.shutdown(socket.SHUT_WR)
            while not is_whole(received) and (data := connection.recv(65536)):
                received += data
        except (BrokenPipeError, ConnectionResetError):
            pass
    if not received:
        return NO_ANSWER
    start, _, body = received.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in start.lower(), received[:500]
    # Bytes after a request that is answered can be a second one, with an answer of its own.
    problem, _ = json.JSONDecoder().raw_decode(body.decode())
    status = int(start.split(b" ", 2)[1])
    assert problem["status"] == status
    return status, problem["code"]


def is_whole(received: bytes) -> bool:
    """Whether these bytes hold a whole answer, after which some connections stay open for a while."""
    start, end, body = received.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", start)
    return bool(end) and length is not None and len(body) >= int(length[1])


# Each file takes a child; what the engine says of more of them, its own tests see without one.
THINNED = [*ROUTES, *WIRE, *FORMS, *thinned(MODELS, 10), *thinned(DATA_FILES, 3), *thinned(BATCHES, 10)]


@pytest.mark.parametrize("row", THINNED, ids=[row.id for row in TABLE])
def test_bad_input_has_its_own_answer(server: Served, row: Row) -> None:
    assert answer(server, row) == (row.status, row.code)


@pytest.mark.parametrize("rows", [TABLE[::12], full(TABLE)], ids=["short", "full"])
def test_after_the_table_the_server_holds_no_more_than_before(server: Served, rows: list[Row]) -> None:
    processes = [server.process, *server.workers()]

    def run_table() -> tuple[list[int], list[int]]:
        with ThreadPoolExecutor(8) as pool:
            assert len(list(pool.map(lambda row: answer(server, row), rows))) == len(rows)
        return [process.num_fds() for process in processes], [process.memory_info().rss for process in processes]

    files_before, memory_before = run_table()
    _, memory_after = run_table()
    # Idle connections to the database are kept, and those of clients close a moment after their answer.
    until(lambda: all(p.num_fds() <= before + 2 for p, before in zip(processes, files_before, strict=True)))
    for before, after in zip(memory_before, memory_after, strict=True):
        assert after - before < 32 << 20
    assert not Path("/tmp/wsb-was-here").exists()  # noqa: S108 - what the pickles would make


def test_the_table_is_long_and_names_each_row_once() -> None:
    assert len({row.id for row in TABLE}) == len(TABLE) >= 80
