"""Bodies over a raw socket: what passes by the HTTP library, and where requests end all the same."""

from __future__ import annotations

import hashlib
import io
import json
import socket
from collections.abc import Iterator
from contextlib import closing
from http.client import parse_headers
from typing import BinaryIO
from urllib.parse import urlsplit

import numpy as np
import pytest
from support.service import Service


@pytest.fixture(scope="module")
def content() -> bytes:
    file = io.BytesIO()
    np.savez(file, x=np.random.default_rng(0).random((30_000, 32), np.float32), y=np.zeros(30_000, np.int64))
    return file.getvalue()


@pytest.fixture
def connection(api: Service) -> Iterator[socket.socket]:
    address = urlsplit(api.url)
    with closing(socket.create_connection((address.hostname, address.port or 80), timeout=30)) as opened:
        yield opened


def post(size: int, *headers: str) -> bytes:
    lines = ["POST /v1/batches HTTP/1.1", "Host: here", f"Content-Length: {size}", *headers, "", ""]
    return "\r\n".join(lines).encode()


@pytest.fixture
def answers(connection: socket.socket) -> Iterator[BinaryIO]:
    """What the server sends: several answers may come at once."""
    with connection.makefile("rb") as received:
        yield received


def answer(answers: BinaryIO) -> tuple[int, dict[str, str]]:
    """The next one."""
    status = int(answers.readline().split()[1])
    return status, json.loads(answers.read(int(parse_headers(answers)["Content-Length"])))


def identifier(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 999, 65_536, 1_000_003])
def test_a_body_is_stored_as_it_was_sent_whatever_its_pieces(
    connection: socket.socket, answers: BinaryIO, content: bytes, size: int
) -> None:
    sent = content if size > 1 else content[:20_000]
    connection.sendall(post(len(sent)))
    for start in range(0, len(sent), size):
        connection.sendall(sent[start : start + size])
    status, document = answer(answers)
    # What was cut off is no batch any more, which only its whole content can tell.
    assert (status, document.get("id")) == ((201, identifier(content)) if size > 1 else (422, None))


@pytest.mark.slow
def test_requests_follow_each_other_on_one_connection(
    connection: socket.socket, answers: BinaryIO, content: bytes
) -> None:
    for status in (201, 200, 200):
        connection.sendall(post(len(content)) + content)
        assert answer(answers) == (status, answer_of(content, connection, answers))


def answer_of(content: bytes, connection: socket.socket, answers: BinaryIO) -> dict[str, str]:
    connection.sendall(f"GET /v1/batches/{identifier(content)} HTTP/1.1\r\nHost: here\r\n\r\n".encode())
    return answer(answers)[1]


def test_a_request_in_the_same_packet_as_the_end_of_a_body_is_the_next_one(
    connection: socket.socket, answers: BinaryIO, content: bytes
) -> None:
    middle = len(content) // 2
    connection.sendall(post(len(content)) + content[:middle])
    connection.sendall(content[middle:] + b"GET /healthz HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
    assert answer(answers)[0] == 201
    assert answer(answers)[0] == 200


def test_a_client_that_waits_to_be_asked_is_asked_and_heard(
    connection: socket.socket, answers: BinaryIO, content: bytes
) -> None:
    connection.sendall(post(len(content), "Expect: 100-continue"))
    assert connection.recv(25).startswith(b"HTTP/1.1 100")
    connection.sendall(content)
    assert answer(answers)[1]["id"] == identifier(content)


def test_a_body_in_chunks_is_stored_as_well(connection: socket.socket, answers: BinaryIO, content: bytes) -> None:
    connection.sendall(b"POST /v1/batches HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n")
    for start in range(0, len(content), 300_000):
        piece = content[start : start + 300_000]
        connection.sendall(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
    connection.sendall(b"0\r\n\r\n")
    assert answer(answers)[1]["id"] == identifier(content)


def test_a_connection_that_is_closed_inside_a_body_leaves_nothing(
    api: Service, connection: socket.socket, content: bytes
) -> None:
    connection.sendall(post(len(content)) + content[:-1])
    connection.close()
    assert api.client.get(f"/v1/batches/{identifier(content)}").status_code == 404
    assert api.stored() == []
