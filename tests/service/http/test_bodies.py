"""How bodies get from the connection to the disk."""

from __future__ import annotations

import asyncio
import hashlib
import io
import threading
import time
from collections.abc import AsyncIterator

import numpy as np
import pytest
from support.service import StartService

from service.http.bodies import pump

LARGE = 1 << 17


async def body(*sizes: int) -> AsyncIterator[bytes]:
    for number, size in enumerate(sizes):
        yield bytes([number]) * size
        await asyncio.sleep(0)


def test_chunks_are_written_in_order_whatever_their_sizes() -> None:
    written = bytearray()
    sizes = [5, LARGE, 1, 3 * LARGE, LARGE, *[7] * 50, 20 * LARGE, 2]
    asyncio.run(pump(body(*sizes), written.extend))
    assert written == b"".join(bytes([number]) * size for number, size in enumerate(sizes))


def test_more_is_received_while_a_large_chunk_is_written_but_not_without_end() -> None:
    received, release = 0, threading.Event()
    seen_while_writing: list[int] = []

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal received
        for _ in range(40):
            received += 1
            yield bytes(LARGE)
            await asyncio.sleep(0)

    def write(_: bytes) -> None:
        assert release.wait(20)

    async def watch() -> None:
        task = asyncio.create_task(pump(chunks(), write))
        # Until it stands still: what is ahead of the disk is limited.
        while not seen_while_writing or received != seen_while_writing[-1]:
            seen_while_writing.append(received)
            for _ in range(20):
                await asyncio.sleep(0)
        assert not task.done()
        release.set()
        await task

    asyncio.run(watch())
    assert 1 < seen_while_writing[-1] < 20
    assert received == 40


class SlowDisk:
    """Takes a while for each chunk."""

    def __init__(self) -> None:
        self.writing = threading.Event()
        self.written = 0

    def write(self, chunk: bytes) -> None:
        self.writing.set()
        time.sleep(0.2)
        self.written += len(chunk)

    async def has_begun(self) -> None:
        assert await asyncio.to_thread(self.writing.wait, 20)


# Looked at inside of the event loop, whose end waits for its threads anyway.
def test_a_body_that_breaks_off_leaves_no_thread_that_writes() -> None:
    disk = SlowDisk()

    async def breaks() -> AsyncIterator[bytes]:
        yield bytes(LARGE)
        await disk.has_begun()
        raise ConnectionError

    async def receive() -> None:
        with pytest.raises(ConnectionError):
            await pump(breaks(), disk.write)
        assert disk.written == LARGE

    asyncio.run(receive())


def test_a_request_that_is_cancelled_leaves_no_thread_that_writes() -> None:
    disk = SlowDisk()

    async def cancel() -> None:
        task = asyncio.create_task(pump(body(LARGE, 20 * LARGE, LARGE), disk.write))
        await disk.has_begun()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert disk.written == LARGE

    asyncio.run(cancel())


@pytest.mark.parametrize("sizes", [(LARGE,), (LARGE, LARGE), (LARGE, 3), (3,)])
def test_what_goes_wrong_in_writing_is_told(sizes: tuple[int, ...]) -> None:
    def write(_: bytes) -> None:
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        asyncio.run(pump(body(*sizes), write))


def test_a_large_file_is_stored_as_it_was_sent_alone_and_in_a_form(
    start_service: StartService, model_bytes: bytes
) -> None:
    api = start_service(worker=False)
    buffer = io.BytesIO()
    np.savez(buffer, x=np.random.default_rng(0).random((20_000, 64), np.float32), y=np.zeros(20_000, np.int64))
    content = buffer.getvalue()
    identifier = f"sha256:{hashlib.sha256(content).hexdigest()}"
    alone = api.client.post("/v1/batches", content=content)
    assert (alone.status_code, alone.json()["id"], alone.json()["size"]) == (201, identifier, len(content))
    files = {"model": model_bytes, "batch": content, "request": b"{}"}
    analysis = api.client.post("/v1/analyses", files=files).json()
    assert analysis["batch"] == identifier
    assert api.client.post("/v1/batches", content=content).status_code == 200
    assert not api.leftovers()
