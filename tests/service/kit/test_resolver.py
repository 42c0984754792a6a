"""Names of hosts, known, unknown, and slow."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

import pytest

from service.kit.resolver import Resolver

SLOW, QUICK = "slow.example", "quick.example"


@dataclass
class System:
    """A resolver of the system that hangs at the slow name until it is released."""

    released: threading.Event = field(default_factory=threading.Event)
    hanging: set[int] = field(default_factory=set)
    """Threads that have been asked for the slow name."""

    def getaddrinfo(self, host: str, port: int, **_: Any) -> list[Any]:
        if host == SLOW:
            self.hanging.add(threading.get_ident())
            self.released.wait(60)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", port))]


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> Iterator[System]:
    found = System()
    monkeypatch.setattr(socket, "getaddrinfo", found.getaddrinfo)
    yield found
    found.released.set()


def test_an_address_is_its_own_address() -> None:
    with Resolver(1, 60) as resolver:
        assert asyncio.run(resolver.addresses("127.0.0.1", 443)) == [ip_address("127.0.0.1")]


@pytest.mark.parametrize("name", ["no-such-name.invalid", "a" * 64 + ".example", "two..dots"])
def test_a_name_without_addresses_is_an_error_of_the_system(name: str) -> None:
    with Resolver(1, 60) as resolver, pytest.raises(OSError, match=r"\S") as caught:
        asyncio.run(resolver.addresses(name, 443))
    assert not isinstance(caught.value, TimeoutError)


def test_a_slow_name_is_given_up_and_leaves_the_threads_of_asyncio_alone(system: System) -> None:
    async def act() -> str:
        loop = asyncio.get_running_loop()
        waiting = [asyncio.create_task(resolver.addresses(SLOW, 443)) for _ in range(50)]
        for task in waiting:
            with pytest.raises(TimeoutError):
                await task
        # Fifty names hang, more than asyncio has threads.
        return await loop.run_in_executor(None, lambda: "done")

    with Resolver(2, 0.2) as resolver:
        assert asyncio.run(act()) == "done"


def test_names_that_hang_take_no_more_threads_than_there_are_and_the_next_ones_wait_for_one(
    system: System,
) -> None:
    async def act() -> None:
        for _ in range(5):
            with pytest.raises(TimeoutError):
                await resolver.addresses(SLOW, 443)
        assert len(system.hanging) == 2
        with pytest.raises(TimeoutError):
            await resolver.addresses(QUICK, 443)
        system.released.set()
        while True:  # until a thread is free
            try:
                assert await resolver.addresses(QUICK, 443) == [ip_address("192.0.2.1")]
            except TimeoutError:
                continue
            return

    with Resolver(2, 0.05) as resolver:
        asyncio.run(asyncio.wait_for(act(), 60))
