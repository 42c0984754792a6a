"""Resolves names of hosts without holding up anything else."""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Self


class Resolver:
    """Resolves names on threads that do nothing else; a context manager.

    A resolver of the system can take minutes for a name whose servers do not answer, and can't be interrupted. On the
    threads that asyncio shares, a few such names would keep files from being read and requests from being answered.

    Args:
        threads: Names that are resolved at a time; others wait.
        seconds: Time limit for each name, in which it waits for a thread too.
    """

    def __init__(self, threads: int, seconds: float) -> None:
        self._seconds = seconds
        self._executor = ThreadPoolExecutor(threads, "resolver")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def addresses(self, name: str, port: int) -> list[IPv4Address | IPv6Address]:
        """Return the addresses of a host for TCP, in the order of the system's preference.

        Raises:
            OSError: if the name is unknown, or is not resolved in time (``TimeoutError``).
        """
        asked = asyncio.get_running_loop().run_in_executor(self._executor, _resolve, name, port)
        async with asyncio.timeout(self._seconds):
            return await asked


def _resolve(name: str, port: int) -> list[IPv4Address | IPv6Address]:
    try:
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # a label of a name is empty or too long
        raise OSError(f"{name} is no name of a host") from error
    return [ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
