"""A tenant that takes all it can get: slow uploads, event streams, a full queue and bursts of requests that wait.

    python greedy.py URL KEY MODEL BATCH

It says `ready` once its queue is full, and ends with its stdin.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

UPLOADS, STREAMS, BURST, JOBS = 64, 64, 150, 500
_PAUSE = 0.2


class Greedy:
    """Its connections, which it opens again whenever they are closed."""

    def __init__(self, url: str, key: str, model: bytes, batch: bytes) -> None:
        address = urlsplit(url)
        self._host, self._port = str(address.hostname), int(address.port or 80)
        self._key, self._files = key, {"models": model, "batches": batch}
        self._named: dict[str, str] = {}
        self._seeds = itertools.count()
        self._accepted: list[str] = []

    async def run(self) -> None:
        for kind, content in self._files.items():
            answer = await self._ask(f"POST /v1/{kind}", content, len(content))
            self._named[kind] = json.loads(answer.partition(b"\r\n\r\n")[2])["id"]
        while len(self._accepted) < JOBS:
            await self._burst(wait=0)
        loops = [self._trickle() for _ in range(UPLOADS)] + [self._follow() for _ in range(STREAMS)]
        tasks = [asyncio.create_task(loop) for loop in [*loops, self._flood()]]
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        for task in tasks:
            task.cancel()

    async def _flood(self) -> None:
        while True:
            await self._burst(wait=2)

    async def _burst(self, *, wait: int) -> None:
        await asyncio.gather(*(self._submit(wait) for _ in range(BURST)))

    async def _submit(self, wait: int) -> None:
        files = {"model": self._named["models"], "batch": self._named["batches"]}
        wanted = {**files, "options": {"seed": next(self._seeds)}, "priority": 100, "fresh": True}
        body = json.dumps(wanted).encode()
        headers = ["Content-Type: application/json", f"Prefer: wait={wait}"]
        answer = await self._ask("POST /v1/analyses", body, len(body), *headers)
        if b" 202 " in answer[:15]:
            self._accepted.append(json.loads(answer.partition(b"\r\n\r\n")[2])["id"])
        elif b" 201 " not in answer[:15]:
            await asyncio.sleep(_PAUSE)

    async def _trickle(self) -> None:
        while True:
            with suppress(OSError):
                reader, writer = await self._open("POST /v1/models", 1 << 30)
                end = asyncio.create_task(reader.read(1))
                while not end.done():
                    writer.write(b"x" * 2048)
                    await writer.drain()
                    await asyncio.wait([end], timeout=1)
                writer.close()
            await asyncio.sleep(_PAUSE)

    async def _follow(self) -> None:
        while True:
            if self._accepted:
                with suppress(OSError):
                    await self._ask(f"GET /v1/analyses/{self._accepted[-1]}/events")
            await asyncio.sleep(_PAUSE)

    async def _ask(self, what: str, body: bytes = b"", length: int = 0, *headers: str) -> bytes:
        """Send a request and return all of the response."""
        with suppress(OSError):
            reader, writer = await self._open(what, length, "Connection: close", *headers)
            writer.write(body)
            answer = await reader.read()
            writer.close()
            return answer
        return b""

    async def _open(self, what: str, length: int, *headers: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        own = ["Host: x", f"Authorization: Bearer {self._key}", f"Content-Length: {length}"]
        writer.write("\r\n".join([f"{what} HTTP/1.1", *own, *headers, "", ""]).encode())
        return reader, writer


if __name__ == "__main__":
    url, key, model, batch = sys.argv[1:]
    asyncio.run(Greedy(url, key, Path(model).read_bytes(), Path(batch).read_bytes()).run())
